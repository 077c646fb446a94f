"""Bytes of plain and compressed files, line by line, in bounded memory."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, BinaryIO

from configs.errors import DataError
from data_prep.readers.base import file_size

MAX_LINE = 32 << 20
"""Bytes; longer lines are dropped (and counted) without being held."""
BOM = b"\xef\xbb\xbf"

# Compressed bytes fed at a time. zlib and lzma bound their output themselves; zstandard's streaming object
# does not, and 128 KiB of one repeated byte take 4 bytes: small bites keep a hostile file bounded.
_BITE = {".gz": 1 << 16, ".xz": 1 << 16, ".zst": 1 << 9, ".bz2": 1 << 16}
_OUTPUT = 1 << 20
_MAGIC = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ\x00", ".zst": b"\x28\xb5\x2f\xfd", ".bz2": b"BZh"}
PACKED = ("", *_MAGIC)
"""Endings that may follow the ending of a file of lines."""
_MEMBER = {
    ".gz": re.compile(rb"\x1f\x8b\x08"),
    ".xz": re.compile(rb"\xfd7zXZ\x00"),
    ".zst": re.compile(rb"\x28\xb5\x2f\xfd"),
    ".bz2": re.compile(rb"BZh[1-9]1AY&SY"),
}
_SEAM = b"\r\n\r\n"
"""Stands where a damaged member was left, so that what was torn is not joined to what comes next."""
_SKIPPABLE = b"\x2a\x4d\x18"  # bytes 1..3 of a zstd skippable frame (pzstd, zstd --patch write them)


def compression(path: str) -> str:
    """``.gz``, ``.xz``, ``.zst``, ``.bz2`` or the empty string, by the ending of ``path``."""
    lower = path.lower()
    return next((ending for ending in _MAGIC if lower.endswith(ending)), "")


def check_file(path: str) -> int:
    """Size of a readable file whose first bytes agree with the compression that its name claims.

    Raises:
        DataError: missing, unreadable, or named like a compressed file without being one.
    """
    size = file_size(path)
    ending = compression(path)
    if ending == ".zst" and find_spec("zstandard") is None:
        raise DataError(f"Reading {path} needs the package `zstandard`: `pip install zstandard`.")
    if ending and size:
        with open(path, "rb") as file:
            head = file.read(6)
        skippable = ending == ".zst" and head[1:4] == _SKIPPABLE
        if not head.startswith(_MAGIC[ending][: len(head)]) and not skippable:
            raise DataError(
                f"{path} ends in {ending} but does not hold {ending[1:]} data. "
                "Rename it after what it holds, or fetch it again."
            )
    return size


class _GzipMember:
    """``zlib`` with the interface of ``lzma.LZMADecompressor``: bounded output, ``needs_input``."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        # A full answer may hide more inside zlib's window even when no input is left over.
        self.needs_input = not self._inner.unconsumed_tail and len(out) < max_length
        return out


class _ZstdFrame:
    """One zstandard frame, with the same interface."""

    def __init__(self) -> None:
        import zstandard

        self._inner = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inner.unused_data)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return bytes(self._inner.decompress(data))


def _decoder(ending: str) -> Callable[[], Any]:
    if ending == ".gz":
        return _GzipMember
    if ending == ".zst":
        return _ZstdFrame
    if ending == ".bz2":
        import bz2

        return bz2.BZ2Decompressor
    import lzma

    return lzma.LZMADecompressor


class Decompressed(io.RawIOBase):
    """The content of a compressed file (any number of members or frames), as a raw stream.

    What was readable is delivered; then ``damage`` says why the stream ended early: ``truncated_file``
    (it stops in the middle), ``damaged_file`` (it cannot be decoded further), or ``""`` (it was sound).

    Args:
        start, stop: which bytes of the (compressed) file are read; ``start`` is the beginning of a member.
        resume: after damage the stream goes on at the next member of which this is true (given its first
            decompressed bytes). ``damages`` lists all damage met.
    """

    def __init__(
        self,
        path: str,
        start: int = 0,
        stop: int | None = None,
        resume: Callable[[bytes], bool] | None = None,
    ) -> None:
        self._ending = compression(path)
        self._file = open(path, "rb")  # noqa: SIM115 (closed by close)
        self._stop = self._file.seek(0, 2) if stop is None else stop
        self._resume = resume
        self.damages: list[str] = []
        self._chunks = self._resuming(start)
        self._left = memoryview(b"")

    @property
    def damage(self) -> str:
        return self.damages[-1] if self.damages else ""

    def _bite(self) -> bytes:
        return self._file.read(max(0, min(_BITE[self._ending], self._stop - self._file.tell())))

    def _resuming(self, start: int) -> Iterator[bytes]:
        at: int | None = start
        while at is not None:
            self._file.seek(at)
            self._member = at
            met = len(self.damages)
            yield from self._decode()
            if len(self.damages) == met or self._resume is None:
                return
            at = next_member(self._file, self._ending, self._member + 1, self._stop, self._resume)
            yield _SEAM

    def _decode(self) -> Iterator[bytes]:
        errors = _errors(self._ending)
        decoder, new = _decoder(self._ending)(), _decoder(self._ending)
        data = b""
        while True:
            if decoder.needs_input:
                data = data or self._bite()
                if not data:
                    break
            try:
                out = decoder.decompress(data, _OUTPUT)
            except errors:
                self.damages.append("damaged_file")
                return
            data = b""
            if out:
                yield out
            if decoder.eof:
                # Zero bytes after the last member are padding (tar, xz and some tape writers leave them).
                data = (decoder.unused_data or self._bite()).lstrip(b"\0")
                while not data:
                    more = self._bite()
                    if not more:
                        return
                    data = more.lstrip(b"\0")
                self._member = self._file.tell() - len(data)
                decoder = new()
        self.damages.append("truncated_file")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        n = min(len(buffer), len(self._left))
        buffer[:n] = self._left[:n]
        self._left = self._left[n:]
        return n

    def close(self) -> None:
        self._file.close()
        super().close()


def _errors(ending: str) -> tuple[type[Exception], ...]:
    """What the decoder of ``ending`` raises on damage."""
    if ending == ".zst":
        import zstandard

        return (zstandard.ZstdError,)
    if ending == ".xz":
        from lzma import LZMAError

        return (LZMAError, EOFError)
    return (OSError, ValueError, EOFError) if ending == ".bz2" else (zlib.error,)


def next_member(file: BinaryIO, ending: str, at: int, stop: int, begins: Callable[[bytes], bool]) -> int | None:
    """Offset in ``[at, stop)`` of the next member whose decompressed content ``begins`` as it should; or None.

    The magic bytes of a member may also stand inside of compressed data; the content tells them apart.
    """
    overlap = 9
    while at < stop:
        file.seek(at)
        window = file.read(min(_OUTPUT, stop - at) + overlap)
        for match in _MEMBER[ending].finditer(window):
            where = at + match.start()
            if where < stop and begins(_head(file, ending, where)):
                return where
        at += _OUTPUT
    return None


def _head(file: BinaryIO, ending: str, at: int) -> bytes:
    """The first bytes of the content of what may be a member."""
    file.seek(at)
    decoder, out = _decoder(ending)(), b""
    try:
        # A block of bzip2 is decoded as a whole: it has up to 900 kB, and compressed hardly more.
        for _ in range(32):
            data = file.read(_BITE[ending])
            if not data or decoder.eof or len(out) >= 64:
                break
            out += decoder.decompress(data, 1 << 10)
    except _errors(ending):
        return b""
    return out


def cut_at_members(path: str, size: int, block_bytes: int, begins: Callable[[bytes], bool]) -> list[tuple[int, int]]:
    """Ranges of about ``block_bytes`` compressed bytes that cover a file and start at a member that ``begins`` so."""
    cuts, step = [0], max(1, block_bytes)
    with open(path, "rb") as file:
        while cuts[-1] + step < size:
            cut = next_member(file, compression(path), cuts[-1] + step, size, begins)
            if cut is None:
                break
            cuts.append(cut)
    return [(a, b) for a, b in zip(cuts, [*cuts[1:], size], strict=True) if a < b]


class Lines:
    """The lines of one file from byte ``start`` on, with their offsets in the content decompressed from there.

    Iterating yields ``(offset, line)``; the line has its newline cut off, and is ``None`` when it was longer
    than :data:`MAX_LINE`. After the last one ``damage`` holds ``Decompressed.damage``. An incomplete last
    line of a damaged file is yielded too, with ``complete`` false. ``resume`` and ``damages``: see
    :class:`Decompressed`.
    """

    def __init__(
        self,
        path: str,
        start: int = 0,
        stop: int | None = None,
        resume: Callable[[bytes], bool] | None = None,
    ) -> None:
        self._path = path
        self._start = start
        self._stop = stop
        self._resume = resume
        self.damages: list[str] = []
        self.complete = True

    @property
    def damage(self) -> str:
        return self.damages[-1] if self.damages else ""

    def __iter__(self) -> Iterator[tuple[int, bytes | None]]:
        if compression(self._path):
            raw = Decompressed(self._path, self._start, self._stop, self._resume)
            self.damages = raw.damages
            with io.BufferedReader(raw, 1 << 18) as stream:
                yield from self._lines(stream, 0, None)
        else:
            with open(self._path, "rb", buffering=1 << 18) as file:
                file.seek(self._start)
                yield from self._lines(file, self._start, self._stop)

    def _lines(
        self, stream: BinaryIO | io.BufferedReader, offset: int, stop: int | None
    ) -> Iterator[tuple[int, bytes | None]]:
        while stop is None or offset < stop:
            line = stream.readline(MAX_LINE + 1)
            if not line:
                return
            length = len(line)
            if line.endswith(b"\n"):
                yield offset, line[:-1]
            elif length <= MAX_LINE:
                self.complete = not self.damages
                yield offset, line
            else:
                del line
                while more := stream.readline(1 << 20):
                    length += len(more)
                    if more.endswith(b"\n"):
                        break
                yield offset, None
            offset += length


def cut_at_lines(path: str, size: int, block_bytes: int, after: Callable[[BinaryIO], int]) -> list[tuple[int, int]]:
    """Byte ranges of about ``block_bytes`` that cover a plain file and start at a record.

    Args:
        after: given the open file somewhere in a line, the offset of the next record's start (or the end).
    """
    step = max(1, block_bytes)
    cuts = [0]
    with open(path, "rb") as file:
        while cuts[-1] + step < size:
            # One byte back, so that a record which starts exactly there is found and not skipped.
            file.seek(cuts[-1] + step - 1)
            cut = after(file)
            if cut >= size:
                break
            cuts.append(cut)
    return [(a, b) for a, b in zip(cuts, [*cuts[1:], size], strict=True) if a < b]


def next_line(file: BinaryIO) -> int:
    """Offset of the first line start after the position of ``file``."""
    while (piece := file.readline(1 << 20)) and not piece.endswith(b"\n"):
        pass
    return file.tell()

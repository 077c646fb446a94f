"""Bytes of plain and compressed files, line by line, in bounded memory."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, BinaryIO

from configs.errors import DataError
from data_prep.readers.base import file_size

MAX_LINE = 64 << 20
"""Bytes; longer lines are dropped (and counted) without being held."""
BOM = b"\xef\xbb\xbf"

# Compressed bytes fed at a time. zlib and lzma bound their output themselves; zstandard's streaming object
# does not, and 128 KiB of one repeated byte take 4 bytes: small bites keep a hostile file bounded.
_BITE = {".gz": 1 << 16, ".xz": 1 << 16, ".zst": 1 << 12}
_OUTPUT = 1 << 20
_MAGIC = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ\x00", ".zst": b"\x28\xb5\x2f\xfd"}
_SKIPPABLE = b"\x2a\x4d\x18"  # bytes 1..3 of a zstd skippable frame (pzstd, zstd --patch write them)


def compression(path: str) -> str:
    """``.gz``, ``.xz``, ``.zst`` or the empty string, by the ending of ``path``."""
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
    import lzma

    return lzma.LZMADecompressor


class Decompressed(io.RawIOBase):
    """The content of a compressed file (any number of members or frames), as a raw stream.

    What was readable is delivered; then ``damage`` says why the stream ended early: ``truncated_file``
    (it stops in the middle), ``damaged_file`` (it cannot be decoded further), or ``""`` (it was sound).
    """

    def __init__(self, path: str) -> None:
        ending = compression(path)
        self._file = open(path, "rb")  # noqa: SIM115 (closed by close)
        self._bite = _BITE[ending]
        self._new = _decoder(ending)
        self.damage = ""
        self._chunks = self._decode()
        self._left = memoryview(b"")

    def _decode(self) -> Iterator[bytes]:
        from lzma import LZMAError

        errors: tuple[type[Exception], ...] = (zlib.error, LZMAError, EOFError)
        if self._bite == _BITE[".zst"]:
            import zstandard

            errors = (*errors, zstandard.ZstdError)
        decoder = self._new()
        data = b""
        while True:
            if decoder.needs_input:
                data = data or self._file.read(self._bite)
                if not data:
                    break
            try:
                out = decoder.decompress(data, _OUTPUT)
            except errors:
                self.damage = "damaged_file"
                return
            data = b""
            if out:
                yield out
            if decoder.eof:
                # Zero bytes after the last member are padding (tar, xz and some tape writers leave them).
                data = (decoder.unused_data or self._file.read(self._bite)).lstrip(b"\0")
                while not data:
                    more = self._file.read(self._bite)
                    if not more:
                        return
                    data = more.lstrip(b"\0")
                decoder = self._new()
        self.damage = "truncated_file"

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


class Lines:
    """The lines of one file from byte ``start`` on, with their offsets in the decompressed content.

    Iterating yields ``(offset, line)``; the line has its newline cut off, and is ``None`` when it was longer
    than :data:`MAX_LINE`. After the last one ``damage`` holds ``Decompressed.damage``. An incomplete last
    line of a damaged file is yielded too, with ``complete`` false.
    """

    def __init__(self, path: str, start: int = 0, stop: int | None = None) -> None:
        self._path = path
        self._start = start
        self._stop = stop
        self.damage = ""
        self.complete = True

    def __iter__(self) -> Iterator[tuple[int, bytes | None]]:
        if compression(self._path):
            raw = Decompressed(self._path)
            with io.BufferedReader(raw, 1 << 18) as stream:
                yield from self._lines(stream, 0, lambda: raw.damage)
            self.damage = raw.damage
        else:
            with open(self._path, "rb", buffering=1 << 18) as file:
                file.seek(self._start)
                yield from self._lines(file, self._start, lambda: "")

    def _lines(
        self, stream: BinaryIO | io.BufferedReader, offset: int, damage: Callable[[], str]
    ) -> Iterator[tuple[int, bytes | None]]:
        stop = self._stop
        while stop is None or offset < stop:
            line = stream.readline(MAX_LINE + 1)
            if not line:
                return
            length = len(line)
            if line.endswith(b"\n"):
                yield offset, line[:-1]
            elif length <= MAX_LINE:
                self.complete = not damage()
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

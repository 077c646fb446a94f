"""The on-disk format of a shard: write, verify, map. The layout stands in docs/architecture.md.

A shard folder is built aside, each file is synced, its manifest is written last, and the folder is renamed into
place: under its final name a shard is whole, or its sizes and hashes tell that it is not. All numbers are
little-endian. ``tokens.bin`` and ``tokens.idx`` are a Megatron indexed data set.
"""

from __future__ import annotations

import errno
import json
import mmap
import resource
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from configs.errors import DataError, output_error
from data_prep.atomic import aside_of, begin_sync, put_into_place, sync, write_json

MAGIC = b"MMIDIDX\x00\x00"
# Megatron has no uint32; ids stay below 2**31, so its int32 is the same bytes.
MEGATRON_CODES = {"uint16": 8, "uint32": 4}
FORMAT = 1
SPLITS = ("train", "held_out")
_POINTERS = 1 << 20
"""Of an index, written at a time."""
CHECKED_BYTES = 4 << 20
"""Bytes of a block with a checksum of its own."""


# ---------------------------------------------------------------- writing


class ShardWriter:
    """Writes one shard folder; use as a context manager, :meth:`finish` puts it into place.

    Raises:
        OutputError: when the disk is full or the folder cannot be written; nothing stays behind.
    """

    def __init__(self, final: Path, dtype: np.dtype[Any]) -> None:
        self.final = final
        self.dtype = dtype
        self.aside = aside_of(final)
        try:
            self.splits = {name: SplitWriter(self.aside / name, dtype) for name in SPLITS}
        except OSError as error:
            raise output_error(final, error) from error

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        for split in self.splits.values():
            split.abandon()
        shutil.rmtree(self.aside, ignore_errors=True)
        if isinstance(error, OSError):
            raise output_error(self.final, error) from error

    def finish(self, facts: dict[str, Any]) -> None:
        """Write the manifest (``facts``, and size and hash of each file) and rename the folder into place."""
        seal(self.aside, self.final, facts)


def seal(aside: Path, final: Path, facts: dict[str, Any]) -> None:
    """Sync the files in ``aside``, write its manifest (``facts``, size and hash of each); it becomes ``final``."""
    files, paths = {}, sorted(p for p in aside.rglob("*") if p.is_file())
    for path in paths:
        begin_sync(path)
    for path in paths:
        sync(path)
        files[str(path.relative_to(aside))] = file_facts(path)
    write_manifest(aside, {**facts, "files": files})
    for folder in sorted({p.parent for p in aside.rglob("*")}):
        sync(folder)
    put_into_place(aside, final, is_sound)


@contextmanager
def sealed_folder(final: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder to be filled aside, and its facts; it is sealed and put into place when the block ends well.

    Raises:
        OutputError: the disk is full or the folder cannot be written; nothing stays behind.
    """
    aside = aside_of(final)
    facts: dict[str, Any] = {}
    try:
        aside.mkdir(parents=True)
        yield aside, facts
        seal(aside, final, facts)
    except OSError as error:
        raise output_error(final, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@dataclass
class SplitWriter:
    """Tokens of one split, appended by batches; memory is bounded by the sentence index."""

    folder: Path
    dtype: np.dtype[Any]

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self._tokens: BinaryIO = (self.folder / "tokens.bin").open("wb")
        self._words: BinaryIO = (self.folder / "words.bits").open("wb")
        self._bits = np.zeros(0, np.bool_)
        self._lengths = [np.zeros(0, "<i4")]
        self._documents = [np.zeros(1, "<i8")]

    def add(
        self,
        ids: NDArray[np.integer],
        continues: NDArray[np.bool_],
        lengths: NDArray[np.integer],
        documents: NDArray[np.integer],
    ) -> None:
        """Append documents.

        Args:
            ids, continues: [T], tokens and their continuation bits.
            lengths: [s], tokens of each sentence; none is 0.
            documents: [d], sentences of each document; none is 0.
        """
        if not len(documents):
            return
        self._tokens.write(np.ascontiguousarray(ids, self.dtype.newbyteorder("<")).data)
        bits = np.concatenate([self._bits, continues])
        whole = len(bits) // 8 * 8  # bits are packed by eights; the rest waits for the next documents
        self._words.write(np.packbits(bits[:whole], bitorder="little").data)
        self._bits = bits[whole:]
        self._lengths.append(lengths.astype("<i4"))
        self._documents.append((self._documents[-1][-1] + np.cumsum(documents)).astype("<i8"))

    def close(self) -> None:
        """Flush the tokens and write the index; harmless when called again."""
        if self._tokens.closed:
            return
        self._words.write(np.packbits(self._bits, bitorder="little").data)
        self._tokens.close()
        self._words.close()
        if self.folder.exists():
            lengths, documents = np.concatenate(self._lengths), np.concatenate(self._documents)
            write_index(self.folder / "tokens.idx", self.dtype, lengths, documents)
            for name in ("tokens.bin", "words.bits", "tokens.idx"):  # while views and masks are made
                begin_sync(self.folder / name)

    def abandon(self) -> None:
        """Close the files whatever is in them: on a full disk, what is still buffered cannot be written either."""
        for file in (self._tokens, self._words):
            with suppress(OSError):
                file.close()


def write_index(path: Path, dtype: np.dtype[Any], lengths: NDArray[np.integer], documents: NDArray[np.integer]) -> None:
    """A Megatron ``.idx``: sentence lengths, their byte positions, and where documents begin."""
    with path.open("wb") as file:
        file.write(MAGIC)
        file.write(struct.pack("<QBQQ", 1, MEGATRON_CODES[dtype.name], len(lengths), len(documents)))
        file.write(np.ascontiguousarray(lengths, "<i4").data)
        position = 0
        for begin in range(0, len(lengths), _POINTERS):
            ends = position + np.cumsum(lengths[begin : begin + _POINTERS], dtype="<i8") * dtype.itemsize
            file.write(np.concatenate([np.array([position], "<i8"), ends[:-1]]).data)
            position = int(ends[-1])
        file.write(np.ascontiguousarray(documents, "<i8").data)


def write_array(path: Path, array: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).tobytes())


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON file that may be missing or broken: {} then."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_manifest(folder: Path, content: dict[str, Any], name: str = "manifest.json") -> None:
    """Write ``folder/manifest.json`` with the format version and a checksum of itself."""
    content = {"format": FORMAT, **content}
    write_json(folder / name, {**content, "checksum": checksum(content)})


def checksum(content: dict[str, Any]) -> str:
    """xxh3-128 of JSON values, whatever the order of the keys."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def file_hash(path: Path) -> str:
    """xxh3-128 of a file, hexadecimal."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def file_facts(path: Path) -> dict[str, Any]:
    """Size, xxh3-128 of the whole file, and xxh3-64 of each of its blocks of :data:`CHECKED_BYTES`."""
    digest, blocks, size = xxhash.xxh3_128(), [], 0
    with path.open("rb") as file:
        while block := file.read(CHECKED_BYTES):
            digest.update(block)
            blocks.append(xxhash.xxh3_64_hexdigest(block))
            size += len(block)
    return {"bytes": size, "xxh3": digest.hexdigest(), "block_bytes": CHECKED_BYTES, "blocks": blocks}


# ---------------------------------------------------------------- reading


def read_manifest(folder: Path, name: str = "manifest.json") -> dict[str, Any]:
    """The manifest of a shard or corpus, or another file that was sealed like one.

    Raises:
        DataError: when it is missing, damaged, or of another format version.
    """
    path = folder / name
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
    except FileNotFoundError:
        raise DataError(
            f"{folder} holds no prepared data (there is no {path.name}). Run `distill prep` first, or name the right "
            "folder in data.folder."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}). Delete {folder} and run `distill prep` again.") from None
    if version != FORMAT:
        raise DataError(f"{path} has format {version}, this version reads {FORMAT}. Run `distill prep` again.")
    stated = manifest.pop("checksum", None)
    if stated is not None and stated != checksum(manifest):
        raise DataError(f"{path} is damaged (its checksum differs). Delete {folder} and run `distill prep` again.")
    return manifest


def shard_trouble(folder: Path, thorough: bool) -> list[str]:
    """Sentences on missing, short or (``thorough``: re-hashed) changed files of a shard; [] when it is sound."""
    try:
        files = read_manifest(folder).get("files", {})
    except DataError as error:
        return [str(error)]
    troubles = []
    for name, facts in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            troubles.append(f"{path} is missing.")
        elif size != facts["bytes"]:
            troubles.append(f"{path} has {size} bytes instead of {facts['bytes']}.")
        elif thorough and file_hash(path) != facts["xxh3"]:
            troubles.append(f"{path} does not have the content it was written with (its hash differs).")
    return troubles


def is_sound(folder: Path) -> bool:
    """Whether the shard is whole by its manifest and the sizes of its files."""
    return not shard_trouble(folder, thorough=False)


def map_array(path: Path, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """A read-only map of a whole file.

    Raises:
        DataError: unless the file holds exactly ``shape`` items (a shorter file would end the process by SIGBUS).
    """
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        actual = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Run `distill prep` again.") from None
    if actual != expected:
        raise DataError(f"{path} has {actual} bytes instead of {expected}. Run `distill data verify`.")
    if expected == 0:
        return np.zeros(shape, dtype)
    try:
        return np.memmap(path, dtype=dtype, mode="r", shape=shape)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise DataError(f"{path} cannot be mapped: {error.strerror}.") from None
        raise DataError(
            f"{path} cannot be mapped: this process may open only {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} "
            "files. Raise the limit (`ulimit -n`), or prepare with a larger data.block_megabytes."
        ) from None


def forget(array: NDArray[Any]) -> None:
    """Give back the memory of a map; what is touched again is read again, most often from the system's own memory."""
    held = getattr(array, "_mmap", None)
    if held is not None and hasattr(mmap, "MADV_DONTNEED"):
        held.madvise(mmap.MADV_DONTNEED)


def allow_open_files(count: int) -> None:
    """Let this process hold ``count`` maps beside its other files, as far as it may: each keeps a file open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@dataclass(frozen=True)
class Index:
    """``lengths``: int32 [sentences]; ``documents``: int64 [documents + 1], in sentences."""

    lengths: NDArray[np.int32]
    documents: NDArray[np.int64]


def read_index(path: Path) -> Index:
    """A Megatron ``.idx``."""
    head = struct.calcsize("<QBQQ")
    with path.open("rb") as file:
        data = file.read(len(MAGIC) + head)
        if data[: len(MAGIC)] != MAGIC:
            raise DataError(f"{path} is not a token index. Run `distill data verify`.")
        if len(data) < len(MAGIC) + head:
            raise DataError(f"{path} is cut short. Run `distill data verify`.")
        _, _, n, d = struct.unpack("<QBQQ", data[len(MAGIC) :])
        if path.stat().st_size != len(data) + 12 * n + 8 * d:
            raise DataError(f"{path} is cut short. Run `distill data verify`.")
        lengths = np.fromfile(file, "<i4", n)
        file.seek(8 * n, 1)  # the positions follow from the lengths
        documents = np.fromfile(file, "<i8", d)
    for array in (lengths, documents):
        array.setflags(write=False)
    return Index(lengths, documents)

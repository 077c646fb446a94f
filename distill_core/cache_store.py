"""A teacher's outputs of one mask view on disk: written block by block, mapped to be read.

Layout of one view, whose folder is named SPLIT-view-V-KEY by a hash of all that its content depends on:

    rows.bin        int64 [n + 1]: where the masked rows of each sequence begin in vectors.bin
    tokens.bin      int64 [n + 1]: where the tokens of each sequence begin in hidden-I.bin
    vectors.bin     [masked rows, width of the decoder], bfloat16 or float32: what the decoder is multiplied with
    hidden-I.bin    [tokens, hidden size], the same type: hidden state I
    blocks/         one small file a block that is written, while others are not: the hashes of its stretches
    manifest.json   written last: facts, sizes, the hashes of all blocks, a checksum of itself

A block is a run of sequences, cut without looking at ranks or shards. Ranks write the stretches of their blocks into
the same files, so all of them must see one file system, as for checkpoints. All numbers are little-endian.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from configs.errors import DataError, output_error
from data_prep.atomic import sync, write_json
from data_prep.corpus import Split, offsets_of, spread
from data_prep.shards import checksum, file_hash
from distill_core.batch import Stored

FORMAT = 1
BLOCK_SEQUENCES = 128
"""At least so many sequences are a block; more when there would be more than MOST_BLOCKS."""
MOST_BLOCKS = 4096

Precision = Literal["bf16", "fp32"]
NUMPY: dict[str, np.dtype[Any]] = {"bf16": np.dtype("<i2"), "fp32": np.dtype("<f4")}
"""numpy has no bfloat16: its bits travel as integers."""
TORCH = {"bf16": torch.bfloat16, "fp32": torch.float32}

Ints = NDArray[np.int64]
Hashes = dict[str, str]
"""File name -> xxh3-128 of a block's stretch of it."""


@dataclass(frozen=True)
class Contents:
    """What is kept of a teacher.

    ``vectors``: width of the vectors that its decoder takes, None: they are not kept; ``hidden``: which hidden states,
    each ``width`` wide; ``precision``: of the numbers.
    """

    vectors: int | None
    hidden: tuple[int, ...]
    width: int
    precision: Precision

    def __bool__(self) -> bool:
        return self.vectors is not None or bool(self.hidden)

    @property
    def widths(self) -> dict[str, int]:
        """File name -> numbers a row."""
        vectors = {} if self.vectors is None else {"vectors.bin": self.vectors}
        return vectors | {hidden_file(i): self.width for i in self.hidden}


def hidden_file(layer: int) -> str:
    return f"hidden-{layer}.bin"


def to_numpy(values: Tensor, precision: Precision) -> NDArray[Any]:
    """A tensor as it is kept."""
    values = values.to(TORCH[precision]).cpu()
    return (values.view(torch.int16) if precision == "bf16" else values).numpy()


def to_tensor(values: NDArray[Any], precision: Precision) -> Tensor:
    found = torch.from_numpy(values)
    return found.view(torch.bfloat16) if precision == "bf16" else found


class ViewStore:
    """One mask view of one split. ``facts``: all that the content depends on beside split, view and contents."""

    def __init__(self, root: Path, split: Split, view: int, contents: Contents, facts: dict[str, Any]) -> None:
        self.split, self.view, self.contents = split, view, contents
        kept: dict[str, Any] = {"precision": contents.precision, "files": contents.widths}
        self.facts = {"format": FORMAT, "split": split.name, "view": view, **facts, **kept}
        self.folder = root / f"{split.name}-view-{view}-{checksum(self.facts)[:16]}"
        self.dtype = NUMPY[contents.precision]
        n = len(split)
        self.block_size = max(BLOCK_SEQUENCES, -(-n // MOST_BLOCKS))
        self.blocks = -(-n // self.block_size)

    # ------------------------------------------------------------ where things lie

    @functools.cached_property
    def rows(self) -> Ints:
        return self._mapped("rows.bin", np.dtype("<i8"), (len(self.split) + 1,))

    @functools.cached_property
    def tokens(self) -> Ints:
        return self._mapped("tokens.bin", np.dtype("<i8"), (len(self.split) + 1,))

    def offsets(self, name: str) -> Ints:
        """int64 [n + 1]: where each sequence begins in the file ``name``."""
        return self.rows if name == "vectors.bin" else self.tokens

    def shape(self, name: str) -> tuple[int, int]:
        return int(self.offsets(name)[-1]), self.contents.widths[name]

    def sequences(self, block: int) -> tuple[int, int]:
        """The first sequence of a block, and the one behind its last."""
        return block * self.block_size, min(len(self.split), (block + 1) * self.block_size)

    def _size(self, name: str) -> int:
        return int(np.prod(self.shape(name))) * self.dtype.itemsize

    def stretch(self, name: str, block: int) -> tuple[int, int]:
        """The rows of a block in the file ``name``: the first, and the one behind the last."""
        first, last = self.sequences(block)
        offsets = self.offsets(name)
        return int(offsets[first]), int(offsets[last])

    def bytes_of(self, blocks: Sequence[int]) -> int:
        """Of the stretches of ``blocks`` in all files."""
        total = 0
        for name, width in self.contents.widths.items():
            rows = sum(last - first for first, last in (self.stretch(name, block) for block in blocks))
            total += rows * width * self.dtype.itemsize
        return total

    # ------------------------------------------------------------ writing

    def begin(self) -> None:
        """Create folder, index files and files of the full size (sparse), where they are not there. On one rank.

        Raises:
            OutputError: the folder cannot be written.
        """
        try:
            (self.folder / "blocks").mkdir(parents=True, exist_ok=True)
            if self.manifest is None:
                self._write_index()
                for name in self.contents.widths:
                    self._allocate(name)
        except OSError as error:
            raise output_error(self.folder, error) from error

    def _allocate(self, name: str) -> None:
        path, size = self.folder / name, self._size(name)
        if path.is_file() and path.stat().st_size == size:
            return
        for note in (self.folder / "blocks").glob("*.json"):  # they speak of another file
            note.unlink()
        with path.open("wb") as file:
            file.truncate(size)

    def _write_index(self) -> None:
        rows, lengths = [], []
        for block in range(self.blocks):
            index = np.arange(*self.sequences(block), dtype=np.int64)
            rows.append(np.diff(self.split.masks(index, np.full(len(index), self.view)).offsets))
            lengths.append(self.split.lengths(index))
        for name, counts in (("rows.bin", rows), ("tokens.bin", lengths)):
            path = self.folder / name
            aside = path.with_suffix(".tmp")
            aside.write_bytes(offsets_of(np.concatenate([*counts, np.zeros(0, np.int64)])).astype("<i8").tobytes())
            sync(aside)
            os.replace(aside, path)

    def write(self, block: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Put a block's stretches into the files, then note that they are there.

        Raises:
            OutputError: the disk is full, or cannot be written.
        """
        hashes = {}
        try:
            for name, values in arrays.items():
                data, (first, _) = values.tobytes(), self.stretch(name, block)
                handle = os.open(self.folder / name, os.O_WRONLY)
                try:
                    _write_at(handle, memoryview(data), first * values.shape[1] * values.itemsize)
                    os.fsync(handle)
                finally:
                    os.close(handle)
                hashes[name] = xxhash.xxh3_128_hexdigest(data)
            write_json(self._note(block), hashes)
        except OSError as error:
            raise output_error(self.folder, error) from error

    def finish(self) -> None:
        """Fold the notes into the manifest. On one rank, when no block is missing; harmless when called again."""
        notes = list((self.folder / "blocks").glob("*.json"))
        if notes or self.manifest is None:
            hashes = self.hashes()
            index = {name: file_hash(self.folder / name) for name in ("rows.bin", "tokens.bin")}
            blocks = [hashes[block] for block in range(self.blocks)]
            content = {"facts": self.facts, "index": index, "blocks": blocks}
            try:
                write_json(self.folder / "manifest.json", {**content, "checksum": checksum(content)})
            except OSError as error:
                raise output_error(self.folder, error) from error
        shutil.rmtree(self.folder / "blocks", ignore_errors=True)

    def _note(self, block: int) -> Path:
        return self.folder / "blocks" / f"{block:06d}.json"

    # ------------------------------------------------------------ checking

    @property
    def manifest(self) -> dict[str, Any] | None:
        """None while blocks are missing.

        Raises:
            DataError: it or an index file beside it is damaged, or another file is missing or cut short.
        """
        path = self.folder / "manifest.json"
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            sound = manifest.pop("checksum") == checksum(manifest) and manifest["facts"] == self.facts
            sound = sound and all(file_hash(self.folder / name) == known for name, known in manifest["index"].items())
            sound = sound and all(
                (self.folder / name).stat().st_size == self._size(name) for name in self.facts["files"]
            )
        except FileNotFoundError:
            if not path.exists():
                return None
            sound = False
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            sound = False
        if not sound:
            raise DataError(
                f"The teacher-output cache {self.folder} is damaged (its manifest, an index file or the size of a file "
                "is not what was written). Delete that folder and start again: it is computed anew."
            )
        return manifest

    def hashes(self) -> dict[int, Hashes]:
        """Of the blocks that are written, by number."""
        manifest = self.manifest
        found: dict[int, Hashes] = {} if manifest is None else dict(enumerate(manifest["blocks"]))
        for path in (self.folder / "blocks").glob("*.json"):
            try:
                found[int(path.stem)] = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:  # not a note of ours: the block counts as missing
                continue
        return found

    def sound(self, block: int, hashes: Hashes) -> bool:
        """Whether a block's stretches have the content that they were written with."""
        return hashes.keys() == self.contents.widths.keys() and all(
            self._hash(name, block) == hashes[name] for name in self.contents.widths
        )

    def _hash(self, name: str, block: int) -> str:
        first, last = self.stretch(name, block)
        row = self.contents.widths[name] * self.dtype.itemsize
        digest, left = xxhash.xxh3_128(), (last - first) * row
        with (self.folder / name).open("rb") as file:
            file.seek(first * row)
            while left > 0 and (part := file.read(min(left, 1 << 22))):
                digest.update(part)
                left -= len(part)
        return digest.hexdigest()

    # ------------------------------------------------------------ reading

    @functools.cached_property
    def maps(self) -> dict[str, NDArray[Any]]:
        return {name: self._mapped(name, self.dtype, self.shape(name)) for name in self.contents.widths}

    def _mapped(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """A read-only map; a file of another size would end the process by a bus error, so it is looked at first."""
        path, size = self.folder / name, int(np.prod(shape)) * dtype.itemsize
        if not path.is_file() or path.stat().st_size != size:
            raise DataError(f"{path} is missing or has not its {size} bytes. Start again: it is computed anew.")
        return np.memmap(path, dtype, "r", shape=shape) if size else np.zeros(shape, dtype)


def _write_at(handle: int, values: memoryview, at: int) -> None:
    while len(values):
        written = os.pwrite(handle, values[: 1 << 30], at)
        values, at = values[written:], at + written


@dataclass(frozen=True)
class StoredViews:
    """The complete views of one teacher and split; epoch e is view e mod ``distinct``."""

    views: tuple[ViewStore, ...]
    distinct: int

    def read(self, index: Ints, epochs: Ints) -> Stored:
        """What the teacher gave for the sequences ``index`` in their order, each under its epoch's view."""
        if not self.views:
            return Stored()
        contents, numbers = self.views[0].contents, epochs % self.distinct
        found = {name: to_tensor(self._gather(name, index, numbers), contents.precision) for name in contents.widths}
        return Stored(found.get("vectors.bin"), {i: found[hidden_file(i)] for i in contents.hidden})

    def _gather(self, name: str, index: Ints, numbers: Ints) -> NDArray[Any]:
        parts = list(self._stretches(name, index, numbers))
        counts = np.zeros(len(index), np.int64)
        for _, places, first, last in parts:
            counts[places] = last - first
        offsets = offsets_of(counts)
        store = self.views[0]
        out = np.empty((int(offsets[-1]), store.contents.widths[name]), store.dtype)
        for view, places, first, last in parts:
            out[spread(offsets[places], last - first)] = view.maps[name][spread(first, last - first)]
        return out

    def _stretches(self, name: str, index: Ints, numbers: Ints) -> Iterator[tuple[ViewStore, Ints, Ints, Ints]]:
        """For each view: it, the places in ``index`` that want it, and their rows' beginnings and ends."""
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            view = self.views[int(number)]
            offsets = view.offsets(name)
            yield view, places, offsets[index[places]], offsets[index[places] + 1]

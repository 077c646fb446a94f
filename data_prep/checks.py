"""Checksums of prepared files, block by block, held against what is mapped when a block is first read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numba import njit
from numpy.typing import NDArray

from configs.errors import DataError
from data_prep.mapped import BITS, FIRSTS, OFFSETS, ORDER, PIECES, TOKENS, bare_shards, i64

Ints = NDArray[np.int64]
INDEX, PARTS, CONTENT = range(3)
"""What is read of sequences, one after another: where their pieces stand, the pieces, the tokens."""
_WHOLE = 62


@dataclass(frozen=True)
class Checked:
    """A mapped file and what its manifest says of it: ``blocks``, the checksums of its blocks of ``block_bytes``
    (a power of two), or (prepared by an older version) ``xxh3``, one of the whole file."""

    path: Path
    array: NDArray[Any]
    facts: dict[str, Any]

    @property
    def sums(self) -> list[str]:
        """One for each block.

        Raises:
            DataError: there are more or fewer of them than blocks.
        """
        sums = list(self.facts["blocks"]) if "blocks" in self.facts else [self.facts["xxh3"]]
        if not self.array.nbytes:
            return []
        if len(sums) != ((self.array.nbytes - 1) >> self.shift) + 1:
            raise DataError(f"The manifest beside {self.path} does not fit it. Run `distill data verify`.")
        return sums

    @property
    def shift(self) -> int:
        return int(self.facts["block_bytes"]).bit_length() - 1 if "blocks" in self.facts else _WHOLE

    def check(self, block: int) -> None:
        """Hold a block against its checksum.

        Raises:
            DataError: it is not what was written.
        """
        content: Any = self.array.reshape(-1).view(np.uint8)
        first, last = block << self.shift, min((block + 1) << self.shift, len(content))
        digest = xxhash.xxh3_64_hexdigest if "blocks" in self.facts else xxhash.xxh3_128_hexdigest
        if digest(content[first:last]) != self.sums[block]:
            raise DataError(
                f"{self.path} is damaged: block {block} (bytes {first} to {last}) does not have the content it was "
                "written with. `distill data verify` lists all damaged files; delete their shard folders and the "
                "manifest.json of the data folder and run `distill prep`, which makes these shards anew, or copy the "
                "file from where it is sound. Check the disk."
            )


class Blocks(NamedTuple):
    """For kernels: ``state``: uint8 [B], 1 for blocks known to be sound; ``starts``: int64 [S, F], the first block of
    each file; ``shifts``: int64 [S, F], log2 of the bytes of its blocks."""

    state: NDArray[np.uint8]
    starts: Ints
    shifts: Ints


class FirstTouch:
    """Which blocks of the files of S shards, F of each, are known to be sound."""

    def __init__(self, files: Sequence[Sequence[Checked | None]]) -> None:
        flat = [file for row in files for file in row]
        counts = np.array([0 if file is None else len(file.sums) for file in flat], np.int64)
        self._files = flat
        self._ends = np.cumsum(counts)
        shape = (len(files), len(files[0]) if files else 0)
        shifts = np.array([_WHOLE if file is None else file.shift for file in flat], np.int64)
        state = np.zeros(int(counts.sum()), np.uint8)
        self.blocks = Blocks(state, (self._ends - counts).reshape(shape), shifts.reshape(shape))
        self.left = len(state)
        """Blocks that nobody has read yet."""

    def check(self, numbers: Ints) -> None:
        """Check the blocks of these numbers.

        Raises:
            DataError: one of them is damaged.
        """
        for number in numbers.tolist():
            place = int(np.searchsorted(self._ends, number, side="right"))
            file = self._files[place]
            assert file is not None
            file.check(number - int(self.blocks.starts.flat[place]))
            self.blocks.state[number] = 1
        if len(numbers):
            self.left = len(self.blocks.state) - int(self.blocks.state.sum())


@njit(cache=True, nogil=True, inline="always")
def _want(wanted: Any, blocks: Any, s: Any, file: Any, begin: Any, end: Any) -> None:
    if end > begin:
        first, shift = blocks.starts[s, file], blocks.shifts[s, file]
        for b in range(begin >> shift, ((end - 1) >> shift) + 1):
            if wanted[first + b] == 0:
                wanted[first + b] = 2


@njit(cache=True, nogil=True, inline="always")
def _unknown(blocks: Any, s: Any, file: Any, begin: Any, end: Any) -> Any:
    first, shift, missing = blocks.starts[s, file], blocks.shifts[s, file], False
    for b in range(begin >> shift, ((end - 1) >> shift) + 1 if end > begin else 0):
        missing |= blocks.state[first + b] == 0
    return missing


@njit(cache=True, nogil=True)
def known(shards: Any, blocks: Any, content: Any, owner: Any, local: Any) -> Any:
    """Whether what is read of these sequences, their index and with ``content`` their tokens, lies in blocks that are
    known to be sound."""
    shards, blocks = bare_shards(shards), Blocks(blocks[0], blocks[1], blocks[2])
    size = 4 if shards.wide else 2
    for i in range(len(owner)):
        s, own = owner[i], local[i]
        missing = _unknown(blocks, s, OFFSETS, 8 * own, 8 * own + 16)
        if shards.pairs:
            missing |= _unknown(blocks, s, FIRSTS, 2 * own, 2 * own + 2) | _unknown(blocks, s, ORDER, own, own + 1)
        if missing:
            return False
        offsets = i64(shards.addresses[s, OFFSETS], own + 2)
        if _unknown(blocks, s, PIECES, 16 * offsets[own], 16 * offsets[own + 1]):
            return False
        pieces = i64(shards.addresses[s, PIECES], 2 * offsets[own + 1])
        for p in range(offsets[own], offsets[own + 1] if content else 0):
            start, end = pieces[2 * p], pieces[2 * p] + pieces[2 * p + 1]
            missing |= _unknown(blocks, s, TOKENS, size * start, size * end)
            missing |= _unknown(blocks, s, BITS, start >> 3, ((end - 1) >> 3) + 1)
        if missing:
            return False
    return True


@njit(cache=True, nogil=True)
def unread(shards: Any, blocks: Any, stage: Any, owner: Any, local: Any) -> Any:
    """int64, the numbers of the unchecked blocks that a ``stage`` of reading these sequences will touch."""
    shards, blocks = bare_shards(shards), Blocks(blocks[0], blocks[1], blocks[2])
    wanted = blocks.state.copy()
    size = 4 if shards.wide else 2
    for i in range(len(owner)):
        s, own = owner[i], local[i]
        if stage == INDEX:
            _want(wanted, blocks, s, OFFSETS, 8 * own, 8 * own + 16)
            if shards.pairs:
                _want(wanted, blocks, s, FIRSTS, 2 * own, 2 * own + 2)
                _want(wanted, blocks, s, ORDER, own, own + 1)
            continue
        offsets = i64(shards.addresses[s, OFFSETS], own + 2)
        if stage == PARTS:
            _want(wanted, blocks, s, PIECES, 16 * offsets[own], 16 * offsets[own + 1])
            continue
        pieces = i64(shards.addresses[s, PIECES], 2 * offsets[own + 1])
        for p in range(offsets[own], offsets[own + 1]):
            start, end = pieces[2 * p], pieces[2 * p] + pieces[2 * p + 1]
            _want(wanted, blocks, s, TOKENS, size * start, size * end)
            if end > start:
                _want(wanted, blocks, s, BITS, start >> 3, ((end - 1) >> 3) + 1)
    return np.flatnonzero(wanted == 2)


@njit(cache=True, nogil=True)
def unread_masks(addresses: Any, wide: Any, blocks: Any, stage: Any, owner: Any, local: Any) -> Any:
    """The same for one stored view (``addresses``: uint64 [S, 3]): its index (INDEX), then places and ids (CONTENT)."""
    blocks = Blocks(blocks[0], blocks[1], blocks[2])
    wanted = blocks.state.copy()
    size = 4 if wide else 2
    for i in range(len(owner)):
        s, own = owner[i], local[i]
        if stage == INDEX:
            _want(wanted, blocks, s, 0, 8 * own, 8 * own + 16)
            continue
        offsets = i64(addresses[s, 0], own + 2)
        _want(wanted, blocks, s, 1, 2 * offsets[own], 2 * offsets[own + 1])
        _want(wanted, blocks, s, 2, size * offsets[own], size * offsets[own + 1])
    return np.flatnonzero(wanted == 2)

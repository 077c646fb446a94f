"""Records too many for memory: sorted in runs on disk, merged while they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Records = tuple[NDArray[np.uint64], Ints]
"""Keys and the numbers of the documents that have them."""

_PAIRS = 1 << 15
_RECORD = 48
"""Bytes of memory for a record while its run is sorted."""


def pairs_of_equal_keys(records: Iterable[Records], scratch: Path, memory: int) -> Iterator[Ints]:
    """Candidates: each document that shares its key with earlier ones, with the first and with the latest of these.

    Args:
        records: in ascending order of the numbers, in pieces that are small beside ``memory``.
        scratch: a folder for the runs, which are removed at the end.
        memory: bytes that may be used.

    Yields:
        int64 [p, 2]: a number and an earlier one.
    """
    path = scratch / "runs.bin"
    ends = write_runs(records, path, max(1, memory // _RECORD))
    try:
        if ends[-1]:
            runs = np.memmap(path, np.uint64, "r", shape=(ends[-1], 2))
            at, stops = np.array(ends[:-1], np.int64), np.array(ends[1:], np.int64)
            state, more = np.full(2, -1, np.int64), True
            key = np.zeros(1, np.uint64)
            while more:
                out = np.empty((_PAIRS, 2), np.int64)
                count, more = _merge(runs, at, stops, key, state, out)
                yield out[:count]
            del runs
    finally:
        path.unlink(missing_ok=True)


def write_runs(records: Iterable[Records], path: Path, most: int) -> list[int]:
    """Write sorted runs of up to ``most`` records, uint64 [n, 2]; returns where each ends, with a 0 before."""
    ends = [0]
    with path.open("wb") as file:
        for keys, numbers in in_pieces(records, most):
            order = np.argsort(keys, kind="stable")
            run = np.empty((len(keys), 2), np.uint64)
            run[:, 0], run[:, 1] = keys[order], numbers[order]
            file.write(run.tobytes())
            ends.append(ends[-1] + len(keys))
    return ends


def in_pieces(records: Iterable[Records], most: int) -> Iterator[Records]:
    """The same records in pieces of exactly ``most``, but for the last."""
    held: list[Records] = []
    size = 0
    for more_keys, more_numbers in records:
        begin = 0
        while begin < len(more_keys):
            taken = min(most - size, len(more_keys) - begin)
            held.append((more_keys[begin : begin + taken], more_numbers[begin : begin + taken]))
            size, begin = size + taken, begin + taken
            if size == most:
                yield np.concatenate([k for k, _ in held]), np.concatenate([n for _, n in held])
                held, size = [], 0
    if held:
        yield np.concatenate([k for k, _ in held]), np.concatenate([n for _, n in held])


@njit(cache=True, nogil=True)
def _merge(runs: Any, at: Any, stops: Any, key: Any, state: Any, out: Any) -> Any:
    """Go on merging until ``out`` is full; ``state``: first and latest number of the key at hand, -1: none yet."""
    found = 0
    while found + 2 <= len(out):
        best = -1
        for r in range(len(at)):  # of equal keys that of the earlier run, so that numbers ascend
            if at[r] < stops[r] and (best < 0 or runs[at[r], 0] < runs[at[best], 0]):
                best = r
        if best < 0:
            return found, False
        own, number = runs[at[best], 0], np.int64(runs[at[best], 1])
        at[best] += 1
        if state[0] < 0 or own != key[0]:
            key[0], state[0] = own, number
        else:
            out[found, 0], out[found, 1] = number, state[0]
            found += 1
            if state[1] != state[0]:
                out[found, 0], out[found, 1] = number, state[1]
                found += 1
        state[1] = number
    return found, True

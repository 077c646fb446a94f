"""Clusters of documents: a union-find in mapped files, so that its size is bounded by the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from data_prep.hashing import GOLDEN, mix

Ints = NDArray[np.int64]
EXAMPLES = 20
"""So many of the largest clusters, and of clusters by chance, are shown."""
MEMBERS = 4
"""So many members of a cluster are shown."""
_CHUNK = 1 << 20


class Clusters:
    """Documents 0..n-1, each at first a cluster by itself.

    ``parents``: int64 [n], ``dropped``: uint8 [n] (``dropped.bin``), ``sizes``: int32 [n], all mapped files.
    """

    def __init__(self, folder: Path, n: int) -> None:
        self._scratch = [folder / "parents.bin", folder / "sizes.bin"]
        self.parents = mapped(self._scratch[0], np.dtype("<i8"), n)
        self.sizes = mapped(self._scratch[1], np.dtype("<i4"), n)
        self.dropped = mapped(folder / "dropped.bin", np.dtype("u1"), n)
        _alone(self.parents)

    def unite(self, pairs: Ints) -> None:
        """Put the clusters of each pair (int64 [p, 2]) together."""
        _unite(self.parents, pairs)

    def apart(self, pairs: Ints) -> NDArray[np.bool_]:
        """bool [p]: the two are not in one cluster yet."""
        return np.asarray(_apart(self.parents, pairs), np.bool_)

    def drop(self, code: int) -> None:
        """All but the first of each cluster are dropped under ``code``, where they are not dropped yet."""
        _drop(self.parents, self.dropped, code)

    def close(self) -> None:
        """Put ``dropped.bin`` on the disk and remove the other files."""
        if isinstance(self.dropped, np.memmap):
            self.dropped.flush()
        for path in self._scratch:
            path.unlink()

    def examples(self) -> tuple[int, int, list[Chosen]]:
        """(Number of clusters with more than one member, size of the largest, some of them)."""
        _count(self.parents, self.sizes)
        number = 0
        large, drawn = (np.zeros((0, 2), np.int64) for _ in range(2))  # (order, first member)
        for begin in range(0, len(self.sizes), _CHUNK):
            first = np.flatnonzero(self.sizes[begin : begin + _CHUNK] > 1) + begin
            number += len(first)
            chance = (_keys(first) >> np.uint64(1)).astype(np.int64)
            large = _least(large, -self.sizes[first].astype(np.int64), first)
            drawn = _least(drawn, chance, first)
        chosen = np.unique(np.concatenate([large[:, 1], drawn[:, 1]]))
        members, counts = _members(self.parents, chosen, MEMBERS)
        found = [Chosen(int(self.sizes[chosen[i]]), members[i, : counts[i]].tolist()) for i in range(len(chosen))]
        found.sort(key=lambda c: (-c.size, c.members))
        return number, -int(large[0, 0]) if len(large) else 0, found


@dataclass(frozen=True)
class Chosen:
    """A cluster to be shown: how many members it has, and the first ones."""

    size: int
    members: list[int]


def mapped(path: Path, dtype: np.dtype[Any], n: int) -> NDArray[Any]:
    """A new mapped file of ``n`` zeros."""
    path.write_bytes(b"")
    return np.memmap(path, dtype, "w+", shape=(n,)) if n else np.zeros(0, dtype)


def _least(before: Ints, order: Ints, first: Ints) -> Ints:
    """Of (order, first member) pairs those that come first."""
    all_of = np.concatenate([before, np.stack([order, first], axis=1)])
    return all_of[np.lexsort((all_of[:, 1], all_of[:, 0]))][:EXAMPLES]


@njit(cache=True, nogil=True)
def _keys(first: Any) -> Any:
    out = np.empty(len(first), np.uint64)
    for i in range(len(first)):
        out[i] = mix(np.uint64(first[i]) * GOLDEN + GOLDEN)
    return out


@njit(cache=True, nogil=True)
def _alone(parents: Any) -> None:
    for i in range(len(parents)):
        parents[i] = i


@njit(cache=True, nogil=True)
def _root(parents: Any, i: Any) -> Any:
    """The first member of the cluster of ``i``; ``parents``: int64 [n], each at or before its child."""
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


@njit(cache=True, nogil=True)
def _unite(parents: Any, pairs: Any) -> None:
    """Put the clusters of each pair (int64 [p, 2]) together."""
    for p in range(len(pairs)):
        a, b = _root(parents, pairs[p, 0]), _root(parents, pairs[p, 1])
        if a < b:
            parents[b] = a
        elif b < a:
            parents[a] = b


@njit(cache=True, nogil=True)
def _apart(parents: Any, pairs: Any) -> Any:
    """bool [p]: the two are not in one cluster yet."""
    out = np.empty(len(pairs), np.bool_)
    for p in range(len(pairs)):
        out[p] = _root(parents, pairs[p, 0]) != _root(parents, pairs[p, 1])
    return out


@njit(cache=True, nogil=True)
def _drop(parents: Any, dropped: Any, code: int) -> None:
    for i in range(len(parents)):
        if dropped[i] == 0 and _root(parents, i) != i:
            dropped[i] = code


@njit(cache=True, nogil=True)
def _count(parents: Any, sizes: Any) -> None:
    for i in range(len(parents)):
        sizes[_root(parents, i)] += 1


@njit(cache=True, nogil=True)
def _members(parents: Any, chosen: Any, most: int) -> Any:
    """(int64 [c, most], int64 [c]): the first members of the clusters that begin with ``chosen`` (ascending)."""
    out, counts = np.zeros((len(chosen), most), np.int64), np.zeros(len(chosen), np.int64)
    for i in range(len(parents)):
        own = _root(parents, i)
        at = np.searchsorted(chosen, own)
        if at < len(chosen) and chosen[at] == own and counts[at] < most:
            out[at, counts[at]] = i
            counts[at] += 1
    return out, counts

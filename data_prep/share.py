"""How much of each source is taken: weights and limits, and the counts by source.

All of it depends on the texts, their order in the source and the seed alone, never on blocks, batches or workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from data_prep.documents import Block, Counts
from data_prep.hashing import hashed, unit
from data_prep.stream import Ints, Stream

_PURPOSE = np.uint64(0x5753)


def copies(hashes: NDArray[np.uint64], weight: float) -> Ints:
    """int64 [d]: how often each document is taken on the whole; their mean is ``weight``.

    Args:
        hashes: uint64 [d], of the cleaned text under the seed.
    """
    if weight == 1:
        return np.ones(len(hashes), np.int64)
    out = np.empty(len(hashes), np.int64)
    _copies(hashes, int(weight), weight - int(weight), out)
    # Of a weight below 1 the documents without a copy have been left out before.
    return np.maximum(out, 1) if weight > 1 else np.ones(len(hashes), np.int64)


def sampled(stream: Stream, weight: float, seed: int, counts: Counts) -> Stream:
    """The documents that a ``weight`` below 1 takes; the others are counted as ``left_out_by_weight``."""
    if weight >= 1 or len(stream.documents) == 1:
        return stream
    out = np.empty(len(stream.documents) - 1, np.int64)
    _copies(stream.hashes(seed)[0], 0, weight, out)
    keep = out > 0
    left = len(keep) - int(keep.sum())
    counts["documents"] -= left
    counts["dropped_left_out_by_weight"] += left
    return stream.kept(keep, counts)


@njit(cache=True, nogil=True)
def _copies(hashes: Any, whole: Any, rest: Any, out: Any) -> None:
    for d in range(len(hashes)):
        out[d] = whole + (unit(hashed(hashes[d], _PURPOSE, 0)) < rest)


class Allowance:
    """What a block may still take of its source."""

    def __init__(self, block: Block) -> None:
        self._documents, self._bytes = block.max_documents, block.max_bytes

    @property
    def spent(self) -> bool:
        return (self._documents is not None and self._documents <= 0) or (self._bytes is not None and self._bytes <= 0)

    def take(self, stream: Stream) -> Stream:
        """The documents up to the limits."""
        n = len(stream.documents) - 1
        kept = n if self._documents is None else min(n, max(self._documents, 0))
        if self._bytes is not None:
            begins = stream.utf8()[1]
            kept = min(kept, int(np.searchsorted(begins[:-1], self._bytes)))
            self._bytes -= int(begins[kept])
        if self._documents is not None:
            self._documents -= kept
        return stream if kept == n else stream.between(0, kept)


def by_source(parts: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Counts of each source.

    Args:
        parts: the label of the source and the manifest, of each shard in its order.
    """
    totals: dict[str, Counter[str]] = {}
    for label, manifest in parts:
        total = totals.setdefault(label, Counter())
        total.update(manifest["counts"])
        total["tokens"] += sum(split["tokens"] for split in manifest["splits"].values())
    return {
        label: {
            **{name: total[name] for name in ("documents", "characters", "bytes", "tokens")},
            "dropped": Counts(total).dropped,
        }
        for label, total in totals.items()
    }

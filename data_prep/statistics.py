"""What a shard notes about its text for the corpus report: lengths, frequent words, unknown pieces.

All of it is small whatever the size of the block, depends on the block alone, and does not depend on batches.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from data_prep.corpus import offsets_of
from data_prep.hashing import GOLDEN, mix
from data_prep.shards import forget, map_array, read_index

EDGES = [0, *sorted({step << power for power in range(24) for step in (2, 3)} | {1})]
"""Borders of the length classes: 0, 1, 2, 3, 4, 6, 8, 12, 16, ... The last class has no end."""
SAMPLE, STRETCH = 1 << 18, 4096
"""Of a shard with more tokens, words are counted in evenly spaced stretches, which together have about ``SAMPLE``."""
SLOTS = 1 << 17
MOST_DISTINCT = SLOTS // 2
"""Words and unknown pieces that come after so many different ones are not counted; the frequent come early."""
TOP = 200
"""So many words of one token are kept, and so many longer ones; and unknown pieces."""
LONGEST_PIECE = 32

Ints = NDArray[np.int64]
_EDGES = np.array(EDGES, np.int32)
_CLASS = np.searchsorted(_EDGES, np.arange(256), side="right") - 1
"""int64 [256]: the classes of most lengths, without a search for each."""


def statistics(folder: Path, dtype: str, view: str, unknown: Counter[str]) -> dict[str, Any]:
    """Facts for the shard's manifest, read from its written training split.

    Args:
        folder: the split, with its tokens, index and the ``view`` of sequences.
        unknown: what :func:`note_unknown` has counted.

    Returns:
        ``lengths``: counts by the classes of ``EDGES`` of ``documents``, ``units`` and ``sequences``, in tokens;
        ``words``: [[token ids], count] of the most frequent ones, ``counted_tokens`` among which they were counted;
        ``unknown``: [text, count].
    """
    index = read_index(folder / "tokens.idx")
    size = int(index.lengths.sum(dtype=np.int64))
    tokens = map_array(folder / "tokens.bin", dtype, (size,))
    words, counted = frequent_words(tokens, map_array(folder / "words.bits", "u1", ((size + 7) // 8,)))
    del tokens  # here and below: what is large goes before the next comes
    ends = offsets_of(index.lengths)
    units, documents = classes(index.lengths), classes(np.diff(ends[index.documents]))
    del index, ends
    return {
        "lengths": {"documents": documents, "units": units, "sequences": sequence_lengths(folder / "sequences" / view)},
        "words": words,
        "counted_tokens": counted,
        "unknown": [[text, count] for text, count in most(unknown)],
    }


def sequence_lengths(view: Path) -> list[int]:
    """Classes of the lengths in tokens of the sequences of ``view``."""
    ends = offsets_of(np.fromfile(view / "pieces.bin", "<i8")[1::2])
    return classes(np.diff(ends[np.fromfile(view / "offsets.bin", "<i8")]))


def classes(lengths: NDArray[np.integer]) -> list[int]:
    """How many lengths fall into each class of ``EDGES``, up to the last class that has any."""
    counts = np.zeros(len(EDGES), np.int64)
    for begin in range(0, len(lengths), STRETCH):  # what numpy makes of them on the way is larger
        some = lengths[begin : begin + STRETCH]
        short = np.bincount(some[some < len(_CLASS)], minlength=len(_CLASS))
        counts += np.bincount(_CLASS, short, minlength=len(EDGES)).astype(np.int64)
        place = np.searchsorted(_EDGES, some[some >= len(_CLASS)], side="right") - 1
        counts += np.bincount(place, minlength=len(EDGES))
    found: list[int] = np.trim_zeros(counts, "b").tolist()
    return found


def most(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:TOP]


def frequent_words(tokens: NDArray[Any], bits: NDArray[np.uint8]) -> tuple[list[Any], int]:
    """([[token ids], count] of the most frequent words, tokens that were looked at).

    Args:
        tokens: [T]; bits: packed continuation bits of them.
    """
    stretches = -(-len(tokens) // STRETCH)
    every = max(1, stretches * STRETCH // SAMPLE)
    table = np.zeros((SLOTS, 4), np.int64)  # side by side: one miss of the cache for a word
    used, counted = 0, 0
    for number, begin in enumerate(range(0, len(tokens), STRETCH * every)):
        if number % 64 == 0:  # the system maps more around what is touched: in the end all of it
            forget(tokens)
            forget(bits)
        ids = np.asarray(tokens[begin : begin + STRETCH]).astype(np.int64)  # STRETCH is a multiple of 8
        own = np.unpackbits(bits[begin // 8 : (begin + len(ids) + 7) // 8], count=len(ids), bitorder="little")
        more = begin + len(ids) < len(tokens)
        used = _count(ids, own.view(np.bool_), begin, more, used, table)
        counted += len(ids)
    _, counts, starts, sizes = table[table[:, 1] > 0].T
    kept = [*_top(counts, starts, sizes == 1), *_top(counts, starts, sizes > 1)]
    return [[tokens[starts[k] : starts[k] + sizes[k]].tolist(), int(counts[k])] for k in kept], counted


def _top(counts: Ints, starts: Ints, wanted: NDArray[np.bool_]) -> Ints:
    """int64: the ``TOP`` of the ``wanted`` with the largest counts, in that order; of equal ones the earlier."""
    found = np.flatnonzero(wanted)
    if len(found) > TOP:  # most words are rare, and need not be sorted
        found = found[counts[found] >= np.partition(counts[found], -TOP)[-TOP]]
    chosen: Ints = found[np.lexsort((starts[found], -counts[found]))][:TOP]
    return chosen


@njit(cache=True, nogil=True)
def _count(ids: Any, continues: Any, begin: int, more: bool, used: int, table: Any) -> int:
    """Count the words that begin in a stretch and end in it; entries used afterwards.

    ``table``: open addressing; hash, count, first place and tokens of a word.
    """
    last = np.uint64(len(table) - 1)
    n = len(ids)
    t = 0
    while t < n and continues[t]:  # of a word that began before
        t += 1
    while t < n:
        key = mix(np.uint64(ids[t]) + GOLDEN)
        stop = t + 1
        while stop < n and continues[stop]:
            key = mix(key + np.uint64(ids[stop]) * GOLDEN + GOLDEN)
            stop += 1
        if stop == n and more:
            break
        slot = key & last
        while table[slot, 1] > 0 and table[slot, 0] != np.int64(key):
            slot = (slot + np.uint64(1)) & last
        if table[slot, 1] > 0 or used < len(table) // 2:
            if table[slot, 1] == 0:
                used += 1
                table[slot, 0], table[slot, 2], table[slot, 3] = np.int64(key), begin + t, stop - t
            table[slot, 1] += 1
        t = stop
    return used


@njit(cache=True, nogil=True)
def count_tokens(tokens: Any, counts: Any) -> None:
    """Add to ``counts`` (int64 [entries]) how often each id stands among ``tokens`` ([N], all below ``entries``)."""
    for token in tokens:
        counts[token] += 1


def note_unknown(counts: Counter[str], texts: list[str]) -> None:
    """Count texts that became [UNK]."""
    found = Counter(map(str.strip, texts))
    if len(counts) + len(found) <= MOST_DISTINCT:
        del found[""]
        counts.update(found)
        return
    for piece in map(str.strip, texts):
        if piece and (piece in counts or len(counts) < MOST_DISTINCT):
            counts[piece] += 1


def merged(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of all shards together, in the same form; ``words`` as a Counter of tuples of ids."""
    lengths: dict[str, list[int]] = {}
    words: Counter[tuple[int, ...]] = Counter()
    unknown: Counter[str] = Counter()
    for one in shards:
        for name, counts in one["lengths"].items():
            total = lengths.setdefault(name, [0] * (len(EDGES)))
            for place, count in enumerate(counts):
                total[place] += count
        words.update({tuple(ids): count for ids, count in one["words"]})
        unknown.update(dict(one["unknown"]))
    return {
        "lengths": lengths,
        "words": words,
        "unknown": unknown,
        "counted_tokens": sum(one["counted_tokens"] for one in shards),
    }

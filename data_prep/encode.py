"""Cleaned documents -> tokens and continuation bits, many at a time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from data_prep.config import CleanConfig
from data_prep.mapped import offsets_of, spread
from data_prep.segment import Segmenter
from data_prep.sentences import cut
from data_prep.stream import Chars, Ints, Stream, decoded
from data_prep.tokenizer_base import Tokenizer


@dataclass(frozen=True)
class Encoded:
    """The tokens of some documents.

    ``ids``: [T]; ``places``: int64 [T], the character of each token's start; ``counts``: int64 [u], tokens of each
    unit; ``firsts``: int64 [d + 1], the units of document i are ``firsts[i]:firsts[i + 1]``; ``starts``: bool [N], the
    character begins a word; ``chars``: uint32 [N], the characters; ``units``: int64 [u + 1], where each unit
    begins in them; ``short``: units that were left out because they are too short.
    """

    ids: NDArray[np.integer]
    places: Ints
    counts: Ints
    firsts: Ints
    starts: NDArray[np.bool_]
    chars: Chars
    units: Ints
    short: int

    def chosen(
        self, copies: NDArray[np.int64]
    ) -> tuple[NDArray[np.integer], NDArray[np.bool_], NDArray[np.int32], Ints]:
        """What :meth:`data_prep.shards.SplitWriter.add` writes, each document ``copies`` (int64 [d]) times.

        A token continues a word when it begins at a character that begins none, or at the same character as the
        token before it; the first one of a unit never does. Units and documents without tokens are left out.

        Returns:
            ids and continuation bits [t], tokens of each unit int32 [s], units of each document int64 [n].
        """
        copies = copies.astype(np.int64, copy=False)
        most = int(copies.max(initial=0))  # not above 1, and there is room for all documents: that is soon known
        times = np.repeat(copies, np.diff(self.firsts)) if most > 1 else None
        total = min(most, 1) * len(self.ids) if times is None else int((self.counts * times).sum())
        rows = min(most, 1) * len(self.counts) if times is None else int(times.sum())
        ids, continues = np.empty(total, self.ids.dtype), np.empty(total, np.bool_)
        lengths, sizes = np.empty(rows, np.int32), np.empty(int(copies.sum()), np.int64)
        total, units, kept = _chosen(
            self.ids, self.places, self.counts, self.firsts, self.starts, copies, ids, continues, lengths, sizes
        )
        ids, continues = ids[:total], continues[:total]
        return ids, continues, lengths[:units], sizes[:kept]

    def texts_of(self, token: int, longest: int) -> list[str]:
        """What stands in the text for each ``token``, up to the next token or the end of its unit.

        Args:
            longest: characters; longer texts are cut.
        """
        found = np.flatnonzero(self.ids == token)
        if not len(found):
            return []
        last = np.cumsum(self.counts)
        unit = np.searchsorted(last, found, side="right")
        following = self.places[np.minimum(found + 1, len(self.places) - 1)]
        begins = self.places[found]
        ends = np.where(found + 1 == last[unit], self.units[unit + 1], following)
        ends = np.minimum(ends, begins + longest)
        text = decoded(self.chars[spread(begins, ends - begins)])
        return [text[a:b] for a, b in pairwise(offsets_of(ends - begins).tolist())]


def encode(stream: Stream, tokenizer: Tokenizer, segmenter: Segmenter, rule: CleanConfig) -> Encoded:
    """The units of cleaned documents as tokens; those that are too short are left out.

    Words are cut in whole documents, so that the segmenter sees context.
    """
    starts = segmenter.starts(stream.chars, stream.documents)
    begins, ends, firsts = cut(stream, rule)
    if tokenizer.skips_breaks and rule.min_unit_characters <= 1:  # then units may as well have them at their ends
        bounds = np.append(begins, len(stream.chars))
        ids, places, counts = tokenizer.encode_stream(stream.chars, bounds)
        return Encoded(ids, places, counts, firsts, starts, stream.chars, bounds, 0)
    chars, packed = np.empty(len(stream.chars), np.uint32), np.empty(len(stream.chars), np.bool_)
    units, kept = np.zeros(len(begins) + 1, np.int64), np.empty(len(firsts), np.int64)
    least = max(1, rule.min_unit_characters)
    n = _pack(stream.chars, starts, begins, ends, firsts, least, chars, packed, units, kept)
    size = int(units[n])
    ids, places, counts = tokenizer.encode_stream(chars[:size], units[: n + 1])
    return Encoded(ids, places, counts, kept, packed[:size], chars[:size], units[: n + 1], len(begins) - n)


@njit(cache=True, nogil=True)
def _pack(
    chars: Any,
    starts: Any,
    begins: Any,
    ends: Any,
    firsts: Any,
    least: int,
    packed: Any,
    packed_starts: Any,
    units: Any,
    kept: Any,
) -> Any:
    """Copy the units of at least ``least`` characters, without the line ends between them; returns their number.

    Fills ``units`` (where each begins) and ``kept`` (the units of each document) beside the characters.
    """
    n, u = 0, 0
    kept[0] = 0
    for d in range(len(firsts) - 1):
        for i in range(firsts[d], firsts[d + 1]):
            if ends[i] - begins[i] >= least:
                for c in range(begins[i], ends[i]):
                    packed[n] = chars[c]
                    packed_starts[n] = starts[c]
                    n += 1
                u += 1
                units[u] = n
        kept[d + 1] = u
    return u


@njit(cache=True, nogil=True)
def _chosen(
    ids: Any,
    places: Any,
    counts: Any,
    firsts: Any,
    starts: Any,
    copies: Any,
    out: Any,
    continues: Any,
    lengths: Any,
    sizes: Any,
) -> Any:
    """Fill the arrays of :meth:`Encoded.chosen`; returns (tokens, units, documents)."""
    first, n, units, kept = 0, 0, 0, 0
    for d in range(len(copies)):
        token = first
        for u in range(firsts[d], firsts[d + 1]):
            first += counts[u]
        begin = token
        for _ in range(copies[d]):
            before, token = units, begin
            for u in range(firsts[d], firsts[d + 1]):
                stop = token + counts[u]
                if stop > token:
                    lengths[units] = counts[u]
                    units += 1
                    size = stop - token
                    own, place = ids[token:stop], places[token:stop]
                    new, bits = out[n : n + size], continues[n : n + size]
                    before_it: Any = -1
                    for t in range(size):
                        new[t] = own[t]
                        at = place[t]
                        bits[t] = (not starts[np.uint64(at)]) | (at == before_it)  # `or` would be a branch
                        before_it = at
                    bits[0] = False
                    n += size
                token = stop
            if units > before:
                sizes[kept] = units - before
                kept += 1
    return n, units, kept

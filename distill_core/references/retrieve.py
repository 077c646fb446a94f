"""The most similar other text by BM25 over token ids.

An inverted index (tokens x texts, CSR), made with numpy and memory-mapped. With N texts, df(t) of which hold the token
t, tf(t, d) its count in the text d, |d| the tokens of d without special ones and their mean m (Robertson & Zaragoza
2009, equation 3.15, with the idf that stays positive):

    idf(t) = ln(1 + (N - df + 1/2) / (df + 1/2))
    score(q, d) = sum over keywords t of q: idf(t) tf (k1 + 1) / (tf + k1 (1 - b + b |d| / m))

Keywords of q: its rarest different tokens; special tokens and very frequent ones are none. Of equal scores the lowest
number wins, so that the answer depends on nothing but the texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from data_prep.corpus import offsets_of
from data_prep.shards import map_array, write_array
from distill_core.data import permute
from distill_core.references.config import RetrievalConfig
from distill_core.references.files import unseal
from distill_core.references.texts import Texts, TextSource, blocks

Ints = NDArray[np.int64]
NONE = -1
"""In the place of a text's number: nothing overlaps."""
_ARRAYS = {
    "starts": "<i8",
    "texts": "<i4",
    "weights": "<f4",
    "hashes": "<u8",
    "groups": "<i8",
    "numbers": "<i8",
}


@dataclass(frozen=True)
class Bm25Index:
    """n different texts of a source.

    ``starts``: int64 [V + 1], where each token's postings begin; ``texts``: int32 [P] and ``weights``: float32 [P], the
    text and its part of the score; ``hashes``: uint64 [n], ``groups``: int64 [n]; ``numbers``: int64 [n], the text's in
    the source.
    """

    starts: Ints
    texts: NDArray[np.int32]
    weights: NDArray[np.float32]
    hashes: NDArray[np.uint64]
    groups: Ints
    numbers: Ints
    settings: RetrievalConfig
    specials: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.hashes)

    @classmethod
    def build(
        cls, source: TextSource, settings: RetrievalConfig, vocab_size: int, specials: Sequence[int], seed: int
    ) -> Bm25Index:
        """Index the texts of ``source``, or a keyed sample of ``settings.documents``; duplicates once."""
        numbers, hashes, groups = _different(source, settings.documents, seed)
        tokens, owners, counts, lengths = _postings(source, numbers, vocab_size, specials)
        frequency = np.bincount(tokens, minlength=vocab_size)
        kept = frequency[tokens] <= max(settings.max_frequency * len(numbers), 1)
        tokens, owners, counts = tokens[kept], owners[kept], counts[kept]
        order = np.argsort(tokens, kind="stable")  # texts in order within each token
        tokens, owners, counts = tokens[order], owners[order], counts[order].astype(np.float64)
        df = frequency[tokens]
        idf = np.log1p((len(numbers) - df + 0.5) / (df + 0.5))
        norm = 1 - settings.b + settings.b * lengths[owners] / max(lengths.mean(), 1.0)
        weights = idf * counts * (settings.k1 + 1) / (counts + settings.k1 * norm)
        starts = offsets_of(np.bincount(tokens, minlength=vocab_size))
        found = (starts, owners.astype(np.int32), weights.astype(np.float32), hashes, groups, numbers)
        return cls(*found, settings=settings, specials=tuple(specials))

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the arrays; returns what :func:`open_index` needs of the manifest."""
        for name, dtype in _ARRAYS.items():
            write_array(folder / f"{name}.bin", getattr(self, name).astype(dtype, copy=False))
        return {
            "size": len(self),
            "vocab_size": len(self.starts) - 1,
            "postings": len(self.texts),
            "settings": self.settings.model_dump(),
            "specials": list(self.specials),
        }

    @classmethod
    def open(cls, folder: Path) -> Bm25Index:
        """Map a saved index.

        Raises:
            DataError: it is not whole.
        """
        facts = unseal(folder)
        lengths = {"starts": facts["vocab_size"] + 1, "texts": facts["postings"], "weights": facts["postings"]}
        arrays = {
            name: map_array(folder / f"{name}.bin", dtype, (lengths.get(name, facts["size"]),))
            for name, dtype in _ARRAYS.items()
        }
        return cls(**arrays, settings=RetrievalConfig(**facts["settings"]), specials=tuple(facts["specials"]))

    def search(self, queries: Texts) -> tuple[Ints, NDArray[np.float64]]:
        """For each query its best text (``NONE`` if no keyword is shared) and the score, int64 and float64 [q].

        Never a text with the query's own content, nor one of its group.
        """
        tokens, bounds = self.keywords(queries)
        best, scores = np.empty(len(bounds) - 1, np.int64), np.empty(len(bounds) - 1, np.float64)
        _best(
            tokens,
            bounds,
            queries.hashes,
            queries.groups,
            np.asarray(self.starts),
            np.asarray(self.texts),
            np.asarray(self.weights),
            np.asarray(self.hashes),
            np.asarray(self.groups),
            best,
            scores,
        )
        return best, scores

    def keywords(self, queries: Texts) -> tuple[Ints, Ints]:
        """(tokens int64 [k], bounds int64 [q + 1]): the rarest different tokens of each query, in order of id."""
        vocab_size, n = len(self.starts) - 1, len(queries.offsets) - 1
        owners = np.repeat(np.arange(n), np.diff(queries.offsets))
        looked_at = _words(queries.ids, self.specials)
        looked_at[queries.hidden] = False
        keys = np.unique(owners[looked_at] * vocab_size + queries.ids[looked_at])
        owners, tokens = keys // vocab_size, keys % vocab_size
        frequency = np.asarray(self.starts)[tokens + 1] - np.asarray(self.starts)[tokens]
        owners, tokens, frequency = (a[frequency > 0] for a in (owners, tokens, frequency))
        order = np.lexsort((tokens, frequency, owners))
        firsts = offsets_of(np.bincount(owners, minlength=n))
        rank = np.arange(len(order)) - firsts[owners[order]]
        kept = np.sort(order[rank < self.settings.keywords])  # back in the order of (query, token)
        return tokens[kept], offsets_of(np.bincount(owners[kept], minlength=n))


def _different(source: TextSource, limit: int | None, seed: int) -> tuple[Ints, NDArray[np.uint64], Ints]:
    """(numbers, hashes, groups) of the different texts of a source or of a sample of it, in its order."""
    n = len(source)
    numbers = np.arange(n, dtype=np.int64)
    if limit is not None and limit < n:
        numbers = np.sort(permute(numbers[:limit], n, seed, 0))
    found = [(texts.hashes, texts.groups) for texts in blocks(source, numbers)]
    hashes, groups = (np.concatenate(parts) for parts in zip(*found, strict=True))
    first = np.sort(np.unique(hashes, return_index=True)[1])
    return numbers[first], hashes[first], groups[first]


def _postings(source: TextSource, numbers: Ints, vocab_size: int, specials: Sequence[int]) -> tuple[Ints, ...]:
    """(token, text, count) of each token in each text, by text, and the texts' lengths."""
    tokens, owners, counts, lengths = [], [], [], []
    done = 0
    for texts in blocks(source, numbers):
        n = len(texts.offsets) - 1
        kept = _words(texts.ids, specials)
        owner = np.repeat(np.arange(n), np.diff(texts.offsets))[kept]
        keys, count = np.unique(owner * vocab_size + texts.ids[kept], return_counts=True)
        tokens.append((keys % vocab_size).astype(np.int32))
        owners.append((keys // vocab_size + done).astype(np.int32))
        counts.append(count.astype(np.int32))
        lengths.append(np.bincount(owner, minlength=n))
        done += n
    return tuple(np.concatenate(parts) for parts in (tokens, owners, counts, lengths))


def _words(ids: Ints, specials: Sequence[int]) -> NDArray[np.bool_]:
    return ~np.isin(ids, np.array(specials, np.int64))


@njit(cache=True, nogil=True)
def _best(
    tokens: Any,
    bounds: Any,
    hashes: Any,
    groups: Any,
    starts: Any,
    texts: Any,
    weights: Any,
    text_hashes: Any,
    text_groups: Any,
    best: Any,
    scores: Any,
) -> None:
    """Query by query: add up the postings of its keywords, then the highest sum among the texts that are touched."""
    sums = np.zeros(len(text_hashes), np.float64)
    touched = np.empty(len(text_hashes), np.int64)
    for query in range(len(bounds) - 1):
        n = 0
        for place in range(bounds[query], bounds[query + 1]):
            token = tokens[place]
            for posting in range(starts[token], starts[token + 1]):
                text = texts[posting]
                if sums[text] == 0.0:
                    touched[n] = text
                    n += 1
                sums[text] += weights[posting]
        winner, top = -1, 0.0
        for place in range(n):
            text = touched[place]
            score = sums[text]
            sums[text] = 0.0
            same = groups[query] >= 0 and text_groups[text] == groups[query]
            if same or text_hashes[text] == hashes[query]:
                continue
            if score > top or (score == top and text < winner):
                winner, top = text, score
        best[query], scores[query] = winner, top

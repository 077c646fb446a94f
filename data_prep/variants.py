"""How sentences become training sequences: index views over the same tokens.

A view is two arrays: ``pieces`` (int64 [p, 2]: first token, token count) and ``offsets`` (int64 [n + 1]: the
pieces of sequence i are ``offsets[i]:offsets[i + 1]``). A sequence is the concatenation of its pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from configs.registry import Registry
from data_prep.shards import Index

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Sequences:
    """``offsets``: int64 [n + 1]; ``pieces``: int64 [p, 2]."""

    offsets: Ints
    pieces: Ints


# (index of sentences and documents, continuation bits of the tokens, content tokens a sequence may have)
VARIANTS: Registry[Callable[[Index, NDArray[np.bool_], int], Sequences]] = Registry("kind of sequences")


@VARIANTS.add("documents")
def documents(index: Index, continues: NDArray[np.bool_], room: int) -> Sequences:
    """Whole consecutive sentences of one document, as many as fit into ``room`` tokens.

    A sentence that is longer by itself is cut before a word (inside one only if the word is longer than
    ``room``). Every token is in exactly one sequence, in order.
    """
    starts = _documents(index.lengths.astype(np.int64), index.documents, continues, room)
    counts = np.diff(starts)
    pieces = np.stack([starts[:-1], counts], axis=1)
    return Sequences(np.arange(len(counts) + 1, dtype=np.int64), pieces)


@njit(cache=True, nogil=True)
def _documents(lengths: Any, docs: Any, continues: Any, room: int) -> Any:
    """The first token of each sequence, and the end of the last."""
    total = 0
    for length in lengths:
        total += length
    starts = np.empty(total + 1, np.int64)
    n = 0
    token = 0
    for d in range(len(docs) - 1):
        filled = room  # a new document begins a new sequence
        for s in range(docs[d], docs[d + 1]):
            length = lengths[s]
            if filled + length > room:
                starts[n] = token
                n += 1
                filled = 0
            while length > room:
                cut = room
                while cut > 0 and continues[token + cut]:
                    cut -= 1
                if cut == 0:
                    cut = room
                token += cut
                length -= cut
                starts[n] = token
                n += 1
            token += length
            filled += length
    starts[n] = token
    return starts[: n + 1].copy()

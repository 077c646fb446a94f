"""What the kernels of masks work on: the rule, and the words of one sequence, as tuples of bare arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from data_prep.mapped import bare, f64, i32, i64, u64

Ints = NDArray[np.int64]
ONE = np.uint64(1)


class Rule(NamedTuple):
    """masking.MaskRule as kernels want it.

    ``weights``: [V] or [0]; ``bounds``: upper ends of the shares of [MASK], random and similar words; ``specials``:
    ascending; ``ngrams``: [k], chances of 1, 1 .. 2, ... 1 .. k words, or [0]; ``slots``, ``starts``, ``ids``,
    ``near``: the table of similar words (similar.py), or empty.
    """

    rate: float
    most: int
    weights: NDArray[np.float64]
    bounds: tuple[float, float, float]
    mask_id: int
    vocab_size: int
    specials: Ints
    whole_words: bool
    by_word: bool
    ngrams: NDArray[np.float64]
    slots: NDArray[np.int32]
    starts: Ints
    ids: Ints
    near: NDArray[np.int32]


class Scratch(NamedTuple):
    """Of the words of one sequence: first token, tokens, whether it follows the one before it at once, random key,
    whether it is taken (a bit each); and three arrays to sort with."""

    starts: Ints
    sizes: Ints
    follows: Ints
    keys: NDArray[np.uint64]
    taken: NDArray[np.uint64]
    order: Ints
    sorting: Ints
    heads: Ints


@njit(cache=True, nogil=True, inline="always")
def scratch_of(room: Any) -> Any:
    """``room``: int64 [8 * (longest sequence)], cut up."""
    n, at = len(room) >> 3, np.uint64(room.ctypes.data)
    step = np.uint64(8 * n)
    return Scratch(
        i64(at, n),
        i64(at + step, n),
        i64(at + np.uint64(2) * step, n),
        u64(at + np.uint64(3) * step, n),
        u64(at + np.uint64(4) * step, n),
        i64(at + np.uint64(5) * step, n),
        i64(at + np.uint64(6) * step, n),
        i64(at + np.uint64(7) * step, n),
    )


@njit(cache=True, nogil=True, inline="always")
def bare_rule(rule: Any) -> Any:
    """:class:`Rule` of a plain tuple."""
    rate, most, weights, bounds, mask_id, vocab_size, specials, whole_words, by_word, ngrams = rule[:10]
    slots, starts, ids, near = rule[10:]
    return Rule(
        rate,
        most,
        f64(np.uint64(weights.ctypes.data), len(weights)),
        bounds,
        mask_id,
        vocab_size,
        bare(specials),
        whole_words,
        by_word,
        f64(np.uint64(ngrams.ctypes.data), len(ngrams)),
        i32(np.uint64(slots.ctypes.data), len(slots)),
        bare(starts),
        bare(ids),
        i32(np.uint64(near.ctypes.data), near.size).reshape((near.shape[0], near.shape[1])),
    )


@intrinsic
def _trailing_zeros(typing_context: Any, word: Any) -> Any:
    """The place of the lowest set bit of a uint64 that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


trailing_zeros: Any = _trailing_zeros


@njit(cache=True, nogil=True, inline="always")
def is_set(bits: Any, w: Any) -> Any:
    return (bits[w >> 6] >> np.uint64(w & 63)) & ONE

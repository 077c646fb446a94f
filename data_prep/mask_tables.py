"""What the kernels of masks work on: the rule, and the words of one sequence, as tuples of bare arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from data_prep.mapped import bare, f64, i32, i64, u32, u64

Ints = NDArray[np.int64]
ONE = np.uint64(1)
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


class Rule(NamedTuple):
    """masking.MaskRule as kernels want it.

    ``weights``: [V] or [0]; ``bounds``: upper ends of the shares of [MASK], random and similar words, of
    2**53; ``ordinary``: tokens that are not special; ``specials``: [k, 2], runs of special ids, ascending: the first of
    each and how many; ``ngrams``: [k], chances of 1, 1 .. 2, ... 1 .. k words, or [0]; ``slots``,
    ``starts``, ``ids``, ``near``: the table of similar words (similar.py), or empty.
    """

    rate: float
    most: int
    weights: NDArray[np.float64]
    bounds: tuple[int, int, int]
    mask_id: int
    ordinary: int
    specials: Ints
    whole_words: bool
    by_word: bool
    ngrams: NDArray[np.float64]
    slots: NDArray[np.int32]
    starts: Ints
    ids: Ints
    near: NDArray[np.int32]


class Scratch(NamedTuple):
    """Of one sequence, a bit for each token: whether a word begins there (and behind the last token), such a word may
    be taken, a piece begins, the token is taken. A key for each token, and the upper half of it; and room for lists of
    tokens or words. There is room for 64 more than the longest sequence has, so that loops can go on to a round number
    of turns: what is left of a vector is done one by one otherwise, which takes as long as all the rest."""

    borders: NDArray[np.uint64]
    free: NDArray[np.uint64]
    firsts: NDArray[np.uint64]
    taken: NDArray[np.uint64]
    keys: NDArray[np.uint64]
    tops: NDArray[np.uint32]
    places: Ints
    sizes: Ints
    more: Ints
    scores: NDArray[np.float64]
    kinds: Ints
    some: NDArray[np.uint64]


LANES = len(Scratch._fields)


def room_for(longest: int) -> Ints:
    """Memory for :func:`scratch_of`, for sequences of up to ``longest`` tokens: whole blocks of 64 tokens."""
    return np.empty(LANES * 64 * (longest // 64 + 2), np.int64)


@njit(cache=True, nogil=True, inline="always")
def scratch_of(room: Any) -> Any:
    """``room``, cut up."""
    n, at = len(room) // LANES, np.uint64(room.ctypes.data)
    step = np.uint64(8 * n)
    return Scratch(
        u64(at, n),
        u64(at + step, n),
        u64(at + np.uint64(2) * step, n),
        u64(at + np.uint64(3) * step, n),
        u64(at + np.uint64(4) * step, n),
        u32(at + np.uint64(5) * step, n),
        i64(at + np.uint64(6) * step, n),
        i64(at + np.uint64(7) * step, n),
        i64(at + np.uint64(8) * step, n),
        f64(at + np.uint64(9) * step, n),
        i64(at + np.uint64(10) * step, n),
        u64(at + np.uint64(11) * step, n),
    )


@njit(cache=True, nogil=True, inline="always")
def bare_rule(rule: Any) -> Any:
    """:class:`Rule` of a plain tuple."""
    rate, most, weights, bounds, mask_id, ordinary, specials, whole_words, by_word, ngrams = rule[:10]
    slots, starts, ids, near = rule[10:]
    return Rule(
        rate,
        most,
        f64(np.uint64(weights.ctypes.data), len(weights)),
        bounds,
        mask_id,
        ordinary,
        i64(np.uint64(specials.ctypes.data), specials.size).reshape((specials.shape[0], 2)),
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
    """The place of the lowest set bit of a uint64, 64 if there is none."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


@intrinsic
def _ones(typing_context: Any, word: Any) -> Any:
    """How many bits of a uint64 are set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


def _within(bits: int) -> Any:
    """Of the 64 unsigned numbers of ``bits`` bits at an address (uint64), a bit for each: it is ``low`` or at most
    ``span`` more. Loops for this do not become vector instructions by themselves."""

    @intrinsic
    def within(typing_context: Any, address: Any, low: Any, span: Any) -> Any:
        number, place = ir.IntType(bits), ir.IntType(32)
        vector = ir.VectorType(number, 64)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            undefined = ir.Constant(vector, ir.Undefined)

            def everywhere(value: Any) -> Any:
                one = builder.insert_element(undefined, builder.trunc(value, number), ir.Constant(place, 0))
                return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(place, 64), [0] * 64))

            values = builder.load(builder.inttoptr(arguments[0], ir.PointerType(vector)), align=bits // 8)
            distances = builder.sub(values, everywhere(arguments[1]))
            inside = builder.icmp_unsigned("<=", distances, everywhere(arguments[2]))
            return builder.bitcast(inside, ir.IntType(64))

        return types.uint64(types.uint64, types.uint64, types.uint64), generate

    return within


within16: Any = _within(16)
within32: Any = _within(32)
trailing_zeros: Any = _trailing_zeros
ones: Any = _ones


@njit(cache=True, nogil=True, inline="always")
def rounded(count: Any) -> Any:
    """``count``, or what is above it, as a multiple of 32."""
    return ((count + 31) >> 5) << 5


@njit(cache=True, nogil=True, inline="always")
def spell_out(bits: Any, block: Any, mostly: Any, places: Any, count: Any) -> Any:
    """Write the places of the set bits of a block of 64 behind the first ``count`` places; returns how many there are
    then.

    Up to ``mostly`` of them are written whether they are there or not, as a processor cannot guess how many there are.
    """
    left, begin = bits, block << 6
    for k in range(mostly):
        places[count + k] = begin + trailing_zeros(left)
        left &= left - ONE
    k = mostly
    while left != 0:
        places[count + k] = begin + trailing_zeros(left)
        left &= left - ONE
        k += 1
    return count + ones(bits)


@njit(cache=True, nogil=True, inline="always")
def is_set(bits: Any, w: Any) -> Any:
    return (bits[w >> 6] >> np.uint64(w & 63)) & ONE

"""Words among the single characters that a route leaves side by side: stage 5 of ``jieba_kernel.py``."""

from __future__ import annotations

from typing import Any

from numba import njit

from data_prep.jieba_trie import BASE_BITS, FORCED, HAN
from data_prep.jieba_words import NEVER, ZERO, U

_DIGITS = U(sum(1 << ord(c) for c in "0123456789"))
_LETTERS = U(sum(1 << (ord(c) - 64) for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"))


@njit(nogil=True, cache=True)
def _alphanumeric(id: Any) -> Any:
    word = _DIGITS if id < 64 else _LETTERS
    return (id < 128) & ((word >> (U(id) & U(63))) & U(1) != ZERO)


@njit(nogil=True, cache=True)
def rest(n: Any, at: Any, long_size: Any, starts: Any, tables: Any, hmm: Any) -> None:
    """Cut the runs at ``found[:n]`` as jieba does what its route leaves over."""
    ids, size, two, first, found, back = at.ids, at.size, at.two, at.first, at.found, at.back
    emit, start, moves, forced = tables.emit, tables.start, tables.moves, tables.forced[0] != 0
    for j in range(n):
        begin = U(found[j])
        end = begin + U(2)
        while size[end] == 1 and ids[end] != 0:
            end += U(1)
        if not hmm:
            for k in range(begin + U(1), end):
                starts[k] = not (_alphanumeric(ids[k]) and _alphanumeric(ids[U(k) - U(1)]))
            continue
        if end - begin == U(2):
            known = two[begin] > NEVER
        else:
            known = _is_longer_word(end - begin, U(first[begin]), long_size)
        if known:  # the dictionary holds it all the same: then jieba leaves its characters alone
            continue
        while begin < end:
            k = begin + U(1)
            if ids[begin] >= HAN:
                while k < end and ids[k] >= HAN:
                    k += U(1)
                if k > begin + U(1):
                    _viterbi(begin, k, ids, back, starts, emit, start, moves)
                    if forced:
                        _cut_forced(begin, k, ids, starts, tables)
            else:
                while k < end and ids[k] < HAN:
                    k += U(1)
                _cut_ascii(begin, k, ids, starts)
            begin = k


@njit(nogil=True, cache=True)
def _is_longer_word(length: Any, word: Any, long_size: Any) -> Any:
    while word != ZERO and long_size[word - U(1)] != 0:
        if U(long_size[word - U(1)]) == length:
            return True
        word += U(1)
    return False


@njit(nogil=True, cache=True)
def _viterbi(begin: Any, end: Any, ids: Any, back: Any, starts: Any, emit: Any, start: Any, moves: Any) -> None:
    """``jieba.finalseg``'s most probable states B, M, E, S (0 to 3) of two and more ideographs, with its ties."""
    eb, sb, bm, mm = moves[0], moves[1], moves[2], moves[3]
    be, me, es, ss = moves[4], moves[5], moves[6], moves[7]
    row = U(ids[begin]) * U(4)
    b, m = start[0] + emit[row], start[1] + emit[row + U(1)]
    e, s = start[2] + emit[row + U(2)], start[3] + emit[row + U(3)]
    if end - begin == U(2):  # most often
        row = U(ids[begin + U(1)]) * U(4)
        at_e, at_s = emit[row + U(2)], emit[row + U(3)]
        starts[begin + U(1)] = max(e + es + at_s, s + ss + at_s) >= max(b + be + at_e, m + me + at_e)
        return
    for k in range(begin + U(1), end):
        row = U(ids[k]) * U(4)
        at_b, at_m, at_e, at_s = emit[row], emit[row + U(1)], emit[row + U(2)], emit[row + U(3)]
        b0, b1 = e + eb + at_b, s + sb + at_b
        m0, m1 = b + bm + at_m, m + mm + at_m
        e0, e1 = b + be + at_e, m + me + at_e
        s0, s1 = e + es + at_s, s + ss + at_s
        b_s, m_m, e_m, s_s = b1 >= b0, m1 >= m0, e1 >= e0, s1 >= s0  # which of the two states before
        back[k] = U(0b10000010) | U(b_s) | U(m_m) << U(2) | U(e_m) << U(4) | U(s_s) << U(6)
        b, m = b1 if b_s else b0, m1 if m_m else m0
        e, s = e1 if e_m else e0, s1 if s_s else s0
    state = U(2) + U(s >= e)
    k = end - U(1)
    while k > begin:
        starts[k] = (U(0b1001) >> state) & U(1) != ZERO
        state = (U(back[k]) >> (state << U(1))) & U(3)
        k -= U(1)


@njit(nogil=True, cache=True)
def _cut_ascii(begin: Any, end: Any, ids: Any, starts: Any) -> None:
    """The pieces of ``[a-zA-Z0-9]+(?:\\.[0-9]+)?%?`` and what is between them."""
    while begin < end:
        k = begin + U(1)
        if _alphanumeric(ids[begin]):
            while k < end and _alphanumeric(ids[k]):
                k += U(1)
            if k + U(1) < end and ids[k] == 46 and ids[k + U(1)] >= 48 and ids[k + U(1)] <= 57:
                k += U(2)
                while k < end and ids[k] >= 48 and ids[k] <= 57:
                    k += U(1)
            if k < end and ids[k] == 37:
                k += U(1)
        else:
            while k < end and not _alphanumeric(ids[k]):
                k += U(1)
        starts[begin] = True
        for i in range(begin + U(1), k):
            starts[i] = False
        begin = k


@njit(nogil=True, cache=True)
def _cut_forced(begin: Any, end: Any, ids: Any, starts: Any, tables: Any) -> None:
    """Cut the model's words that the user wants apart into characters."""
    while begin < end:
        k = begin + U(1)
        while k < end and not starts[k]:
            k += U(1)
        if k > begin + U(1) and _is_forced(begin, k, ids, tables):
            starts[begin:k] = True
        begin = k


@njit(nogil=True, cache=True)
def _is_forced(begin: Any, end: Any, ids: Any, tables: Any) -> Any:
    node = tables.nodes[ids[begin]]
    for k in range(begin + U(1), end):
        slot = (node & U((1 << BASE_BITS) - 1)) + U(ids[k])
        if tables.check[slot] != ids[k]:
            return False
        node = tables.nodes[slot]
    return node >> U(FORCED) != ZERO

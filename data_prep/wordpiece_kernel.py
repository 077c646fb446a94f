"""The loops of BERT's WordPiece over a stream of code points (see :mod:`data_prep.tokenizer_wordpiece`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

LONGEST = 100
"""Letters of a word; a longer one is unknown (`max_input_chars_per_word` of the reference)."""
REORDERED = 1 << 24
"""Bit of a letter that canonical ordering may put behind the letter after it."""
INVALID = -1
"""No letter: not a character of Unicode (a surrogate)."""
DONE, FULL, OPEN = np.int64(-1), np.int64(-2), np.int64(-3)
_LETTER = REORDERED - 1
_ROOT, _INNER = np.int64(0), np.int64(1)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_U: Any = np.uint64
"""Of indices: numba checks signed ones for being negative."""
MEMO, MOST = 4096, 1 << 30
"""Words that are remembered in a call, if they stand among so many first characters."""
_MEMO_SHIFT = np.uint64(64 - 12)


@njit(cache=True, nogil=True, inline="always")
def _edge(trie: Any, node: Any, letter: Any) -> Any:
    """The row of the edge ``letter`` out of ``node``, or the empty row where it would stand."""
    mask = np.int64(len(trie) - 1)
    key = (node << 21) | letter
    row = np.int64((np.uint64(key) * _FACTOR) >> np.uint64(32)) & mask
    while trie[row, 0] != key and trie[row, 0] != -1:
        row = (row + 1) & mask
    return row


@njit(cache=True, nogil=True)
def _build(letters: Any, ends: Any, inner: Any, trie: Any) -> Any:
    """Fill ``trie`` and return how many edges it has."""
    nodes, begin = 2, 0
    for piece in range(len(ends)):
        node = _INNER if inner[piece] else _ROOT
        row = np.int64(-1)
        for at in range(begin, ends[piece]):
            row = _edge(trie, node, letters[at])
            if trie[row, 0] == -1:
                trie[row, 0] = (node << 21) | letters[at]
                trie[row, 1] = nodes
                nodes += 1
            node = trie[row, 1] & 0xFFFFFFFF
        if row >= 0:
            trie[row, 1] = node | ((piece + 1) << 32)
        begin = ends[piece]
    return nodes - 2


def build_trie(pieces: list[str]) -> npt.NDArray[np.int64]:
    """The vocabulary as a hash table of edges, at most half full: int64 [2^k, 2].

    A row is ``node << 21 | letter`` (-1: empty) and ``(id of the piece that ends here + 1) << 32 | next node``.
    Node 0 begins words, node 1 goes on with them (``##``).
    """
    inner = [piece.startswith("##") and len(piece) > 2 for piece in pieces]
    bare = [piece[2:] if cut else piece for piece, cut in zip(pieces, inner, strict=True)]
    letters = np.frombuffer("".join(bare).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    ends = np.cumsum(np.fromiter(map(len, bare), np.int64, len(bare)))
    edges, trie = len(letters), np.zeros((0, 2), np.int64)
    for _ in range(2):  # pieces share beginnings: the second time the number of edges is known
        trie = np.full((1 << int(2 * edges + 2).bit_length(), 2), -1, np.int64)
        edges = _build(letters, ends, np.array(inner), trie)
    return trie


@njit(cache=True, nogil=True, inline="always")
def _word(word: Any, at: Any, n: Any, trie: Any, unk: Any, ids: Any, places: Any, t: Any) -> Any:
    """Longest match first: append the pieces of the letters ``word[:n]``, which stand at ``at[:n]``."""
    first, begin, root = t, 0, _ROOT
    while begin < n:
        node, found, after = root, 0, begin
        for i in range(begin, n):
            row = _edge(trie, node, word[i])
            if trie[row, 0] == -1:
                break
            target = trie[row, 1]
            node = target & 0xFFFFFFFF
            if target >> 32:
                found, after = target >> 32, i + 1
        if found == 0:
            ids[first], places[first] = unk, at[0]
            return first + 1
        ids[t], places[t] = found - 1, at[begin]
        t += 1
        begin, root = after, _INNER
    return t


@njit(cache=True, nogil=True, inline="always")
def _read(chars: Any, begin: Any, end: Any, letters: Any, more: Any, word: Any, at: Any) -> Any:
    """Put the letters of ``chars[begin:end]`` and their places into ``word`` and ``at``, at most ``LONGEST + 1``.

    Returns (their number, their bits together, ``end`` or the place of what is no character).
    """
    n, flags = np.int64(0), np.int64(0)
    for i in range(begin, end):
        letter = np.int64(letters[chars[i]])
        if letter > 0:
            if n <= LONGEST:
                word[n], at[n] = letter & _LETTER, i
                n += 1
            flags |= letter
        elif letter < 0:
            if letter == INVALID:
                return n, flags, i
            for k in range(more[-letter]):
                if n <= LONGEST:
                    word[n], at[n] = more[k + 1 - letter], i
                    n += 1
    return n, flags, end


@njit(cache=True, nogil=True, inline="always")
def _same(chars: Any, one: Any, other: Any, size: Any) -> Any:
    """Whether the same ``size`` characters stand at both places."""
    i = _U(0)
    while i < size and chars[one + i] == chars[other + i]:
        i += _U(1)
    return i == size


@njit(cache=True, nogil=True, inline="always")
def _copy(ids: Any, places: Any, source: Any, size: Any, t: Any, by: Any) -> Any:
    """Append the ``size`` tokens at ``source`` again, ``by`` characters further on."""
    if size <= 4 and t + 4 <= len(ids):  # four of them whatever their number: no branch that is hard to guess
        for k in range(4):
            ids[_U(t) + _U(k)], places[_U(t) + _U(k)] = ids[source + _U(k)], places[source + _U(k)] + by
    else:
        for k in range(size):
            ids[_U(t) + _U(k)], places[_U(t) + _U(k)] = ids[source + _U(k)], places[source + _U(k)] + by
    return t + size


@njit(cache=True, nogil=True, inline="always")
def _spell(
    chars: Any, begin: Any, end: Any, letters: Any, more: Any, trie: Any, run: Any, unk: Any, spare: Any,
    word: Any, at: Any, ids: Any, places: Any, t: Any,
) -> Any:  # fmt: skip
    """Append the tokens of the word ``chars[begin:end]``; returns (tokens, one of ``scan``'s states, or OPEN)."""
    n, flags, stop = _read(chars, begin, end, letters, more, word, at)
    if stop < end:
        return t, stop
    if t + n > spare + end and n <= LONGEST:
        return t, FULL
    if flags & REORDERED:
        ids[t], places[t] = run, begin
        return t + 1, OPEN
    if n > LONGEST:
        ids[t], places[t] = unk, at[0]
        return t + 1, DONE
    return _word(word, at, n, trie, unk, ids, places, t), DONE


@njit(cache=True, nogil=True)
def scan(
    chars: Any, units: Any, table: Any, space: Any, run: Any, unk: Any, letters: Any, more: Any, trie: Any,
    ids: Any, places: Any, counts: Any,
) -> Any:  # fmt: skip
    """Fill ``ids`` and ``places`` (at least one a character) and ``counts`` (one a unit).

    Most words were there before in ``chars``: their tokens are copied from where they stand.

    Args:
        table: [0x110000], the id of a character that is a token by itself, ``space`` for what stands between words, or
            ``run`` for what is a part of one. These two are ids that no text has.
        letters, more: see :class:`data_prep.wordpiece_letters.Letters`.

    Returns:
        (tokens, words left open, state). A word left open is one token ``run`` at its first character. The state is
        DONE, or FULL if ``ids`` is too short, or the place of a character that is none.
    """
    word, at = np.empty(LONGEST + 1, np.int64), np.empty(LONGEST + 1, np.int64)
    keys, memo = np.zeros(MEMO, np.uint64), np.zeros((MEMO, 4), np.uint32)  # its place, tag, first token, tokens
    t, opened = np.int64(0), np.int64(0)
    # What is left of ``ids`` is never less than the characters that are left, or this is said.
    spare = len(ids) - units[len(counts)]
    for u in range(len(counts)):
        first, i, end = t, units[u], units[u + 1]
        while i < end:
            c = chars[_U(i)]
            if c > 0x10FFFF:
                return t, opened, i
            code = table[c]
            if code != run:
                ids[_U(t)], places[_U(t)] = code, i
                t += np.int64(code != space)
                i += 1
                continue
            begin, key, bits = i, _U(0), np.uint32(0)
            while i < end and chars[_U(i)] <= 0x10FFFF and table[chars[_U(i)]] == run:
                key = (key << _U(8) | key >> _U(56)) ^ _U(chars[_U(i)])
                bits |= chars[_U(i)]
                i += 1
            short = i - begin <= 8 and bits < 0x100  # then the key is the word
            tag = np.uint32(i - begin) << np.uint32(1) | np.uint32(short)
            row = (key * _FACTOR) >> _MEMO_SHIFT
            seen = memo[row]
            if keys[row] == key and seen[1] == tag and (short or _same(chars, _U(seen[0]), _U(begin), _U(i - begin))):
                if t + np.int64(seen[3]) > spare + i:
                    return t, opened, FULL
                t = _copy(ids, places, _U(seen[2]), np.int64(seen[3]), t, begin - np.int64(seen[0]))
                continue
            before = t
            t, state = _spell(chars, begin, i, letters, more, trie, run, unk, spare, word, at, ids, places, t)
            if state >= 0 or state == FULL:
                return t, opened, state
            if state == OPEN:
                opened += 1
            elif i < MOST:
                keys[row], seen[0], seen[1], seen[2], seen[3] = key, begin, tag, before, t - before
        counts[u] = t - first
    return t, opened, DONE

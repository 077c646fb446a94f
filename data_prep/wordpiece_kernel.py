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
DONE, FULL = np.int64(-1), np.int64(-2)
_LETTER = REORDERED - 1
_ROOT, _INNER = np.int64(0), np.int64(1)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


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


@njit(cache=True, nogil=True)
def scan(
    chars: Any, units: Any, table: Any, space: Any, run: Any, unk: Any, letters: Any, more: Any, trie: Any,
    ids: Any, places: Any, counts: Any,
) -> Any:  # fmt: skip
    """Fill ``ids`` and ``places`` (at least one a character) and ``counts`` (one a unit).

    Args:
        table: [0x110000], the id of a character that is a token by itself, ``space`` for what stands between words, or
            ``run`` for what is a part of one. These two are ids that no text has.
        letters, more: see :class:`data_prep.wordpiece_letters.Letters`.

    Returns:
        (tokens, words left open, state). A word left open is one token ``run`` at its first character. The state is
        DONE, or FULL if ``ids`` is too short, or the place of a character that is none.
    """
    word, at = np.empty(LONGEST + 1, np.int64), np.empty(LONGEST + 1, np.int64)
    t, opened = np.int64(0), np.int64(0)
    # What is left of ``ids`` is never less than the characters that are left, or this is said.
    spare = len(ids) - units[len(counts)]
    for u in range(len(counts)):
        first, i, end = t, units[u], units[u + 1]
        while i < end:
            c = chars[i]
            if c > 0x10FFFF:
                return t, opened, i
            code = table[c]
            if code != run:
                ids[t], places[t] = code, i
                t += np.int64(code != space)
                i += 1
                continue
            begin, n, flags = i, np.int64(0), np.int64(0)
            while i < end and chars[i] <= 0x10FFFF and table[chars[i]] == run:
                letter = np.int64(letters[chars[i]])
                if letter > 0:
                    if n <= LONGEST:
                        word[n], at[n] = letter & _LETTER, i
                        n += 1
                    flags |= letter
                elif letter < 0:
                    if letter == INVALID:
                        return t, opened, i
                    for k in range(more[-letter]):
                        if n <= LONGEST:
                            word[n], at[n] = more[k + 1 - letter], i
                            n += 1
                i += 1
            if t + n > spare + i and n <= LONGEST:
                return t, opened, FULL
            if flags & REORDERED:
                ids[t], places[t] = run, begin
                t += 1
                opened += 1
            elif n > LONGEST:
                ids[t], places[t] = unk, at[0]
                t += 1
            else:
                t = _word(word, at, n, trie, unk, ids, places, t)
        counts[u] = t - first
    return t, opened, DONE

"""jieba's dictionary as a trie in one flat array, for ``jieba_words.py``.

Each beginning of words has a slot: that of a single character is its id, that of a longer one is the ``base`` of the
beginning before its last character, plus the id of this character (a double array). No two have the same base, so a
slot belongs to a beginning if ``check`` holds its last character: a lookup of two bytes says whether it exists.
Frequent characters have small ids, so that what is often asked for lies together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import log
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from configs.errors import DataError

FIRST_HAN, N_HAN = 0x4E00, 0x9FD5 - 0x4E00 + 1
HAN = 128
"""The first id of an ideograph."""
N_IDS = HAN + N_HAN
ASCII = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+#&._%-"
EMPTY = 0xFFFF

# A node: 26 bits of base (0: nothing follows), 20 of the weight's place in ``weights``, 16 that say which ids may
# follow (by their lowest bits), and two marks.
BASE_BITS, WEIGHT, WEIGHT_BITS, NEXT, N_NEXT = 26, 26, 20, 46, 16
UNLISTED = 62
"""The first character is no word of its own, so that it stands alone only where no word begins."""
FORCED = 63
"""The hidden Markov model's word is cut into characters (frequency 0 in a user dictionary)."""

_WORD = re.compile(f"[\u4e00-\u9fd5{re.escape(ASCII)}]+")


def word_tables(frequencies: Mapping[str, int], total: int, forced: Iterable[str]) -> dict[str, NDArray[Any]]:
    """``ids``, ``check``, ``nodes``, ``weights``, ``single`` and ``forced`` of :class:`data_prep.jieba_tables.Tables`.

    Args:
        frequencies: of all words; 0 for what is only the beginning of some.
        total: the sum that jieba divides by.
        forced: words that the model may not make.

    Raises:
        DataError: they are too many for the fields of a node.
    """
    words = {word: frequency for word, frequency in frequencies.items() if _WORD.fullmatch(word)}
    id_of = _ids(words)
    whole = log(total)
    found = [0, *sorted(set(words.values()) - {0})]
    weights = np.array([-np.inf if not f else log(f) - whole for f in found])  # math.log rounds as jieba does
    place = {frequency: i << WEIGHT for i, frequency in enumerate(found)}
    children: dict[str, list[int]] = {}  # the ids that may follow a beginning
    for word in words:
        for end in range(1, len(word)):
            if word[: end + 1] not in children:
                children.setdefault(word[:end], []).append(id_of[word[end]])
                children[word[: end + 1]] = []
    bases, size = _bases({word: row for word, row in children.items() if row})
    if len(found) > 1 << WEIGHT_BITS or size > 1 << BASE_BITS:
        raise DataError(
            f"data.segment.user_dictionary: {len(words):,} words with {len(found):,} different frequencies; at most "
            f"{1 << WEIGHT_BITS:,} different ones are possible, and some ten million words. Leave out rare ones."
        )
    apart = {word for word in forced if len(word) > 1 and word in words}
    slots, nodes, checks = list[int](), list[int](), list[int]()
    for word, row in children.items():
        last = id_of[word[-1]]
        node = bases.get(word, 0) | place[words.get(word, 0)]
        for id in row:
            node |= 1 << (NEXT + id % N_NEXT)
        node |= (not words.get(word[0])) << UNLISTED | (word in apart) << FORCED
        slots.append(last if len(word) == 1 else bases[word[:-1]] + last)
        nodes.append(node)
        checks.append(last if len(word) > 1 else EMPTY)
    table, check = np.zeros(size, np.uint64), np.full(size, EMPTY, np.uint16)
    table[slots], check[slots] = nodes, checks
    single, ids = np.full(N_IDS, log(1) - whole), np.zeros(0x10000, np.uint16)
    for character, id in id_of.items():
        ids[ord(character)] = id
        if words.get(character):
            single[id] = weights[place[words[character]] >> WEIGHT]
    marked = np.array([bool(apart)], np.uint8)
    return {"ids": ids, "check": check, "nodes": table, "weights": weights, "single": single, "forced": marked}


def _ids(words: Mapping[str, int]) -> dict[str, int]:
    """The id of each character of the alphabet; ideographs from the most frequent one in ``words`` on."""
    counts = dict.fromkeys(map(chr, range(FIRST_HAN, FIRST_HAN + N_HAN)), 0)
    for word, frequency in words.items():
        for character in word:
            if character in counts:
                counts[character] += frequency
    ranked = sorted(counts, key=lambda character: -counts[character])
    return {**{c: ord(c) for c in ASCII}, **{character: HAN + rank for rank, character in enumerate(ranked)}}


def _bases(children: Mapping[str, list[int]]) -> tuple[dict[str, int], int]:
    """(base of each beginning that goes on, length of the array)."""
    # Pairs stand together; in each of the two the widest rows come first, which are hardest to place.
    words = sorted(children, key=lambda word: (len(word) > 1, -len(children[word])))
    codes = np.array([code for word in words for code in sorted(children[word])], np.int64)
    ends = np.cumsum(np.array([0, *(len(children[word]) for word in words)], np.int64))
    room = 2 * len(codes) + 4 * N_IDS
    while (found := _place(codes, ends, np.arange(room + 1), np.zeros(room, np.bool_))) is None:
        room *= 2
    return dict(zip(words, found.tolist(), strict=True)), int(found.max(initial=0)) + N_IDS


@njit(cache=True)
def _free(after: Any, slot: Any) -> Any:
    """The first free slot from ``slot`` on: ``after`` of a free one is itself, of others one that is not before it."""
    end = slot
    while after[end] != end:
        end = after[end]
    while after[slot] != end:
        after[slot], slot = end, after[slot]
    return end


@njit(cache=True)
def _place(codes: Any, ends: Any, after: Any, taken: Any) -> Any:
    """int64 [rows]: the first base that no row has, and whose slots for ``codes[ends[i]:ends[i + 1]]`` are free.

    ``None`` if there is no room. ``after`` and ``taken`` (bool, bases) are as long as there are slots (and one more).
    """
    bases = np.empty(len(ends) - 1, np.int64)
    width, slot = 0, N_IDS + 0
    for row in range(len(bases)):
        own = codes[ends[row] : ends[row + 1]]
        if 2 * len(own) <= width or len(own) > width:  # where wider ones did not fit, narrow ones may
            width, slot = len(own), N_IDS + 0
        while True:
            slot = _free(after, slot)
            base = slot - own[0]
            if base + N_IDS >= len(taken):
                return None
            fits = base > 0 and not taken[base]
            if fits:
                for code in own:
                    if after[base + code] != base + code:
                        fits = False
                        break
            if fits:
                break
            slot += 1
        taken[base] = True
        bases[row] = base
        for code in own:
            after[base + code] = base + code + 1
    return bases

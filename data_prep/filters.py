"""Quality filters: a document is dropped for what its code points count up to.

After Gopher (Rae et al. 2021, arXiv 2112.11446, A.1.1) and FineWeb (Penedo et al. 2024, arXiv 2406.17557, 3.4), with
characters in the place of words, because Chinese text has no spaces to count words by. Shares are of the characters
that are not white space. ``FilterConfig`` says what each limit means, ``REASONS`` in which order they are looked at.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from data_prep.config_quality import FilterConfig

REASONS = (
    "",
    "too_long",
    "short_lines",
    "low_cjk_share",
    "punctuation_share",
    "symbol_share",
    "digit_share",
    "duplicate_lines",
    "duplicate_line_characters",
    "top_ngram",
    "duplicate_ngrams",
)
"""The reason of each code that :func:`judge` returns; 0 keeps the document. The names stand in manifests: stable."""
LIMITS = (
    ("max_characters", 1),
    ("min_mean_line_length", -1),
    ("min_cjk_share", -1),
    ("max_punctuation_share", 1),
    ("max_symbol_share", 1),
    ("max_digit_share", 1),
    ("max_duplicate_line_share", 1),
    ("max_duplicate_line_character_share", 1),
)
"""Field of :class:`FilterConfig` and its direction (1: a maximum), in the order of their reasons."""

OTHER, SPACE, HAN, PUNCTUATION, SYMBOL, DIGIT = range(6)
"""Classes of code points."""
_NEWLINE = 10
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def judge(chars: NDArray[np.uint32], documents: NDArray[np.int64], config: FilterConfig) -> NDArray[np.uint8]:
    """What speaks against each document: the first of :data:`REASONS` that applies.

    Args:
        chars: uint32 [N], code points of cleaned documents ("\\n" between lines).
        documents: int64 [d + 1], where each begins in ``chars``.
        config: the limits; those that are None are not looked at.

    Returns:
        uint8 [d], an index into :data:`REASONS`.
    """
    if not any_filter(config):
        return np.zeros(len(documents) - 1, np.uint8)
    limits = [(np.inf if value is None else sign * value) for value, sign in _limits(config)]
    top, repeated = (_ngrams(shares) for shares in (config.max_top_ngram_share, config.max_duplicate_ngram_share))
    chars, documents = np.asarray(chars, np.uint32), np.asarray(documents, np.int64)
    return np.asarray(_judge(chars, documents, _classes(), np.array(limits), *top, *repeated), np.uint8)


def any_filter(config: FilterConfig) -> bool:
    return any(value not in (None, {}) for value in config.model_dump().values())


def _limits(config: FilterConfig) -> list[tuple[float | None, int]]:
    return [(getattr(config, name), sign) for name, sign in LIMITS]


def _ngrams(shares: dict[int, float]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    order = sorted(shares)
    return np.array(order, np.int64), np.array([shares[n] for n in order], np.float64)


@cache
def _classes() -> NDArray[np.uint8]:
    """uint8 [0x110000]: the class of each code point."""
    table = np.zeros(0x110000, np.uint8)
    kinds = {"P": PUNCTUATION, "S": SYMBOL, "N": DIGIT, "Z": SPACE}
    for code in range(0x20000):
        character = chr(code)
        table[code] = SPACE if character.isspace() else kinds.get(unicodedata.category(character)[0], OTHER)
    # Ideographs and compatibility ideographs, with 々〆〇 (a letter, a letter, a number by their categories).
    for first, last in ((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFD)):
        table[first : last + 1] = HAN
    return table


@njit(cache=True, nogil=True)
def _judge(
    chars: Any,
    documents: Any,
    classes: Any,
    limits: Any,
    top_sizes: Any,
    top_shares: Any,
    repeated_sizes: Any,
    repeated_shares: Any,
) -> Any:
    out = np.zeros(len(documents) - 1, np.uint8)
    longest = 1
    for d in range(len(out)):
        longest = max(longest, documents[d + 1] - documents[d])
    slots = 2
    while slots < 2 * longest:
        slots *= 2
    # An open-addressing table that is never cleared: a slot counts only under the stamp of its use.
    # Columns: stamp, place of the characters, their number, how often they were seen, where they ended last.
    table = np.zeros((slots, 5), np.int32)
    stamp = np.zeros(1, np.int32)
    for d in range(len(out)):
        text = chars[documents[d] : documents[d + 1]]
        out[d] = _by_counts(text, classes, limits)
        if out[d] == 0 and (limits[6] != np.inf or limits[7] != np.inf):
            out[d] = _by_lines(text, limits, table, stamp)
        for i in range(len(top_sizes)):
            if out[d] == 0 and _top(text, classes, top_sizes[i], table, stamp) > top_shares[i]:
                out[d] = 9
        for i in range(len(repeated_sizes)):
            if out[d] == 0 and _repeated(text, classes, repeated_sizes[i], table, stamp) > repeated_shares[i]:
                out[d] = 10
    return out


@njit(cache=True, nogil=True)
def _by_counts(text: Any, classes: Any, limits: Any) -> int:
    found = np.zeros(6, np.int64)
    lines = 1
    for code in text:
        found[classes[code]] += 1
        lines += code == _NEWLINE
    total = max(1, len(text) - found[SPACE])
    if len(text) > limits[0]:
        return 1
    if -(len(text) - (lines - 1)) / lines > limits[1]:
        return 2
    if -found[HAN] / total > limits[2]:
        return 3
    for i in range(3):
        if found[PUNCTUATION + i] / total > limits[3 + i]:
            return 4 + i
    return 0


@njit(cache=True, nogil=True)
def _find(text: Any, at: int, size: int, hashed: Any, slots: int, table: Any, stamp: Any) -> Any:
    """The slot of the ``size`` characters at ``at`` (its count is 0 when they are new)."""
    slot = np.int64((hashed ^ (hashed >> np.uint64(29))) * _GOLDEN >> np.uint64(20)) & (slots - 1)
    while table[slot, 0] == stamp[0]:
        if table[slot, 2] == size:
            i, place = 0, table[slot, 1]
            while i < size and text[place + i] == text[at + i]:
                i += 1
            if i == size:
                return slot
        slot = (slot + 1) & (slots - 1)
    table[slot, 0], table[slot, 1], table[slot, 2], table[slot, 3], table[slot, 4] = stamp[0], at, size, 0, 0
    return slot


@njit(cache=True, nogil=True)
def _slots(text: Any, stamp: Any) -> Any:
    """A new stamp, and how much of the table a text of this length needs (short texts stay in the cache)."""
    stamp[0] += 1
    slots = 2
    while slots < 2 * len(text):
        slots *= 2
    return slots


@njit(cache=True, nogil=True)
def _by_lines(text: Any, limits: Any, table: Any, stamp: Any) -> int:
    """Lines that stood before in the text, and the share of characters in them."""
    slots = _slots(text, stamp)
    start, lines, again, inside, total = 0, 0, 0, 0, 0
    hashed = np.uint64(0)
    for i in range(len(text) + 1):
        if i < len(text) and text[i] != _NEWLINE:
            hashed = (hashed ^ np.uint64(text[i])) * _GOLDEN
            hashed ^= hashed >> np.uint64(32)
            continue
        slot = _find(text, start, i - start, hashed, slots, table, stamp)
        lines += 1
        total += i - start
        if table[slot, 3] > 0:
            again += 1
            inside += i - start
        table[slot, 3] += 1
        start, hashed = i + 1, np.uint64(0)
    if again / lines > limits[6]:
        return 7
    return 8 if inside / max(1, total) > limits[7] else 0


@njit(cache=True, nogil=True)
def _hash(text: Any, at: int, size: int) -> Any:
    hashed = np.uint64(0)
    for i in range(at, at + size):
        hashed = (hashed ^ np.uint64(text[i])) * _GOLDEN
        hashed ^= hashed >> np.uint64(32)
    return hashed


@njit(cache=True, nogil=True)
def _top(text: Any, classes: Any, size: int, table: Any, stamp: Any) -> float:
    """The share of characters in the most frequent n-gram; occurrences of it that overlap count once."""
    slots = _slots(text, stamp)
    clear, visible, most = 0, 0, 0
    for i in range(len(text)):
        clear = 0 if classes[text[i]] == SPACE else clear + 1
        visible += clear > 0
        if clear >= size:
            at = i + 1 - size
            slot = _find(text, at, size, _hash(text, at, size), slots, table, stamp)
            if at >= table[slot, 4]:
                table[slot, 3] += 1
                table[slot, 4] = i + 1
                most = max(most, table[slot, 3])
    if most < 2:  # nothing is repeated in so short a text
        return 0.0
    return most * size / max(1, visible)


@njit(cache=True, nogil=True)
def _repeated(text: Any, classes: Any, size: int, table: Any, stamp: Any) -> float:
    """The share of characters in n-grams that stood before in the text; counted without overlap."""
    slots = _slots(text, stamp)
    clear, visible, inside, free = 0, 0, 0, 0
    for i in range(len(text)):
        clear = 0 if classes[text[i]] == SPACE else clear + 1
        visible += clear > 0
        at = i + 1 - size
        if clear >= size and at >= free:
            slot = _find(text, at, size, _hash(text, at, size), slots, table, stamp)
            if table[slot, 3] > 0:
                inside += size
                free = i + 1
            table[slot, 3] += 1
    return inside / max(1, visible)

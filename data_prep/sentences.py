"""Where the sentences of cleaned text end: a state machine over code points."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from data_prep.config import CleanConfig
from data_prep.stream import Ints, Stream, code_points

CLOSERS = "”’\"'）)】」』》〉］]｝}〕〗〙〛＂＇»›﹂﹄"
STOPS = "。！？…｡"
OPENERS = "“‘„«\"'(["
# Before a full stop they do not end a sentence; in any case, as `(?i:...)` matches them (ı and İ are i, ſ is s).
TITLES = (
    "dr", "mr", "ir", "ds", "st", "nr", "no", "mw", "ms", "dhr", "drs", "ing", "mrs", "prof", "mevr", "bijv",
)  # fmt: skip
_SAME = {0x130: "i", 0x131: "i", 0x17F: "s"}
_LONGEST = 4

_STOP, _BANG, _DOT, _NEWLINE = 1, 2, 4, 8  # what may end a unit
_CLOSER, _SPACE, _WORD, _OPENER, _CAPITAL = 16, 32, 64, 128, 256
_ENDING = _STOP | _BANG | _DOT | _NEWLINE


@cache
def _kinds() -> NDArray[np.uint16]:
    """uint16 [0x110000]: what each code point can be, as bits."""
    kinds = np.zeros(0x110000, np.uint16)
    everything = "".join(map(chr, range(0x32000)))  # no letters and no spaces are assigned beyond
    for pattern, kind in ((r"\w+", _WORD), (r"\s+", _SPACE)):
        for run in re.finditer(pattern, everything):
            kinds[run.start() : run.end()] = kind
    for characters, kind in ((CLOSERS, _CLOSER), (STOPS, _STOP), (OPENERS, _OPENER)):
        kinds[[ord(c) for c in characters]] |= kind
    kinds[[ord("!"), ord("?")]] |= _BANG
    kinds[ord(".")] |= _DOT
    kinds[ord("\n")] |= _NEWLINE
    kinds[[*range(ord("A"), ord("Z") + 1), *range(0xC0, 0xD7), *range(0xD8, 0xDF)]] |= _CAPITAL
    return kinds


def _code(title: str) -> int:
    code = 0
    for letter in title:
        code = code << 8 | ord(letter)
    return code


@cache
def _titles() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(uint8 [0x200], the small letter that a code point is in any case, or 0; int64 [t], titles as numbers)."""
    small = np.zeros(0x200, np.uint8)
    for c in range(ord("a"), ord("z") + 1):
        small[c] = small[c - 32] = c
    for c, letter in _SAME.items():
        small[c] = ord(letter)
    return small, np.array(sorted(map(_code, TITLES)), np.int64)


def cut(stream: Stream, config: CleanConfig) -> tuple[Ints, Ints, Ints]:
    """The units of cleaned documents: their lines, or the sentences of those (``config.unit``).

    A sentence ends after 。！？…｡!? and the closing quotes and brackets that follow (an ASCII ! or ? only where no
    ASCII letter or digit follows at once: not in a?b=c or Yahoo!News), and after a full stop before a space and a
    capital (not after initials and titles: J. R. Smith, Dr. Jansen). A line without any stop stays whole, however
    long: sequences are cut to length later. Joined, the units of a document are its text without ``\\n``; none is
    empty.

    Returns:
        ``begins``, ``ends``: int64 [u], unit i is ``stream.chars[begins[i]:ends[i]]``; ``firsts``: int64 [d + 1],
        the units of document i are ``firsts[i]:firsts[i + 1]``.
    """
    firsts = np.empty(len(stream.documents), np.int64)
    size = len(stream.chars) // 8 + 16
    while True:
        begins, ends = np.empty(size, np.int64), np.empty(size, np.int64)
        chars = stream.chars
        n = _cut(chars, stream.documents, config.unit == "line", _kinds(), *_titles(), begins, ends, firsts)
        if n <= size:
            return begins[:n], ends[:n], firsts
        size = n


def sentences(text: str) -> list[str]:
    """The sentences of one cleaned text, see :func:`cut`."""
    stream = Stream(code_points(text).copy(), np.array([0, len(text)], np.int64))
    begins, ends, _ = cut(stream, CleanConfig(unit="sentence"))
    return [text[a:b] for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]


@njit(cache=True, nogil=True)
def _abbreviated(chars: Any, at: int, begin: int, kinds: Any, small: Any, titles: Any) -> bool:
    """Whether the full stop at ``at`` of the line from ``begin`` follows a space, an initial or a title."""
    if at == begin:
        return False
    before = kinds[chars[at - 1]]
    if before & _SPACE:
        return True
    if not before & _WORD:
        return False
    code, length = np.int64(0), 0
    while at - length > begin and kinds[chars[at - 1 - length]] & _WORD:
        c = chars[at - 1 - length]
        length += 1
        if length > _LONGEST:
            return False
        letter = np.int64(small[c]) if c < len(small) else np.int64(0)
        code |= letter << (8 * (length - 1))
        if letter == 0:
            code |= 1 << 62  # not a title, whatever else it holds
    if length == 1:
        return True
    return bool((titles == code).any())


@njit(cache=True, nogil=True)
def _cut(
    chars: Any, documents: Any, whole: bool, kinds: Any, small: Any, titles: Any, begins: Any, ends: Any, firsts: Any
) -> Any:
    """Fill the arrays of :func:`cut`, as far as they reach; returns the number of units."""
    n = 0
    room = len(begins)
    firsts[0] = 0
    for d in range(len(documents) - 1):
        begin, stop = documents[d], documents[d + 1]
        line = begin
        i = begin
        while i < stop:
            kind = kinds[chars[np.uint64(i)]]  # of a signed index numba asks whether it is negative
            if not kind & _ENDING:
                i += 1
                continue
            if kind & _NEWLINE:
                if i > begin:
                    if n < room:
                        begins[n], ends[n] = begin, i
                    n += 1
                i += 1
                begin = line = i
                continue
            end = -1 if whole else _after(chars, i, line, stop, kinds, small, titles)
            if end < 0:
                i += 1
                continue
            if n < room:
                begins[n], ends[n] = begin, end
            n += 1
            i = begin = end
        if stop > begin:
            if n < room:
                begins[n], ends[n] = begin, stop
            n += 1
        firsts[d + 1] = n
    return n


@njit(cache=True, nogil=True)
def _after(chars: Any, i: int, line: int, stop: int, kinds: Any, small: Any, titles: Any) -> int:
    """Where the sentence ends whose first ending character is at ``i``, or -1: it does not end there."""
    end = i
    if kinds[chars[i]] & _DOT:
        if _abbreviated(chars, i, line, kinds, small, titles):
            return -1
        end = i + 1
        while end < stop and kinds[chars[end]] & _CLOSER:
            end += 1
        behind = end
        if behind == stop or not kinds[chars[behind]] & _SPACE or chars[behind] == 10:
            return -1
        behind += 1
        while behind < stop and kinds[chars[behind]] & _OPENER:
            behind += 1
        return end if behind < stop and kinds[chars[behind]] & _CAPITAL else -1
    while end < stop:
        kind = kinds[chars[end]]
        if kind & _BANG:
            if end + 1 < stop:
                following = kinds[chars[end + 1]]
                if chars[end + 1] < 0x80 and not following & (_BANG | _CLOSER | _SPACE):
                    break
        elif not kind & _STOP:
            break
        end += 1
    if end == i:
        return -1
    while end < stop and kinds[chars[end]] & _CLOSER:
        end += 1
    return end

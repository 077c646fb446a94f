"""The texts of documents, made regular: one pass over their code points."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from data_prep.cache import cached_arrays, code_hash
from data_prep.config import CleanConfig
from data_prep.documents import Counts
from data_prep.rewrite import simplified, unescape
from data_prep.sentences import cut
from data_prep.stream import Chars, Ints, Stream, code_points, decoded, raw_stream

# Never seen by a reader of the text: control characters without meaning for layout, soft hyphen, zero width
# and bidirectional marks, variation selectors, fillers, byte order mark, replacement and object characters,
# surrogates, private use, noncharacters. Unassigned characters stay: a later Unicode may have assigned them.
_INVISIBLE = (
    (0x00, 0x08), (0x0E, 0x1B), (0x7F, 0x84), (0x86, 0x9F), (0xAD, 0xAD),
    (0x34F, 0x34F), (0x600, 0x605), (0x61C, 0x61C), (0x6DD, 0x6DD), (0x70F, 0x70F), (0x890, 0x891), (0x8E2, 0x8E2),
    (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
    (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164),
    (0xD800, 0xDFFF), (0xE000, 0xF8FF), (0xFDD0, 0xFDEF), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFFF),
    (0x110BD, 0x110BD), (0x110CD, 0x110CD), (0x13430, 0x1343F), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A),
    (0x1FFFE, 0x1FFFF), (0xE0000, 0xE0FFF), (0xF0000, 0x10FFFF),
)  # fmt: skip
_BREAKS = (0x0A, 0x0B, 0x0C, 0x0D, 0x1C, 0x1D, 0x1E, 0x1F, 0x85, 0x2028, 0x2029)

_PLAIN, _SPACE, _BREAK, _HIDDEN, _ODD, _MAPPED = 0, 1, 2, 3, 4, 5
_LONGEST = 3
_UNREADABLE = 0xFFFD
REASONS = ("", "empty", "too_short", "short_units")
"""Why a document is dropped (``short_units``: none of its units is long enough); the code is the place here."""


Form = Literal["none", "NFC", "NFKC"]


@dataclass(frozen=True)
class Table:
    """How each code point is treated.

    ``kinds``: uint8 [0x110000]; ``_MAPPED`` + k means k + 1 characters in its stead, from ``places[c]`` (uint16
    [0x110000]) of ``others`` (uint32) on.
    """

    kinds: NDArray[np.uint8]
    places: NDArray[np.uint16]
    others: Chars

    @cached_property
    def growth(self) -> int:
        """How many characters one may become."""
        return max(1, int(self.kinds.max()) - _MAPPED + 1)


def _assigned() -> list[int]:
    """Where characters with properties may be; the rest is unassigned, private, or invisible anyway."""
    return [*range(0xD800), *range(0xE000, 0x32000)]


@cache
def _layout() -> NDArray[np.uint8]:
    """uint8 [0x110000]: plain, space or break."""
    kinds = np.zeros(0x110000, np.uint8)
    kinds[[c for c in _assigned() if chr(c).isspace()]] = _SPACE
    kinds[list(_BREAKS)] = _BREAK
    return kinds


@cache
def table(form: Form) -> Table:
    """The table of a Unicode form: ``none``, ``NFC`` or ``NFKC``.

    A character is odd when the form of a text that holds it is not put together from those of its characters: one
    that may join the character before it, one that is moved (combining class), and one whose form holds such a
    one. Without odd characters the form of a text is that of its characters, one by one.
    """
    key = f"{code_hash(__file__)}-{unicodedata.unidata_version}-{form}"
    return Table(**cached_arrays("characters", key, lambda: vars(_build(form))))


def _build(form: Form) -> Table:
    kinds = _layout().copy()
    places = np.zeros(0x110000, np.uint16)
    others: list[int] = []
    if form != "none":
        joining = _joining()
        for c in _assigned():
            own = chr(c)
            new = unicodedata.normalize(form, own)
            if c in joining:
                kinds[c] = _ODD
            elif new != own:
                parts = [ord(part) for part in new]
                if joining.intersection(parts) or len(parts) > _room(form):
                    kinds[c] = _ODD
                else:
                    kinds[c] = _MAPPED + len(parts) - 1
                    places[c] = len(others)
                    others += parts
    for first, last in _INVISIBLE:
        kinds[first : last + 1] = _HIDDEN
    return Table(kinds, places, np.array([*others, 0], np.uint32))


def _room(form: Form) -> int:
    """How many characters may stand for one: more are rare, and would need memory for the worst case."""
    return _LONGEST if form == "NFKC" else 1


@cache
def _joining() -> frozenset[int]:
    """Characters that may be joined to, or sorted among, those before them: combining marks, vowels of Hangul, ..."""
    found = {c for c in _assigned() if unicodedata.combining(chr(c))}
    found |= {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}
    for c in _assigned():
        parts = unicodedata.decomposition(chr(c)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            found.add(int(parts[1], 16))
    return frozenset(found)


@cache
def _already_in_form() -> Table:
    """For text that has its form, and no invisible characters from before."""
    arrays = _layout(), np.zeros(0x110000, np.uint16), np.zeros(1, np.uint32)
    for array in arrays:
        array.setflags(write=False)  # as those from the cache are: the kernel is compiled for one type only
    return Table(*arrays)


def clean_texts(texts: list[str], config: CleanConfig) -> tuple[Stream, Counts]:
    """Texts as their reader found them -> what :func:`clean` makes of them, HTML entities put into characters first."""
    if not config.html_entities:
        return clean(raw_stream(texts), config)
    raw = raw_stream([unescape(text) for text in texts])
    found, counts = clean(raw, config)
    rewritten = len(raw.chars) - sum(map(len, texts))
    counts["characters_read"] -= rewritten
    counts["characters_rewritten"] += rewritten
    return found, counts


def clean(raw: Stream, config: CleanConfig) -> tuple[Stream, Counts]:
    """Documents made regular, without those that are dropped, and how many those are by reason (:data:`REASONS`).

    Invisible and private characters go, the Unicode form is ``config.unicode``, runs of white space inside
    a line become one space, every kind of line break becomes ``\n``, empty lines go. Cleaning twice changes
    nothing more. Removed are ``invisible`` characters, ``white_space``, and ``undecodable`` ones: U+FFFD, which
    stands for bytes that whoever decoded them could not read.
    """
    rule = table(config.unicode)
    out = np.empty(len(raw.chars) * rule.growth + 1, np.uint32)
    documents = np.zeros(len(raw.documents), np.int64)
    reasons = np.zeros(len(raw.documents) - 1, np.uint8)
    removed = np.zeros(3, np.int64)
    least, count = max(1, config.min_characters), len(reasons)
    d = kept = 0
    while d < count:
        treated = (rule.kinds, rule.places, rule.others)
        d, kept = _clean(raw.chars, raw.documents, d, treated, least, out, documents, kept, reasons, removed)
        if d < count:  # an odd one
            own = raw.chars[raw.documents[d] : raw.documents[d + 1]]
            shown, missing = _in_form(own, rule, config.unicode)
            left = int(raw.documents[-1] - raw.documents[d + 1]) * rule.growth
            used = int(documents[kept])
            if used + len(shown) + left > len(out):
                out = np.concatenate([out[:used], np.empty(len(shown) * 2 + left, np.uint32)])
            plain, one = _already_in_form(), np.array([0, len(shown)], np.int64)
            treated, code = (plain.kinds, plain.places, plain.others), reasons[d : d + 1]
            _, kept = _clean(shown, one, 0, treated, least, out, documents, kept, code, removed)
            if not code[0]:
                removed += missing
            d += 1
    cleaned = Stream(out[: documents[kept]], documents[: kept + 1].copy())
    counts = _counts(raw, reasons, removed, len(cleaned.chars))
    if config.opencc is not None:
        before, cleaned = len(cleaned.chars), raw_stream([simplified(text, config) for text in cleaned.texts()])
        counts["characters_rewritten"] += len(cleaned.chars) - before
    return _with_long_units(cleaned, config, counts), counts


def _counts(raw: Stream, reasons: NDArray[np.uint8], removed: Ints, left: int) -> Counts:
    """What the kernel did: ``removed`` is [invisible, U+FFFD, characters more by the form], of kept documents."""
    found = np.bincount(reasons, minlength=len(REASONS)).tolist()
    counts = Counts({f"dropped_{reason}": n for reason, n in zip(REASONS[1:], found[1:], strict=True) if n})
    dropped = int(np.diff(raw.documents)[reasons > 0].sum()) if counts else 0
    invisible, undecodable, more = removed.tolist()
    counts.update(
        characters_read=len(raw.chars),
        characters_rewritten=more,
        characters_dropped=dropped,
        removed_invisible=invisible,
        removed_undecodable=undecodable,
        # What remains: nothing else is left out.
        removed_white_space=len(raw.chars) - dropped - invisible - undecodable + more - left,
    )
    return counts


def _in_form(chars: Chars, rule: Table, form: Form) -> tuple[Chars, Ints]:
    """The Unicode form of ``chars`` without the invisible ones; those, U+FFFD and growth as in :func:`_counts`."""
    assert form != "none", "nothing is odd then"
    seen = chars[rule.kinds[chars] != _HIDDEN]
    shown = code_points(unicodedata.normalize(form, decoded(seen)))
    unreadable = int((chars == _UNREADABLE).sum())
    return shown, np.array([len(chars) - len(seen) - unreadable, unreadable, len(shown) - len(seen)], np.int64)


def _with_long_units(stream: Stream, config: CleanConfig, counts: Counts) -> Stream:
    """The documents that have a unit of ``config.min_unit_characters``; the others are counted."""
    count = len(stream.documents) - 1
    if not config.min_unit_characters or not count:
        return stream
    begins, ends, firsts = cut(stream, config)
    keep = np.maximum.reduceat(ends - begins, firsts[:-1]) >= config.min_unit_characters
    if short := int(count - keep.sum()):
        counts["dropped_short_units"] += short
    return stream.kept(keep, counts)


@njit(cache=True, nogil=True, inline="always")
def _separated(out: Any, n: Any, first: Any, pending: Any) -> Any:
    """Write the space or line break before a character, unless it is the ``first`` one; returns the next place."""
    if pending and n > first:
        out[n] = 32 if pending == _SPACE else 10
        return n + 1
    return n


@njit(cache=True, nogil=True)
def _clean(
    chars: Any, ends: Any, d: int, treated: Any, least: int, out: Any, docs: Any, kept: int, why: Any, removed: Any
) -> Any:
    """Clean the documents from number ``d`` on, up to the first one that holds an odd character.

    ``out`` holds ``kept`` documents by now, ``docs`` says where; ``removed``: see :func:`_counts`. Returns (the number
    of that document, or how many there are; how many ``out`` holds).
    """
    kinds, places, parts = treated
    n = docs[kept]
    while d < len(ends) - 1:
        first, hidden, unreadable = n, 0, 0
        pending: Any = _PLAIN
        more: Any = 0
        i, stop = ends[d], ends[d + 1]
        while i < stop:
            c = chars[i]
            kind = kinds[c]
            i += 1
            if kind == _PLAIN:
                n = _separated(out, n, first, pending)
                pending = _PLAIN
                out[n] = c
                n += 1
                while i < stop and kinds[chars[np.uint64(i)]] == _PLAIN:  # unsigned: numba asks nothing of it
                    out[np.uint64(n)] = chars[np.uint64(i)]
                    n += 1
                    i += 1
            elif kind <= _BREAK:
                pending = kind if kind > pending else pending
            elif kind >= _MAPPED:
                at = np.int64(places[c])
                more += np.int64(kind) - _MAPPED
                for k in range(at, at + np.int64(kind) - _MAPPED + 1):
                    if kinds[parts[k]] == _SPACE:
                        pending = _SPACE if pending == 0 else pending
                        continue
                    n = _separated(out, n, first, pending)
                    pending = _PLAIN
                    out[n] = parts[k]
                    n += 1
            elif kind == _ODD:
                return d, kept
            else:
                hidden += c != _UNREADABLE
                unreadable += c == _UNREADABLE
        why[d] = 0 if n - first >= least else (2 if n > first else 1)
        if why[d]:
            n = first
        else:
            kept += 1
            docs[kept] = n
            removed[0] += hidden
            removed[1] += unreadable
            removed[2] += more
        d += 1
    return d, kept

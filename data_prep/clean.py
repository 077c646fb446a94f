"""The text of a document, made regular, and the units it is cut into."""

from __future__ import annotations

import re
import unicodedata

from data_prep.config import CleanConfig

# Never seen by a reader of the text: control characters without meaning for layout, soft hyphen, zero width
# and bidirectional marks, variation selectors, fillers, byte order mark, replacement and object characters,
# surrogates, private use, noncharacters. Unassigned characters stay: a later Unicode may have assigned them.
_INVISIBLE = re.compile(
    "["
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad"
    "\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U0001fffe\U0001ffff\U000e0000-\U000e0fff\U000f0000-\U0010ffff"
    "]+"
)
_BREAK = re.compile("\r\n?|[\v\f\x1c-\x1f\x85\u2028\u2029]")
_SPACES = re.compile(r"[^\S\n]{2,}|[^\S\n ]")
_EDGES = re.compile(r" *\n[\n ]*")

_CLOSERS = "”’\"'）)】」』》〉］\\]｝}〕〗〙〛＂＇»›﹂﹄"
_STOPS = "。！？…｡"
# An ASCII ! or ? ends a sentence only where no ASCII letter follows at once: not in a?b=c or Yahoo!News.
_OPENERS = "“‘„«\"'(\\["
# A full stop ends a sentence before a space and a capital, but not after initials and common titles.
_DOT = (
    r"(?<!\s)(?<!\b\w)(?i:(?<!\b(?:dr|mr|ir|ds|st|nr|no|mw|ms))(?<!\b(?:dhr|drs|ing|mrs))(?<!\b(?:prof|mevr|bijv)))"
    rf"\.(?=[{_CLOSERS}]*\s[{_OPENERS}]*[A-ZÀ-ÖØ-Þ])"
)
_END = re.compile(f"(?:(?:[{_STOPS}]|[!?](?=[!?{_CLOSERS}\\s]|[^\x00-\x7f]|$))+|{_DOT})[{_CLOSERS}]*")


def clean(text: str, config: CleanConfig) -> tuple[str | None, str]:
    """``text`` made regular, or the reason why the document is dropped.

    Invisible and private characters go, the Unicode form is ``config.unicode``, runs of white space inside
    a line become one space, every kind of line break becomes ``\\n``, empty lines go. Cleaning twice changes
    nothing more.

    Returns:
        ``(text, "")``, or ``(None, reason)`` with reason ``empty``, ``too_short`` or ``short_units`` (none of its
        units is long enough).
    """
    text = _BREAK.sub("\n", _INVISIBLE.sub("", text))
    if config.unicode != "none":
        text = unicodedata.normalize(config.unicode, text)
    text = _EDGES.sub("\n", _SPACES.sub(" ", text)).strip(" \n")
    if not text:
        return None, "empty"
    if len(text) < config.min_characters:
        return None, "too_short"
    if config.min_unit_characters and max(map(len, units(text, config))) < config.min_unit_characters:
        return None, "short_units"
    return text, ""


def units(text: str, config: CleanConfig) -> list[str]:
    """What sequences are put together from: the lines of a cleaned text, or its sentences.

    Joined they give ``text`` without its newlines; none is empty. Short ones are still among them.
    """
    return text.split("\n") if config.unit == "line" else sentences(text)


def sentences(text: str) -> list[str]:
    """The lines of a cleaned text, cut after 。！？…!? and the closing quotes and brackets that follow, and after a
    full stop before a space and a capital (not after initials and titles: J. R. Smith, Dr. Jansen).

    Joined they give ``text`` without its newlines; none is empty. A line without any stop stays whole,
    however long: sequences are cut to length later.
    """
    out: list[str] = []
    for line in text.split("\n"):
        start = 0
        for match in _END.finditer(line):
            out.append(line[start : match.end()])
            start = match.end()
        if start < len(line):
            out.append(line[start:])
    return out

"""Cleaning, sentences and continuation bits text by text: the definition that the kernels are held to."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

import numpy as np
import xxhash

from data_prep.config import CleanConfig
from data_prep.segment import Segmenter
from data_prep.tokenizer_base import Tokenizer

Units = list[tuple[list[int], list[bool]]]

INVISIBLE = re.compile(
    "["
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad"
    "\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U0001fffe\U0001ffff\U000e0000-\U000e0fff\U000f0000-\U0010ffff"
    "]+"
)
BREAK = re.compile("\r\n?|[\v\f\x1c-\x1f\x85\u2028\u2029]")
SPACES = re.compile(r"[^\S\n]{2,}|[^\S\n ]")
EDGES = re.compile(r" *\n[\n ]*")

CLOSERS = "”’\"'）)】」』》〉］\\]｝}〕〗〙〛＂＇»›﹂﹄"
STOPS = "。！？…｡"
OPENERS = "“‘„«\"'(\\["
DOT = (
    r"(?<!\s)(?<!\b\w)(?i:(?<!\b(?:dr|mr|ir|ds|st|nr|no|mw|ms))(?<!\b(?:dhr|drs|ing|mrs))(?<!\b(?:prof|mevr|bijv)))"
    rf"\.(?=[{CLOSERS}]*\s[{OPENERS}]*[A-ZÀ-ÖØ-Þ])"
)
END = re.compile(f"(?:(?:[{STOPS}]|[!?](?=[!?{CLOSERS}\\s]|[^\x00-\x7f]|$))+|{DOT})[{CLOSERS}]*")


def clean(text: str, config: CleanConfig) -> tuple[str | None, str]:
    """``(text, "")``, or ``(None, reason)``."""
    text = in_form(INVISIBLE.sub("", text), config)
    text = EDGES.sub("\n", SPACES.sub(" ", text)).strip(" \n")
    if not text:
        return None, "empty"
    if len(text) < config.min_characters:
        return None, "too_short"
    if config.min_unit_characters and max(map(len, units(text, config))) < config.min_unit_characters:
        return None, "short_units"
    return text, ""


def in_form(text: str, config: CleanConfig) -> str:
    """``text`` without invisible characters, with one kind of line break, in the Unicode form."""
    text = BREAK.sub("\n", text)
    return text if config.unicode == "none" else unicodedata.normalize(config.unicode, text)


def lost(text: str, config: CleanConfig) -> Counter[str]:
    """Characters of a text that cleaning keeps, by what becomes of them."""
    kept, _ = clean(text, config)
    assert kept is not None
    seen = INVISIBLE.sub("", text)
    unreadable = text.count("\ufffd")
    more = len(in_form(seen, config)) - len(BREAK.sub("\n", seen))
    found = Counter(
        removed_invisible=len(text) - len(seen) - unreadable,
        removed_undecodable=unreadable,
        removed_white_space=len(seen) + more - len(kept),
        characters_rewritten=more,
    )
    return found


def units(text: str, config: CleanConfig) -> list[str]:
    return text.split("\n") if config.unit == "line" else sentences(text)


def sentences(text: str) -> list[str]:
    out: list[str] = []
    for line in text.split("\n"):
        start = 0
        for match in END.finditer(line):
            out.append(line[start : match.end()])
            start = match.end()
        if start < len(line):
            out.append(line[start:])
    return out


def encode(text: str, tokenizer: Tokenizer, segmenter: Segmenter, rule: CleanConfig) -> Units:
    """The units of a cleaned text that are long enough and have tokens, as (ids, continuation bits)."""
    starts = [s for s, c in zip(segmenter.word_starts(text).tolist(), text, strict=True) if c != "\n"]
    out, at = [], 0
    for unit in units(text, rule):
        ids, places = (found.tolist() for found in tokenizer.encode([unit])[0])
        bits = [t > 0 and (not starts[at + place] or place == places[t - 1]) for t, place in enumerate(places)]
        if len(unit) >= rule.min_unit_characters and ids:
            out.append((ids, bits))
        at += len(unit)
    return out


def is_held_out(text: str, seed: int, below: int) -> bool:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8"), seed=seed & 0xFFFFFFFFFFFFFFFF) < below


def split(lengths: np.ndarray, values: np.ndarray) -> list[list]:
    """``values`` in runs of ``lengths``."""
    return [part.tolist() for part in np.split(values, np.cumsum(lengths)[:-1])] if len(lengths) else []

"""What BERT's normaliser and pre-tokenizer make of each character, asked of `tokenizers` once.

Every character of Unicode is, wherever it stands, one of: a space; a token by itself; a letter of a word; several
letters; or nothing. (The one thing that depends on neighbours is the order of combining marks, see ``REORDERED``.)
So a word is what stands between two characters of the first two kinds.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep import wordpiece_kernel
from data_prep.cache import cached_arrays, code_hash
from data_prep.tokenizer_base import library
from data_prep.wordpiece_kernel import INVALID, REORDERED

# As in BERT's `_is_chinese_char`: these are tokens by themselves.
HAN = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
_COMPATIBLE = ((0xF900, 0xFAFF), (0x2F800, 0x2FA1F))
# Uniform blocks of which one character tells all: Han, private use, and what is not assigned.
_UNIFORM = (
    *(block for block in HAN if block not in _COMPATIBLE),
    (0xE000, 0xF8FF), (0x2CEB0, 0x2F7FF), (0x2FA20, 0xDFFFF), (0xE1000, 0xEFFFF),
    (0xF0000, 0xFFFFD), (0x100000, 0x10FFFD),
)  # fmt: skip
_SURROGATES = (0xD800, 0xDFFF)
SINGLE, SPACE, LETTER = 0, 1, 2


@dataclass(frozen=True)
class Letters:
    """Arrays over all code points.

    ``kinds``: uint8 [0x110000], SINGLE, SPACE or LETTER.
    ``letters``: int32 [0x110000]. SINGLE: the character as the vocabulary writes it (lower case, without accent).
    LETTER: the same, perhaps with the bit REORDERED; 0 if nothing is left of it; -k if it is ``more[k]`` letters, which
    follow there; INVALID for surrogates.
    ``more``: int32 [m].
    """

    kinds: npt.NDArray[np.uint8]
    letters: npt.NDArray[np.int32]
    more: npt.NDArray[np.int32]


def normalizer(lowercase: bool, strip_accents: bool | None, chinese: bool) -> Any:
    """BERT's, of `tokenizers`."""
    return library().normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase
    )


@lru_cache(maxsize=8)
def read_letters(lowercase: bool, strip_accents: bool | None, chinese: bool) -> Letters:
    """The arrays for these settings of the normaliser, from the cache folder or built (0.2 s, and 50 MiB meanwhile)."""
    versions = f"{library().__version__}-{unicodedata.unidata_version}"
    key = f"{code_hash(__file__, wordpiece_kernel.__file__)}-{versions}-{lowercase}-{strip_accents}-{chinese}"
    return Letters(**cached_arrays("letters", key, lambda: vars(_build(lowercase, strip_accents, chinese))))


def _build(lowercase: bool, strip_accents: bool | None, chinese: bool) -> Letters:
    kinds = np.full(0x110000, LETTER, np.uint8)
    letters = np.arange(0x110000, dtype=np.int32)
    asked = np.ones(0x110000, np.bool_)
    for first, last in (*_UNIFORM, _SURROGATES):
        asked[first : last + 1] = False
    codes = [code for code in np.flatnonzero(asked).tolist() if not _plain(code)]
    codes += [first for first, _ in _UNIFORM]
    more: list[int] = [0, 0]
    decomposes = lowercase if strip_accents is None else strip_accents
    normalized = _normalized(codes, normalizer(lowercase, strip_accents, chinese))
    punctuation = _punctuation({word for words in normalized for word in words if len(word) == 3})
    for code, words in zip(codes, normalized, strict=True):
        found = words[0][1:-1] if len(words) == 1 else words[1]
        if len(words) == 2:
            kinds[code] = SPACE
        elif len(words) == 3 or found in punctuation:
            kinds[code] = SINGLE
            letters[code] = ord(found)
        elif len(found) > 1:
            letters[code] = -len(more)
            more += [len(found), *map(ord, found)]
        else:
            letters[code] = ord(found) if found else 0
            if found and decomposes and _may_move(chr(code)):
                letters[code] |= REORDERED
    for first, last in _UNIFORM:
        kinds[first : last + 1] = kinds[first]
        if letters[first] == 0:
            letters[first : last + 1] = 0
    letters[_SURROGATES[0] : _SURROGATES[1] + 1] = INVALID
    return Letters(kinds, letters, np.array(more, np.int32))


def _plain(code: int) -> bool:
    """A letter that stays as it is: of a script without case and accents.

    Hangul has accents in this sense; some Han are tokens by themselves.
    """
    character = chr(code)
    if unicodedata.category(character) != "Lo" or unicodedata.decomposition(character):
        return False
    return not (0xAC00 <= code <= 0xD7A3 or 0xF900 <= code <= 0xFAFF or 0x2F800 <= code <= 0x2FA1F)


def _may_move(character: str) -> bool:
    """Canonical ordering may do so; also with a character that this Python's Unicode does not know yet."""
    return unicodedata.combining(character) > 0 or unicodedata.category(character) == "Cn"


def _normalized(codes: list[int], normalizer: Any) -> list[list[str]]:
    """For each character what becomes of the text ``x?y``: ``[x?y]``, ``[x, ?, y]`` or ``[x, y]``."""
    text: str = normalizer.normalize_str(" ".join([f"x{chr(code)}y" for code in codes]))
    out: list[list[str]] = []
    words: list[str] = []
    for word in text.split(" "):
        if not word:
            continue
        words.append(word)
        if word[-1] == "y" and (word[0] == "x" or len(words) > 1):
            out.append(words)
            words = []
    return out


def _punctuation(words: set[str]) -> set[str]:
    """The ``?`` of words ``x?y`` that are tokens by themselves."""
    parts = library().pre_tokenizers.BertPreTokenizer().pre_tokenize_str("".join(sorted(words)))
    return {part for part, _ in parts if len(part) == 1} - {"x", "y"}

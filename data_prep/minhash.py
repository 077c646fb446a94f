"""MinHash signatures of documents, and which of their values make a band (Broder 1997; Leskovec et al., Mining of
Massive Datasets, chapter 3).

A document is the set of its n-grams of characters, taken from its letters and digits in lower case: spaces, line
breaks and punctuation make no difference. The share of places in which two signatures agree estimates the Jaccard
similarity of the two sets, with standard deviation sqrt(J (1 - J) / permutations). The permutations and their minima
are rensa's; n-grams are hashed here.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from configs.errors import DataError
from data_prep.config_quality import NearConfig
from data_prep.hashing import GOLDEN, mix

RECALL = 0.97
"""Of pairs at the threshold so many at least must share a band."""
EMPTY = np.uint32(0xFFFFFFFF)
"""Fills the signature of a document without letters and digits, which is like no other."""
_SEED = 0x5EED
_FACTOR = np.uint64(0xD6E8FEB86659FD93)


def signatures(chars: NDArray[np.uint32], documents: NDArray[np.int64], near: NearConfig) -> NDArray[np.uint32]:
    """uint32 [d, permutations] of the documents ``chars[documents[i]:documents[i + 1]]``.

    A document with fewer than ``near.ngram`` letters and digits is the set of one shorter n-gram.
    """
    hashes, rows = ngram_hashes(chars, documents, near.ngram)
    matrix = _rensa().RMinHash.digest_matrix_from_flat_token_hashes(hashes, rows, near.permutations, _SEED)
    return np.array(matrix.to_rows(), np.uint32).reshape(len(documents) - 1, near.permutations)


def describe_signatures() -> str:
    """What signatures depend on beside the settings."""
    return f"rensa RMinHash {_rensa().RMinHash.ALGORITHM_VERSION}"


def _rensa() -> Any:
    try:
        import rensa
    except ImportError as error:
        raise DataError(
            f"`data.dedup.near` needs rensa, which cannot be loaded ({error}): `pip install rensa`, or remove the "
            "setting."
        ) from None
    return rensa


def ngram_hashes(
    chars: NDArray[np.uint32], documents: NDArray[np.int64], n: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(uint64 [m], the hashed n-grams of all documents, also repeated ones; uint64 [d + 1], where each begins)."""
    out, rows = np.empty(len(chars) + 1, np.uint64), np.zeros(len(documents), np.uint64)
    size = _ngrams(np.asarray(chars, np.uint32), np.asarray(documents, np.int64), n, _letters(), out, rows)
    return out[:size], rows


@cache
def _letters() -> NDArray[np.uint32]:
    """uint32 [0x110000]: a letter or digit in lower case (where that is one character); 0 for all others."""
    table = np.zeros(0x110000, np.uint32)
    for code in range(0x40000):
        character = chr(code)
        if character.isalnum():
            lower = character.lower()
            table[code] = ord(lower) if len(lower) == 1 else code
    return table


@njit(cache=True, nogil=True)
def _ngrams(chars: Any, documents: Any, n: int, letters: Any, out: Any, rows: Any) -> int:
    m = 0
    highest = np.uint64(1)  # the factor of the oldest character of a window
    for _ in range(n - 1):
        highest *= _FACTOR
    window = np.empty(n, np.uint64)
    for d in range(len(documents) - 1):
        seen = 0
        rolling = np.uint64(0)
        for i in range(documents[d], documents[d + 1]):
            letter = np.uint64(letters[chars[i]])
            if letter == 0:
                continue
            place = seen % n
            if seen >= n:
                rolling -= window[place] * highest
            rolling = rolling * _FACTOR + letter
            window[place] = letter
            seen += 1
            if seen >= n:
                out[m] = mix(rolling * GOLDEN)
                m += 1
        if 0 < seen < n:
            out[m] = mix(rolling * GOLDEN + np.uint64(seen))
            m += 1
        rows[d + 1] = m
    return m


def bands(near: NearConfig) -> tuple[int, int]:
    """(bands, rows): two documents are compared when they agree in all ``rows`` values of one of the ``bands``.

    The longest rows with which a pair at the threshold meets with probability :data:`RECALL` or more; what meets by
    chance is sorted out by the comparison of whole signatures.
    """
    for rows in range(near.permutations, 0, -1):
        count = near.permutations // rows
        if 1 - (1 - near.threshold**rows) ** count >= RECALL:
            return count, rows
    return near.permutations, 1


def band_keys(values: NDArray[np.uint32], band: int, rows: int) -> NDArray[np.uint64]:
    """uint64 [d]: a hash of the band's values in each signature of ``values`` (uint32 [d, permutations])."""
    return np.asarray(_band_keys(values, band * rows, rows), np.uint64)


@njit(cache=True, nogil=True)
def _band_keys(values: Any, first: int, rows: int) -> Any:
    out = np.empty(len(values), np.uint64)
    for d in range(len(values)):
        key = np.uint64(first)
        for i in range(first, first + rows):
            key = mix(key * GOLDEN + np.uint64(values[d, i]) + GOLDEN)
        out[d] = key
    return out

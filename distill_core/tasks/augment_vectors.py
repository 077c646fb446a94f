"""Nearest words by word vectors (TinyBERT's data augmentation takes GloVe's for words of several pieces)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from data_prep.documents import Counts
from data_prep.readers.streams import Lines, check_file

BLOCK = 1 << 24
"""Similarities held at a time."""


class Vectors:
    """Unit vectors of words, and the nearest words of each word, found once.

    ``words``: list of n; ``units``: float32 [n, d]; ``counts``: rows dropped, by reason.
    """

    def __init__(self, words: list[str], units: NDArray[np.float32], counts: Counts) -> None:
        self.words, self.units, self.counts = words, units, counts
        self._number = {word: number for number, word in enumerate(words)}
        self._found: dict[tuple[int, int], tuple[str, ...]] = {}

    def row(self, word: str) -> int | None:
        """The row of ``word``, or of its lower case."""
        return self._number.get(word, self._number.get(word.lower()))

    def learn(self, words: Iterable[str], k: int) -> None:
        """Find the neighbours of all known ``words`` in blocks of one matrix product each."""
        rows = {row for word in words if (row := self.row(word)) is not None}
        new = np.array(sorted(row for row in rows if (row, k) not in self._found), np.int64)
        k_possible = min(k, len(self.words) - 1)
        step = max(1, BLOCK // len(self.words))
        for first in range(0, len(new), step):
            block = new[first : first + step]
            near = _nearest(self.units, block, k_possible)
            for row, numbers in zip(block.tolist(), near.tolist(), strict=True):
                self._found[row, k] = tuple(self.words[number] for number in numbers)

    def neighbours(self, word: str, k: int) -> tuple[str, ...]:
        """The ``k`` words of the largest cosine, nearest first, never the word itself; () for an unknown word."""
        row = self.row(word)
        if row is None:
            return ()
        if (row, k) not in self._found:
            self.learn([word], k)
        return self._found[row, k]


def _nearest(units: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """int64 [rows, k]: the rows of ``units`` nearest to each of ``rows``, itself left out."""
    if not k:
        return np.zeros((len(rows), 0), np.int64)
    cosines = units[rows] @ units.T
    cosines[np.arange(len(rows)), rows] = -np.inf
    near = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(cosines, near, 1), axis=1, kind="stable")
    return np.take_along_axis(near, order, 1)


def read_vectors(path: str | Path, limit: int) -> Vectors:
    """The first ``limit`` rows of a text file: a word and its numbers a line (GloVe, or word2vec with its head line).

    A row of zeros has no direction (in the published code its cosines become NaN): it is dropped, as are rows of
    another length, with numbers that are not finite, and words that stood before. Plain or ``.gz``, ``.zst``, ``.xz``.

    Raises:
        DataError: the file is missing, damaged or holds no vectors.
    """
    if not Path(path).is_file():
        raise DataError(f"There is no file of word vectors {path}; correct `vectors`.")
    check_file(str(path))
    counts = Counts()
    kept: dict[str, NDArray[np.float32]] = {}
    width = 0
    lines = Lines(str(path))
    for number, (_, line) in enumerate(lines):
        fields = [] if line is None else line.split()
        if number == 0 and len(fields) == 2 and all(field.isdigit() for field in fields):
            limit += 1  # word2vec's head: how many words, how many numbers
            continue
        if number >= limit:
            break
        width = width or len(fields) - 1
        word, vector = _parse(fields, width, counts)
        if word and word in kept:
            counts.drop("repeated_word")
        elif word:
            kept[word] = vector
    if lines.damage:
        raise DataError(f"The word vectors {path} are a {lines.damage.replace('_', ' ')}. Fetch them again.")
    if not kept:
        raise DataError(
            f"{path} holds no word vectors (dropped: {counts.dropped or 'nothing'}): each line is a word and its "
            "numbers, with spaces between, as GloVe's and word2vec's text files are."
        )
    return Vectors(list(kept), np.stack(list(kept.values())), counts)


def _parse(fields: list[bytes], width: int, counts: Counts) -> tuple[str, NDArray[np.float32]]:
    """The word and its unit vector; an empty word for a row that is dropped."""
    nothing = np.zeros(0, np.float32)
    if width < 1 or len(fields) != width + 1:
        counts.drop("another_length")
        return "", nothing
    try:
        word = fields[0].decode("utf-8")
        vector = np.array(fields[1:], dtype=np.float32)
    except ValueError:  # UnicodeDecodeError is one
        counts.drop("not_numbers")
        return "", nothing
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(norm):
        counts.drop("not_finite")
        return "", nothing
    if norm == 0:
        counts.drop("zero_norm")
        return "", nothing
    return word, (vector / np.float64(norm)).astype(np.float32)

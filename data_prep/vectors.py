"""Nearest words by word vectors: for TinyBERT's data augmentation, and MacBERT's similar words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import BufferedReader, FileIO
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from data_prep.documents import Counts
from data_prep.readers.streams import Decompressed, Lines, check_file, compression

Ints = NDArray[np.int64]

BLOCK = 1 << 24
"""Similarities held at a time."""
MAX_WIDTH, MAX_WORD = 1 << 16, 1 << 12


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
            near, _ = nearest(self.units, block, k_possible)
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


def nearest(units: NDArray[np.float32], rows: Ints, k: int) -> tuple[Ints, NDArray[np.float32]]:
    """(int64 [rows, k], the rows of ``units`` nearest to each of ``rows``, itself left out; float32, their cosines)."""
    if not k:
        return np.zeros((len(rows), 0), np.int64), np.zeros((len(rows), 0), np.float32)
    cosines = units[rows] @ units.T
    cosines[np.arange(len(rows)), rows] = -np.inf
    near = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
    found = np.take_along_axis(cosines, near, 1)
    order = np.argsort(-found, axis=1, kind="stable")
    return np.take_along_axis(near, order, 1), np.take_along_axis(found, order, 1)


def read_vectors(path: str | Path, limit: int) -> Vectors:
    """The first ``limit`` rows of a file: a word and its numbers a line (GloVe, or word2vec with its head line), or
    word2vec's binary format if its name ends in ``.bin``. Plain or with ``.gz``, ``.zst``, ``.xz`` behind.

    A row of zeros has no direction (in the published code its cosines become NaN): it is dropped, as are rows of
    another length, with numbers that are not finite, and words that stood before.

    Raises:
        DataError: the file is missing, damaged or holds no vectors.
    """
    if not Path(path).is_file():
        raise DataError(f"There is no file of word vectors {path}; correct `vectors`.")
    check_file(str(path))
    counts = Counts()
    kept: dict[str, NDArray[np.float32]] = {}
    binary = str(path).lower().removesuffix(compression(str(path))).endswith(".bin")
    for raw in islice(_binary_rows(str(path)) if binary else _text_rows(str(path)), limit):
        word, vector = _parse(raw, counts)
        if word and word in kept:
            counts.drop("repeated_word")
        elif word:
            kept[word] = vector
    if not kept:
        raise DataError(
            f"{path} holds no word vectors (dropped: {counts.dropped or 'nothing'}): each line is a word and its "
            "numbers, with spaces between, as GloVe's and word2vec's text files are; the name of a file in "
            "word2vec's binary format ends in .bin."
        )
    return Vectors(list(kept), np.stack(list(kept.values())), counts)


Row = tuple[bytes, NDArray[np.float32] | None, str]
"""A word, its numbers, or why there are none."""


def _text_rows(path: str) -> Iterator[Row]:
    lines, width = Lines(path), 0
    for number, (_, line) in enumerate(lines):
        fields = [] if line is None else line.split()
        if number == 0 and len(fields) == 2 and all(field.isdigit() for field in fields):
            continue  # word2vec's head: how many words, how many numbers
        width = width or len(fields) - 1
        if width < 1 or len(fields) != width + 1:
            yield b"", None, "another_length"
            continue
        try:
            yield fields[0], np.array(fields[1:], dtype=np.float32), ""
        except ValueError:
            yield b"", None, "not_numbers"
    if lines.damage:
        raise DataError(f"The word vectors {path} are a {lines.damage.replace('_', ' ')}. Fetch them again.")


def _binary_rows(path: str) -> Iterator[Row]:
    """Rows of word2vec's binary format: a head line, then each word, a space, float32 numbers, maybe a newline."""
    raw = Decompressed(path) if compression(path) else FileIO(path)
    with BufferedReader(raw, 1 << 18) as stream:
        head = stream.readline(64).split()
        if len(head) != 2 or not all(field.isdigit() for field in head) or not 0 < int(head[1]) <= MAX_WIDTH:
            raise DataError(
                f"{path} does not begin with word2vec's binary head (the numbers of words and of dimensions). If it is "
                "a text file, give it a name that does not end in .bin."
            )
        words, width = (int(field) for field in head)
        for _ in range(words):
            word = bytearray()
            while (byte := stream.read(1)) not in (b" ", b"") and len(word) < MAX_WORD:
                word += byte
            numbers = stream.read(4 * width)
            if byte != b" " or len(numbers) != 4 * width:
                raise DataError(f"The word vectors {path} end or break within their {words} rows. Fetch them again.")
            yield bytes(word.lstrip(b"\n")), np.frombuffer(numbers, "<f4"), ""


def _parse(row: Row, counts: Counts) -> tuple[str, NDArray[np.float32]]:
    """The word and its unit vector; an empty word for a row that is dropped."""
    nothing = np.zeros(0, np.float32)
    raw, vector, reason = row
    if vector is None:
        counts.drop(reason)
        return "", nothing
    try:
        word = raw.decode("utf-8")
    except UnicodeDecodeError:
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

"""The texts that are looked through and looked for: sequences of a corpus, or the rows of a task. Never their labels.

A text is known by the hash of its token ids, special ones included, so that exact duplicates are found.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_prep.corpus import Split, offsets_of, spread
from distill_core.tasks.data import TaskData

Ints = NDArray[np.int64]
BLOCK = 1024
"""Texts that are held at a time."""


@dataclass(frozen=True)
class Texts:
    """n texts as one stream.

    ``ids``: int64 [N]; ``offsets``: int64 [n + 1]; ``groups``: int64 [n], texts of one group are never references of
    one another, -1: of none; ``types``: int64 [N], 1 in the second text of a pair; ``hidden``: int64, rows of the
    stream that are not looked at when a reference is looked for.
    """

    ids: Ints
    offsets: Ints
    groups: Ints
    types: Ints
    hidden: Ints

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """uint64 [n]: xxh3 of each text's ids as little-endian int32."""
        content = self.ids.astype("<i4").tobytes()
        ends = (4 * self.offsets).tolist()
        parts = itertools.pairwise(ends)
        return np.array([xxhash.xxh3_64_intdigest(content[a:b]) for a, b in parts], np.uint64)


class TextSource(Protocol):
    def __len__(self) -> int: ...

    def texts(self, index: Ints) -> Texts: ...


@dataclass(frozen=True)
class CorpusTexts:
    """The sequences of a split. Words that its mask view 0 hides are not looked at, as they are what is to be guessed.

    ``documents``: whether these texts become references, and so have groups.
    """

    split: Split
    documents: bool

    def __len__(self) -> int:
        return len(self.split)

    def texts(self, index: Ints) -> Texts:
        found = self.split.gather(index, with_bits=False)
        masks = self.split.masks(index, np.zeros(len(index), np.int64))
        hidden = np.repeat(found.offsets[:-1], np.diff(masks.offsets)) + masks.positions
        types = np.zeros(len(found.ids), np.int64) if found.types is None else found.types.astype(np.int64)
        groups = np.asarray(index, np.int64) if self.documents else np.full(len(index), -1)
        return Texts(found.ids.astype(np.int64), found.offsets, groups, types, hidden)


class TaskTexts:
    """The sequences of a task's rows. A group: the sequences cut from a row, and from the rows made out of it."""

    def __init__(self, data: TaskData, documents: bool) -> None:
        self.data = data
        families = families_of([row.id for row in data.rows])
        self.groups = families[data.owner] if documents else np.full(len(data), -1)

    def __len__(self) -> int:
        return len(self.data)

    def texts(self, index: Ints) -> Texts:
        data = self.data
        lengths = data.lengths(index).astype(np.int64)
        where = spread(data.offsets[index], lengths)
        positions = where - np.repeat(data.offsets[index], lengths)
        types = (positions >= np.repeat(data.seconds[index], lengths)).astype(np.int64)
        return Texts(data.ids[where], offsets_of(lengths), self.groups[index], types, np.zeros(0, np.int64))


def families_of(ids: Sequence[str]) -> Ints:
    """int64 [n]: numbers the rows, but rows that augmentation made (``<id>#<number>``, after their row) as that row."""
    numbers, base, family = [], "", -1
    for id in ids:
        made = family >= 0 and id.startswith(f"{base}#") and id[len(base) + 1 :].isdigit()
        if not made:
            base, family = id, family + 1
        numbers.append(family)
    return np.array(numbers, np.int64)


def blocks(source: TextSource, index: Ints, size: int = BLOCK) -> Iterator[Texts]:
    """The texts ``index``, some at a time."""
    for first in range(0, len(index), size):
        yield source.texts(index[first : first + size])


def one_stream(sequences: Sequence[Sequence[int]]) -> Texts:
    """Texts that are given as lists of token ids (with special tokens)."""
    ids = np.array([token for sequence in sequences for token in sequence], np.int64)
    offsets = offsets_of(np.array([len(sequence) for sequence in sequences], np.int64))
    groups = np.full(len(sequences), -1)
    return Texts(ids, offsets, groups, np.zeros(len(ids), np.int64), np.zeros(0, np.int64))

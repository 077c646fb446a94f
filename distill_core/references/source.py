"""A source of batches that carry references: around a corpus's split or a task's rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from distill_core.batch import Batch
from distill_core.data import Source
from distill_core.models.attention import Kernel
from distill_core.references.store import ReferenceStore

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ReferencedSource:
    """``matches``: int64 [n], for each sequence of ``source`` its reference's number in the store, -1: none.

    Lengths, and so the cutting of batches, are those of the sequences: ``micro_batch_tokens`` counts no references.
    """

    source: Source
    matches: Ints
    store: ReferenceStore

    def __len__(self) -> int:
        return len(self.source)

    def lengths(self, index: Ints) -> NDArray[np.int32]:
        return self.source.lengths(index)

    def batch(self, index: Ints, epochs: Ints, kernel: Kernel) -> Batch:
        batch = self.source.batch(index, epochs, kernel)
        return replace(batch, references=self.store.references(np.asarray(self.matches[index])))

"""The same real text for everyone: prepared corpora, and our batches as padded ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_prep.config import DataConfig
from data_prep.corpus import Corpus
from data_prep.pipeline import prepare
from distill_core.batch import Batch

UNLABELLED = -100
PARAGRAPH = 24
"""Characters of the shortest line that counts as a paragraph: without headings, articles fill half of 128 tokens."""


@dataclass(frozen=True)
class Padded:
    """``ids``, ``attended``, ``labels``: int64 [B, L]; labels are -100 where nothing was masked."""

    ids: Tensor
    attended: Tensor
    labels: Tensor
    tokens: int

    def to(self, device: torch.device) -> Padded:
        return Padded(self.ids.to(device), self.attended.to(device), self.labels.to(device), self.tokens)


def prepared(text: str, sources: list[str], vocabulary: Path | int, folder: Path, megabytes: float = 4.0) -> Corpus:
    """The beginning of each source as sequences of the kind that ``text`` (``KIND-LENGTH``) names.

    Args:
        vocabulary: vocab.txt, or the size of one that is trained on the text.
    """
    kind, length = text.rsplit("-", 1)
    share = megabytes / len(sources)
    config = DataConfig.model_validate(
        {
            "sources": [{"path": source, "max_megabytes": share} for source in sources],
            "clean": {"unit": "line", "min_unit_characters": PARAGRAPH},
            "tokenizer": {"vocab_size": vocabulary} if isinstance(vocabulary, int) else {"vocab": str(vocabulary)},
            "sequences": {"kind": kind, "max_length": int(length)}
            | ({"drop_remainder": True} if kind == "packed" else {}),
            "masks": {"views": 1},
            "workers": 1,
        }
    )
    return prepare(config, folder / text)


def padded(batch: Batch, length: int, pad: int) -> Padded:
    """A token stream as [B, length]."""
    lengths = batch.layout.lengths
    rows = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    ids = torch.full((len(lengths), length), pad)
    attended, labels = torch.zeros_like(ids), torch.full_like(ids, UNLABELLED)
    ids[rows, batch.positions] = batch.ids.long()
    attended[rows, batch.positions] = 1
    if batch.rows is not None and batch.labels is not None:
        labels[rows[batch.rows], batch.positions[batch.rows]] = batch.labels
    return Padded(ids, attended, labels, batch.n_tokens)

"""A batch: one stream of real tokens. There is no padding anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill_core.decoder import Rows
from distill_core.models.attention import AttentionLayout, Kernel, layout
from distill_core.references.reference import References

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Count = Literal["tokens", "masked", "sampled", "sequences", "pairs", "targets"]
"""What losses are averaged over. ``pairs``: query-key pairs (the sum of squared lengths); ``targets``: labels."""

Move = Callable[[Tensor], Tensor]
T = TypeVar("T", bound="DataclassInstance")

COUNTS: tuple[Count, ...] = ("tokens", "masked", "sampled", "sequences", "pairs", "targets")


@dataclass(frozen=True)
class Stored:
    """A teacher's outputs of a batch, read from a cache (cache.py): [M, width] at the masked rows, [N, H] by layer."""

    vectors: Tensor | None = None
    hidden: dict[int, Tensor] = field(default_factory=dict)

    def moved(self, move: Move) -> Stored:
        vectors = None if self.vectors is None else move(self.vectors)
        return Stored(vectors, {i: move(values) for i, values in self.hidden.items()})


@dataclass
class Batch:
    """N tokens of B sequences, longest first.

    ``ids``, ``positions``: int32 or int64 [N] (positions from 0 in each sequence); ``layout``: where the sequences lie;
    ``types``: int32 or int64 [N], 0 for the first text and 1 for the second, None: all 0; ``rows``: int64 [M], the
    masked rows of the stream, and ``labels``: int64 [M], the tokens that stood there; ``sampled``: int64 [S], a keyed
    sample of the rows; ``order``: int64 [B], the label of a sentence pair (1: random, or swapped); ``targets``: the
    labels of a task of kind ``task`` (distill_core/tasks/data.py); ``sequence_ids``: uint64 [B], for messages;
    ``stored``: the outputs of each teacher, where they are cached; ``references``: of a student that reads them
    (distill_core/references/); ``own``: by the number of a teacher with another vocabulary: the same sequences, in
    this order, as its tokenizer cuts them (distill_core/tasks/own_tokens.py).
    """

    ids: Tensor
    positions: Tensor
    layout: AttentionLayout
    types: Tensor | None = None
    rows: Tensor | None = None
    labels: Tensor | None = None
    sampled: Tensor | None = None
    order: Tensor | None = None
    targets: Tensor | None = None
    task: str | None = None
    sequence_ids: NDArray[np.uint64] | None = None
    stored: tuple[Stored, ...] = ()
    references: References | None = None
    own: dict[int, Batch] = field(default_factory=dict)
    labelled: int | None = None
    """``n_targets``, where it is known already."""

    @property
    def n_tokens(self) -> int:
        return self.ids.numel()

    @property
    def n_masked(self) -> int:
        return 0 if self.rows is None else self.rows.numel()

    def at(self, rows: Rows) -> Tensor | None:
        """int64, the rows of that kind; None for all of them."""
        if rows == "all":
            return None
        chosen = self.rows if rows == "masked" else self.sampled
        if chosen is None:
            raise ValueError(f"this batch has no {rows} rows")
        return chosen

    def counts(self) -> dict[Count, float]:
        """This batch's part of every count (float64-exact integers)."""
        lengths = self.layout.lengths
        return {
            "tokens": self.n_tokens,
            "masked": self.n_masked,
            "sampled": 0 if self.sampled is None else self.sampled.numel(),
            "sequences": len(lengths),
            "pairs": sum(n * n for n in lengths),
            "targets": self.n_targets,
        }

    @property
    def n_targets(self) -> int:
        """Labelled places: tokens whose label is not -100, or sequences."""
        if self.labelled is not None:
            return self.labelled
        if self.targets is None:
            return 0
        return int((self.targets != IGNORED).sum()) if self.task == "tokens" else len(self.targets)

    def to(self, device: torch.device) -> Batch:
        """On ``device``; out of pinned memory the host does not wait for the copies."""
        return self.moved(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """In page-locked memory, which torch uses again once the copies out of it are done."""
        return self.moved(lambda t: t.pin_memory())

    def moved(self, move: Move) -> Batch:
        """Every tensor of the batch, moved."""
        return replace(
            with_tensors(self, move),
            layout=with_tensors(self.layout, move),
            stored=tuple(stored.moved(move) for stored in self.stored),
            references=None if self.references is None else with_tensors(self.references, move),
            own={number: batch.moved(move) for number, batch in self.own.items()},
            labelled=self.n_targets,  # a device would have to be waited for
        )

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], kernel: Kernel = "runs", rows: Tensor | None = None) -> Batch:
        """The stream of some lists of token ids, in their order (speed wants the longest first)."""
        lengths = [len(ids) for ids in sequences]
        ids = torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.int64)
        positions = torch.cat([torch.arange(length) for length in lengths])
        return cls(ids, positions, layout(lengths, kernel), rows=rows)


def with_tensors(thing: T, move: Move) -> T:
    """A dataclass, its tensors moved."""
    values = {f.name: getattr(thing, f.name) for f in fields(thing)}
    return replace(thing, **{name: move(value) for name, value in values.items() if isinstance(value, Tensor)})


IGNORED = -100
"""The label of a token that carries none (torch's ``ignore_index``)."""

"""Are the teachers' answers finite? A student that learns from others ends as noise, with nothing to say why.

Each micro-batch leaves truth values on the device, which are read where the host looks at the run anyway
(``stage.check_answers``). Only when one is false the step is answered again, to find out which sequences and which
outputs it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from configs.errors import TrainingError
from distill_core.batch import Batch
from distill_core.features import Features

SHOWN = 10
"""Sequence ids in a message."""


def tensors(features: Features, batch: Batch) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """(what it is, values, rows of the stream) of all that a model gave; rows None: one for each sequence or token."""
    for layer, hidden in features.hidden.items():
        yield f"hidden state {layer}", hidden, None
    for layer, heads in features.heads.items():
        for name, values in zip(heads._fields, heads, strict=True):
            yield f"{name} of layer {layer}", values, None
    for rows in features.logits:
        # Of a model: what enters the decoder; the decoder's own weights are looked at when the teacher is loaded.
        yield f"vocabulary logits ({rows} rows)", features.undecoded(rows).vectors, batch.at(rows)
    if features.pooled is not None:
        yield "pooler's output", features.pooled, None
    if features.task is not None:
        yield "task head's output", features.task, None


def finite(features: Features, batch: Batch) -> Tensor:
    """A truth value on the device; False also where finite values are too large to be added up in fp32."""
    sums = [values.detach().sum(dtype=torch.float32) for _, values, _ in tensors(features, batch)]
    return (
        torch.isfinite(torch.stack(sums)).all() if sums else torch.ones((), dtype=torch.bool, device=batch.ids.device)
    )


def offenders(features: Features, batch: Batch) -> tuple[list[str], list[int]]:
    """The outputs that are not finite, and the ids of the sequences in which they are."""
    lengths = torch.tensor(features.where(batch).lengths)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    bad = torch.zeros(len(lengths), dtype=torch.bool)
    what = []
    for name, values, rows in tensors(features, batch):
        wrong = ~torch.isfinite(values).flatten(1).all(1).cpu()
        if wrong.any():
            what.append(name)
            by_token = owner if rows is None else owner[rows.cpu()]
            bad[(by_token if len(wrong) == len(by_token) else torch.arange(len(lengths)))[wrong]] = True
    places = torch.nonzero(bad).flatten().tolist()
    ids = np.arange(len(lengths), dtype=np.uint64) if batch.sequence_ids is None else batch.sequence_ids
    return what, [int(ids[place]) for place in places]


def check_teachers(batch: Batch, taught: Sequence[Features], names: Sequence[str], where: str) -> None:
    """Raise :class:`TrainingError` when a teacher's answers to ``batch`` are not finite.

    Args:
        taught: of each teacher.
        names: of the teachers.
        where: stage and step, for the message.
    """
    for features, name in zip(taught, names, strict=True):
        what, ids = offenders(features, batch)
        if what:
            shown = ", ".join(map(str, ids[:SHOWN])) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")
            raise TrainingError(
                f"{where}: the teacher {name} gives values that are not finite ({what[0]}) for the sequences "
                f"{shown}. This is not the student diverging: look whether the teacher's weights are whole, or "
                "try training.precision: fp32 if it was trained in 16 bits of another kind."
            )

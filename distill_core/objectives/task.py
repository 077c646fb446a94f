"""Losses on a task's outputs: the labels' (``task``) and the teacher's (``task_kd``)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from configs.errors import ConfigError
from distill_core.batch import IGNORED, Batch
from distill_core.decoder import wide
from distill_core.features import FeatureRequest, Features
from distill_core.models.config import EncoderConfig
from distill_core.objectives.base import OBJECTIVES, Needs, Term, TermConfig

TASK = FeatureRequest(task=True)


def rows_of(logits: Tensor, batch: Batch) -> list[Tensor]:
    """The distributions of a task's outputs, fp32 (fp64 is kept), one a row: each [rows, choices].

    Classification [B, C]; tokens [labelled, C]; span: for each run of equal lengths the places of the first and of
    the last token, [sequences, length] each.
    """
    logits = wide(logits)
    if batch.task == "tokens":
        assert batch.targets is not None
        labelled = torch.nonzero_static(batch.targets != IGNORED, size=batch.n_targets)  # a GPU is not waited for
        return [logits[labelled.squeeze(1)]]
    if batch.task == "span":
        return [places for (block,) in batch.layout.blocks(logits) for places in block.unbind(-1)]
    return [logits]


class TaskLossConfig(TermConfig):
    kind: Literal["task"]


@OBJECTIVES.add("task")
class TaskLoss(Term):
    """The labels' own loss, mean over labelled places, in fp32.

    Cross-entropy for classification and tokens, squared error for regression, and for spans the mean of the
    cross-entropies of the first and the last token over the tokens of the sequence (Devlin et al. 2019, section 4).
    """

    Config = TaskLossConfig
    count = "targets"
    aligned = "sequences"

    def needs(self) -> Needs:
        return Needs(TASK)

    def forward(self, student: Features, teacher: Features, batch: Batch, progress: float) -> dict[str, Tensor]:
        assert student.task is not None and batch.targets is not None
        logits = wide(student.task)
        if batch.task == "regression":
            loss = (logits.squeeze(-1) - batch.targets).square().sum()
        elif batch.task == "span":
            blocks = torch.split(batch.targets, [count for _, count, _ in batch.layout.runs])
            answers = [places for block in blocks for places in block.unbind(1)]
            rows = zip(rows_of(logits, batch), answers, strict=True)
            loss = torch.stack([F.cross_entropy(row, place, reduction="sum") for row, place in rows]).sum() / 2
        else:
            loss = F.cross_entropy(logits, batch.targets, ignore_index=IGNORED, reduction="sum")
        return {"task": loss}


class TaskKdConfig(TermConfig):
    kind: Literal["task_kd"]
    temperature: float = Field(default=1.0, gt=0)
    temperature_squared: bool = False
    """Multiply by T²; TinyBERT's code does not."""
    per_label: bool = False
    """Divide by the number of labels too, as TinyBERT's code does (its mean runs over all B x C elements)."""

    def of_distributions(self) -> list[str]:
        """What is set that a regression, whose answers are single numbers, has no use for."""
        names = ("temperature", "temperature_squared", "per_label")
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]


@OBJECTIVES.add("task_kd")
class TaskKd(Term):
    """The teacher's answers: soft cross-entropy at temperature T, mean over labelled places, in fp32.

    - mean of sum_c softmax(z_T / T)_c log softmax(z_S / T)_c; for regression the mean of (z_S - z_T)²; for spans the
    mean over first and last token. Source: TinyBERT's prediction layer (arXiv 1909.10351, eq. 10), T = 1.
    """

    Config = TaskKdConfig
    count = "targets"
    aligned = "sequences"  # where the task's answers are of sequences, which the stage is checked for

    def __init__(self, config: TaskKdConfig, student: EncoderConfig, teacher: EncoderConfig | None) -> None:
        super().__init__(config, student, teacher)
        if teacher is None:
            raise ConfigError("task_kd compares with a teacher's answers, but this stage has no teacher; take task.")
        self.temperature = config.temperature
        self.scale = config.temperature**2 if config.temperature_squared else 1.0
        self.per_label = config.per_label

    def needs(self) -> Needs:
        return Needs(TASK, TASK)

    def forward(self, student: Features, teacher: Features, batch: Batch, progress: float) -> dict[str, Tensor]:
        assert student.task is not None and teacher.task is not None
        if batch.task == "regression":
            return {"task_kd": (wide(student.task) - wide(teacher.task)).square().sum()}
        loss = wide(student.task.new_zeros(()))
        for mine, theirs in zip(rows_of(student.task, batch), rows_of(teacher.task, batch), strict=True):
            target = F.softmax(theirs / self.temperature, dim=-1)
            cross = -(target * F.log_softmax(mine / self.temperature, dim=-1)).sum()
            loss = loss + (cross / mine.shape[-1] if self.per_label else cross)
        return {"task_kd": self.scale * loss / (2 if batch.task == "span" else 1)}

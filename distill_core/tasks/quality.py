"""A model's answers on a task's dev rows, and their scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill_core.batch import Batch
from distill_core.engine import Rank
from distill_core.features import FeatureRequest
from distill_core.tasks import metrics
from distill_core.tasks.data import TaskData

TASK = FeatureRequest(task=True)
LONGEST_ANSWER = 64
"""Tokens of a predicted span."""

Answers = NDArray[np.float64]


@dataclass(frozen=True)
class TaskQuality:
    """Scores on the dev rows; ``main``: the name of the one that models are chosen by.

    ``agreement``: share of the answers that are the teacher's too (regression: Pearson's correlation with them).
    ``head_trained``: False in a stage without a loss on the task's outputs, whose scores say nothing.
    """

    student: dict[str, float]
    teacher: dict[str, float] | None
    agreement: float | None
    main: str
    rows: int
    head_trained: bool = True

    @property
    def score(self) -> float:
        """Higher is better."""
        return self.student[self.main]

    def metrics(self) -> dict[str, float]:
        return self.student if self.agreement is None else {**self.student, "agreement": self.agreement}

    def scalars(self) -> dict[str, float]:
        found = {f"eval/student_{name}": value for name, value in self.student.items()}
        if self.teacher is not None and self.agreement is not None:
            found |= {f"eval/teacher_{name}": value for name, value in self.teacher.items()}
            found["eval/agreement"] = self.agreement
        return found

    def sentence(self) -> str:
        text = ", ".join(f"{name} {value:.4f}" for name, value in self.student.items())
        if self.teacher is not None:
            text += f" (teacher {self.main} {self.teacher[self.main]:.4f}; agreement {self.agreement:.1%})"
        return f"dev {text}" if self.head_trained else f"the head is not trained in this stage; dev {text}"


@torch.no_grad()
def evaluate(
    student: nn.Module,
    teacher: nn.Module | None,
    data: TaskData,
    batches: Iterable[Batch],
    rank: Rank,
    head_trained: bool = True,
) -> TaskQuality:
    """Over all ranks' ``batches`` (their ``sequence_ids`` are numbers of sequences of ``data``). Collective.

    The teacher is asked only when it has a head for the task (``teacher`` is None otherwise).
    """
    was_training = student.training
    student.eval()
    models = [student] if teacher is None else [student, teacher]
    found = [np.zeros(_shape(data)) for _ in models]
    times = np.zeros(len(data))
    for batch in batches:
        batch = batch.to(rank.device)
        assert batch.sequence_ids is not None
        index = batch.sequence_ids.astype(np.int64)
        times[index] = 1
        for model, answers in zip(models, found, strict=True):
            logits = model(batch, TASK).task
            assert isinstance(logits, Tensor)
            _note(answers, logits.float().cpu().numpy(), index, data)
    student.train(was_training)
    times, *found = [rank.sum(torch.from_numpy(a).to(rank.device)).cpu().numpy() for a in (times, *found)]
    # With fewer sequences than ranks, several ranks have answered the same ones.
    shares = np.repeat(times, np.diff(data.offsets)) if data.task.kind == "tokens" else times
    found = [answers / shares[:, None] for answers in found]
    scores = [score(data, answers) for answers in found]
    agreement = None if teacher is None else _agreement(data, *found)
    theirs = scores[1] if teacher is not None else None
    return TaskQuality(scores[0], theirs, agreement, data.task.main_metric, len(data.rows), head_trained)


def _shape(data: TaskData) -> tuple[int, int]:
    """Of the answers: tokens: the guessed label of each token; span: (score, first, last) of each window."""
    if data.task.kind == "tokens":
        return (data.n_tokens, 1)
    return (len(data), 3 if data.task.kind == "span" else 1)


def _note(answers: Answers, logits: NDArray[np.float32], index: NDArray[np.int64], data: TaskData) -> None:
    """Write the answers of a batch to their places."""
    kind = data.task.kind
    if kind == "regression":
        answers[index, 0] = logits[:, 0]
    elif kind == "classification":
        answers[index, 0] = logits.argmax(-1)
    else:
        at = 0
        for number in index:
            begin, length = int(data.offsets[number]), int(data.offsets[number + 1] - data.offsets[number])
            here = logits[at : at + length]
            if kind == "tokens":
                answers[begin : begin + length, 0] = here.argmax(-1)
            else:
                answers[number] = _best_span(here, data.places[begin : begin + length] >= 0)
            at += length


def _best_span(logits: NDArray[np.float32], allowed: NDArray[np.bool_]) -> tuple[float, int, int]:
    """(sum of logits, first, last) of the best span of at most LONGEST_ANSWER tokens inside the context."""
    first = np.where(allowed, logits[:, 0], -np.inf)
    last = np.where(allowed, logits[:, 1], -np.inf)
    total = first[:, None] + last[None, :]
    distance = np.arange(len(last))[None, :] - np.arange(len(first))[:, None]
    total[(distance < 0) | (distance >= LONGEST_ANSWER)] = -np.inf
    a, b = np.unravel_index(int(total.argmax()), total.shape)
    return float(total[a, b]), int(a), int(b)


# ---------------------------------------------------------------- scores


def score(data: TaskData, answers: Answers) -> dict[str, float]:
    """The metrics of a model's answers to all sequences."""
    kind = data.task.kind
    if kind == "classification":
        return metrics.classification(data.targets, answers[:, 0].astype(np.int64), len(data.labels))
    if kind == "regression":
        return metrics.regression(data.targets, answers[:, 0])
    if kind == "tokens":
        return metrics.tokens([list(row.tags or ()) for row in data.rows], tags(data, answers))
    return metrics.span([[text for text, _ in row.answers] for row in data.rows], texts(data, answers))


def tags(data: TaskData, answers: Answers) -> list[list[str]]:
    """The guessed tag of every token of every row."""
    guessed = [["O"] * len(row.tags or ()) for row in data.rows]
    owners = np.repeat(data.owner, np.diff(data.offsets))
    for at in np.flatnonzero(data.places >= 0):
        guessed[owners[at]][data.places[at]] = data.labels[int(answers[at, 0])]
    return guessed


def texts(data: TaskData, answers: Answers) -> list[str]:
    """The guessed answer of every row: the best of its windows."""
    best: dict[int, int] = {}
    for number, owner in enumerate(data.owner.tolist()):
        if owner not in best or answers[number, 0] > answers[best[owner], 0]:
            best[owner] = number
    guessed = []
    for owner, row in enumerate(data.rows):
        number = best[owner]
        first, last = data.offsets[number] + answers[number, 1:].astype(np.int64)
        # -1 to -1 where the context has no tokens at all: no answer
        guessed.append((row.text_b or "")[max(0, data.places[first]) : max(0, data.ends[last])].strip())
    return guessed


def _agreement(data: TaskData, student: Answers, teacher: Answers) -> float:
    if data.task.kind == "regression":
        return metrics.regression(student[:, 0], teacher[:, 0])["pearson"]
    if data.task.kind == "tokens":
        labelled = data.places >= 0
        return float((student[labelled, 0] == teacher[labelled, 0]).mean())
    if data.task.kind == "span":
        return float(np.mean([a == b for a, b in zip(texts(data, student), texts(data, teacher), strict=True)]))
    return float((student[:, 0] == teacher[:, 0]).mean())

"""Losses on a task's outputs against loops in float64, one row at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from configs.errors import ConfigError
from distill_core.batch import COUNTS, IGNORED, Batch
from distill_core.features import Features
from distill_core.models.attention import Kernel, layout
from distill_core.objective import Distillation, Objective, Teacher
from distill_core.objectives.task import TaskKdConfig, TaskLossConfig
from tests.distill_core.objectives import reference
from tests.distill_core.objectives.streams import same_gradient
from tests.distill_core.tasks.tiny import data, rows_of, shape, task_model

KINDS: list[Any] = ["classification", "regression", "tokens", "span"]


def drawn(kind: Any, lengths: list[int], seed: int) -> tuple[Batch, Tensor, Tensor]:
    """(batch, student's outputs, teacher's outputs) with everything at random."""
    draw = torch.Generator().manual_seed(seed)
    n, b = sum(lengths), len(lengths)
    targets: Tensor
    if kind == "tokens":
        targets = torch.randint(3, (n,), generator=draw)
        targets[torch.rand(n, generator=draw) < 0.4] = IGNORED
        targets[0] = 1
    elif kind == "span":
        ends = [sorted(torch.randint(length, (2,), generator=draw).tolist()) for length in lengths]
        targets = torch.tensor(ends)
    elif kind == "regression":
        targets = torch.randn(b, generator=draw, dtype=torch.float64)
    else:
        targets = torch.randint(3, (b,), generator=draw)
    batch = Batch(
        torch.zeros(n, dtype=torch.int64),
        torch.zeros(n, dtype=torch.int64),
        layout(lengths, "runs"),
        targets=targets,
        task=kind,
    )
    rows, outputs = (n if kind in ("tokens", "span") else b), {"regression": 1, "span": 2}.get(kind, 3)
    student, teacher = (2 * torch.randn(rows, outputs, generator=draw, dtype=torch.float64) for _ in range(2))
    return batch, student.requires_grad_(), teacher


def term(config: Any, batch: Batch, student: Tensor, teacher: Tensor) -> Tensor:
    objective = Objective([config], shape(), shape())
    [found] = objective.terms[0](Features(task=student), Features(task=teacher), batch, 0.0).values()
    assert isinstance(found, Tensor)
    return found / batch.counts()[objective.terms[0].count]  # type: ignore[index]


Row = list[Tensor]
"""Scalars, so that the loops have gradients."""


def distributions(kind: str, batch: Batch, logits: Tensor) -> list[list[Row]]:
    """For each labelled place its distributions of logits: one, or for spans two over the places of a sequence."""
    rows = [list(row) for row in logits]
    if kind == "tokens":
        return [[row] for row, target in zip(rows, batch.targets.tolist(), strict=True) if target != IGNORED]  # type: ignore[union-attr]
    if kind == "span":
        starts = np.cumsum([0, *batch.layout.lengths])
        parts = [rows[a:b] for a, b in itertools.pairwise(starts)]
        return [[[row[0] for row in part], [row[1] for row in part]] for part in parts]
    return [[row] for row in rows]


def log_softmax(row: Row, temperature: float = 1.0) -> Row:
    whole = torch.log(reference.total([torch.exp(x / temperature) for x in row]))
    return [x / temperature - whole for x in row]


def expect(
    config: Any, batch: Batch, student: Tensor, teacher: Tensor, losses: Callable[[Tensor], list[Tensor]]
) -> None:
    """The mean of ``losses`` to 1e-6 and its gradient to 1e-5, both relative."""
    found = term(config, batch, student, teacher)
    found.backward()
    copy = student.detach().clone().requires_grad_()
    values = losses(copy)
    assert batch.n_targets == len(values)
    wanted = reference.total(values) / len(values)
    wanted.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6, abs=1e-12)
    same_gradient(student.grad, copy.grad)


LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=6).map(lambda found: sorted(found, reverse=True))


@pytest.mark.parametrize("kind", KINDS)
@given(lengths=LENGTHS, seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_the_labels_own_loss(kind: Any, lengths: list[int], seed: int) -> None:
    batch, student, teacher = drawn(kind, lengths, seed)
    assert batch.targets is not None
    targets = [t for t in batch.targets.tolist() if t != IGNORED]

    def losses(logits: Tensor) -> list[Tensor]:
        places = zip(distributions(kind, batch, logits), targets, strict=True)
        if kind == "regression":
            return [(row[0][0] - target) ** 2 for row, target in places]
        if kind == "span":
            return [-(log_softmax(f)[a] + log_softmax(g)[b]) / 2 for (f, g), (a, b) in places]
        return [-log_softmax(row[0])[target] for row, target in places]

    expect(TaskLossConfig(kind="task"), batch, student, teacher, losses)


@pytest.mark.parametrize("kind", KINDS)
@given(
    lengths=LENGTHS,
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
    squared=st.booleans(),
    per_label=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_the_teachers_answers(
    kind: Any, lengths: list[int], seed: int, temperature: float, squared: bool, per_label: bool
) -> None:
    batch, student, teacher = drawn(kind, lengths, seed)

    def losses(logits: Tensor) -> list[Tensor]:
        found = []
        for mine, theirs in zip(*(distributions(kind, batch, x) for x in (logits, teacher)), strict=True):
            if kind == "regression":
                found.append((mine[0][0] - theirs[0][0]) ** 2)
                continue
            own = []
            for z_s, z_t in zip(mine, theirs, strict=True):
                p, log_q = [torch.exp(x) for x in log_softmax(z_t, temperature)], log_softmax(z_s, temperature)
                cross = -reference.total([a * b for a, b in zip(p, log_q, strict=True)])
                own.append(cross * (temperature**2 if squared else 1) / (len(z_s) if per_label else 1))
            found.append(reference.total(own) / len(own))
        return found

    config = TaskKdConfig(kind="task_kd", temperature=temperature, temperature_squared=squared, per_label=per_label)
    expect(config, batch, student, teacher, losses)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradients_by_hand(temperature: float) -> None:
    """Of the mean: (softmax(z_S / T) - softmax(z_T / T)) / (T B), divided by C too as in TinyBERT."""
    batch, student, teacher = drawn("classification", [3, 2, 2, 1], 5)
    for per_label in (False, True):
        student.grad = None
        config = TaskKdConfig(kind="task_kd", temperature=temperature, per_label=per_label)
        term(config, batch, student, teacher).backward()
        p, q = ((x.detach() / temperature).double().softmax(-1) for x in (teacher, student))
        expected = (q - p) / temperature / 4 / (3 if per_label else 1)
        torch.testing.assert_close(student.grad.double(), expected, atol=1e-7, rtol=1e-5)  # type: ignore[union-attr]


def test_tinyberts_published_line() -> None:
    """soft_cross_entropy of its code: the mean over all B x C elements."""
    batch, student, teacher = drawn("classification", [2, 2, 1], 3)
    published = (-teacher.softmax(-1) * student.log_softmax(-1)).mean()
    found = term(TaskKdConfig(kind="task_kd", per_label=True), batch, student, teacher)
    torch.testing.assert_close(found, published)


@pytest.mark.parametrize("kind", KINDS)
def test_the_teachers_own_answers_are_the_minimum(kind: Any) -> None:
    batch, _, teacher = drawn(kind, [4, 4, 1], 11)
    student = teacher.clone().requires_grad_()
    term(TaskKdConfig(kind="task_kd", temperature=2.0), batch, student, teacher).backward()
    assert student.grad is not None and student.grad.abs().max() < 1e-6


# ---------------------------------------------------------------- through the models


@pytest.mark.parametrize("kind", KINDS)
def test_grouping_and_kernel_change_nothing(kind: Any) -> None:
    found = data(kind, rows_of(kind, 7), max_length=16)
    student, teacher = (task_model(kind, found.labels, seed=seed) for seed in (1, 2))
    terms: list[Any] = [TaskLossConfig(kind="task"), TaskKdConfig(kind="task_kd", weight=0.5)]
    module = Distillation(student, [Objective(terms, student.config, teacher.config)])
    assert module.request.task and module.names() == ["task", "task_kd"]
    frozen = Teacher(teacher, module.objectives[0].needs().teacher)  # type: ignore[operator]
    order = np.argsort(-found.lengths(np.arange(len(found))), kind="stable")
    groups: dict[str, tuple[list[Any], Kernel]] = {
        "whole": ([order], "runs"),
        "one by one": ([order[i : i + 1] for i in range(len(order))], "runs"),
        "two": ([order[::2], order[1::2]], "padded"),
    }
    results = {}
    for name, (parts, kernel) in groups.items():
        batches = [found.batch(part, np.zeros(len(part), np.int64), kernel) for part in parts]
        counts: Any = {c: torch.tensor(float(sum(b.counts()[c] for b in batches))) for c in COUNTS}
        module.zero_grad()
        total = 0.0
        for batch in batches:
            losses = module(batch, [frozen(batch)], counts, 0.0).total
            losses.backward()
            total += losses.item()
        results[name] = (total, {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})
    loss, gradients = results["whole"]
    assert (
        "student.classifier.weight" in gradients
        and "student.encoder.bert.embeddings.word_embeddings.weight" in gradients
    )
    assert all(p.grad is None for p in teacher.parameters())
    for other, others in results.values():
        assert other == pytest.approx(loss, rel=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_a_teacher_is_needed() -> None:
    with pytest.raises(ConfigError, match="this stage has no teacher; take task"):
        Objective([TaskKdConfig(kind="task_kd")], shape(), None)

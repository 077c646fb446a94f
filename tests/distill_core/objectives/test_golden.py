"""Each loss against a slow reference: numpy in fp64, from the formulas of methods.md sections 2 and 3, with
gradients worked out by hand. Losses to 1e-6, gradients to 1e-5."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill_core.batch import Batch
from distill_core.features import Features
from distill_core.models.attention import layout
from distill_core.models.config import EncoderConfig
from distill_core.objective import Objective
from distill_core.objectives import OBJECTIVES
from distill_core.objectives.hidden import HiddenMseConfig
from distill_core.objectives.logits import KdCeConfig, MlmConfig

Array = NDArray[np.float64]
M, V, N = 7, 19, 11
LOSS, GRADIENT = 1e-6, 1e-5


def shape(hidden: int, layers: int = 3) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=V, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=8
    )


def draw(seed: int, *size: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def batch(labels: Tensor | None = None) -> Batch:
    rows = torch.arange(M)
    wanted = rows if labels is None else labels
    ids = torch.zeros(N, dtype=torch.int64)
    return Batch(ids, torch.arange(N), layout([N], "runs"), rows=rows, labels=wanted)


def at_masked(logits: Tensor) -> Features:
    return Features(logits={"masked": logits})


def exact(tensor: Tensor) -> Array:
    return tensor.detach().numpy().astype(np.float64)


def log_softmax(row: Array) -> Array:
    top = row.max()
    return row - top - np.log(sum(np.exp(value - top) for value in row))


def assert_gradient(found: Tensor | None, expected: Array) -> None:
    assert found is not None
    np.testing.assert_allclose(found.numpy(), expected, atol=GRADIENT, rtol=0)


def total(term: Any, student: Features, teacher: Features, where: Batch, count: int) -> Tensor:
    """Through the objective: weight 1, divided by the global count."""
    objective = Objective([term], shape(6), shape(10))
    counts: Any = {"tokens": torch.tensor(float(N)), "masked": torch.tensor(float(M))}
    assert objective.terms[0].count == ("masked" if count == M else "tokens")
    return objective(student, teacher, where, counts, 0.0).total


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 8.0])
def test_kd_ce(temperature: float, squared: bool) -> None:
    z_s, z_t = draw(0, M, V).requires_grad_(), draw(1, M, V)
    term = KdCeConfig(kind="kd_ce", temperature=temperature, temperature_squared=squared)
    found = total(term, at_masked(z_s), at_masked(z_t), batch(), M)
    found.backward()

    student, teacher = exact(z_s), exact(z_t)
    scale = temperature**2 if squared else 1.0
    loss, gradient = 0.0, np.zeros((M, V))
    for row in range(M):
        log_q = log_softmax(student[row] / temperature)
        p = np.exp(log_softmax(teacher[row] / temperature))
        for v in range(V):
            loss -= scale * p[v] * log_q[v] / M
            gradient[row, v] = scale * (np.exp(log_q[v]) - p[v]) / temperature / M
    assert found.item() == pytest.approx(loss, abs=LOSS * max(1.0, scale), rel=LOSS)
    assert_gradient(z_s.grad, gradient)


def test_kd_ce_differs_from_kl_by_the_teachers_entropy() -> None:
    z_s, z_t = draw(0, M, V), draw(1, M, V)
    found = total(KdCeConfig(kind="kd_ce", temperature=2), at_masked(z_s), at_masked(z_t), batch(), M)
    kl = entropy = 0.0
    for row in range(M):
        log_p, log_q = log_softmax(exact(z_t)[row] / 2), log_softmax(exact(z_s)[row] / 2)
        kl += float(sum(np.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True))) / M
        entropy -= float(sum(np.exp(a) * a for a in log_p)) / M
    assert found.item() == pytest.approx(kl + entropy, abs=LOSS)


def test_mlm() -> None:
    labels = torch.tensor([3, 0, 18, 3, 7, 7, 1])
    z = draw(2, M, V).requires_grad_()
    found = total(MlmConfig(kind="mlm"), at_masked(z), Features(), batch(labels), M)
    found.backward()
    logits, loss, gradient = exact(z), 0.0, np.zeros((M, V))
    for row, label in enumerate(labels.tolist()):
        log_q = log_softmax(logits[row])
        loss -= log_q[label] / M
        for v in range(V):
            gradient[row, v] = (np.exp(log_q[v]) - (v == label)) / M
    assert found.item() == pytest.approx(loss, abs=LOSS)
    assert_gradient(z.grad, gradient)


def test_hidden_mse_with_projections() -> None:
    width_s, width_t = 6, 10
    pairs = [(0, 0), (3, 2), (3, 1)]
    term = HiddenMseConfig(kind="hidden_mse", layers=pairs)
    torch.manual_seed(0)
    loss = OBJECTIVES["hidden_mse"](term, shape(width_s), shape(width_t))
    for parameter in loss.parameters():
        torch.nn.init.normal_(parameter)
    students = {s: draw(10 + s, N, width_s, scale=1).requires_grad_() for _, s in pairs}
    teachers = {t: draw(20 + t, N, width_t, scale=1) for t, _ in pairs}
    sums = loss(Features(hidden=dict(students)), Features(hidden=teachers), batch(), 0.0)
    assert list(sums) == loss.names() == ["hidden_mse/0-0", "hidden_mse/3-2", "hidden_mse/3-1"]
    torch.stack([value / N for value in sums.values()]).sum().backward()

    for (t, s), projection, name in zip(pairs, linears(loss), sums, strict=True):
        weight, bias = exact(projection.weight), exact(projection.bias)
        expected, d_weight, d_bias = 0.0, np.zeros_like(weight), np.zeros_like(bias)
        d_hidden = np.zeros((N, width_s))
        for n in range(N):
            h_s, h_t = exact(students[s])[n], exact(teachers[t])[n]
            for j in range(width_t):
                difference = sum(weight[j, i] * h_s[i] for i in range(width_s)) + bias[j] - h_t[j]
                expected += difference**2 / (N * width_t)
                slope = 2 * difference / (N * width_t)
                d_bias[j] += slope
                d_weight[j] += slope * h_s
                d_hidden[n] += slope * weight[j]
        assert sums[name].item() / N == pytest.approx(expected, rel=LOSS, abs=LOSS)
        assert_gradient(projection.weight.grad, d_weight)
        assert_gradient(projection.bias.grad, d_bias)
        assert_gradient(students[s].grad, d_hidden)


def test_hidden_mse_of_equal_widths_has_no_projection() -> None:
    term = HiddenMseConfig(kind="hidden_mse", layers=[(1, 1)])
    loss = OBJECTIVES["hidden_mse"](term, shape(10), shape(10))
    assert list(loss.parameters()) == []
    h_s, h_t = draw(0, N, 10, scale=1).requires_grad_(), draw(1, N, 10, scale=1)
    found = loss(Features(hidden={1: h_s}), Features(hidden={1: h_t}), batch(), 0.0)["hidden_mse/1-1"] / N
    found.backward()
    expected = sum((a - b) ** 2 for a, b in zip(exact(h_s).flat, exact(h_t).flat, strict=True)) / (N * 10)
    assert found.item() == pytest.approx(expected, abs=LOSS)
    assert_gradient(h_s.grad, 2 * (exact(h_s) - exact(h_t)) / (N * 10))


def test_projections_begin_as_in_the_source() -> None:
    torch.manual_seed(0)
    term = HiddenMseConfig(kind="hidden_mse", layers=[(0, 0), (1, 1)])
    loss = OBJECTIVES["hidden_mse"](term, shape(64), shape(128))
    one, two = linears(loss)
    assert not torch.equal(one.weight, two.weight)
    for projection in (one, two):
        assert projection.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not projection.bias.any()


def linears(loss: torch.nn.Module) -> list[torch.nn.Linear]:
    return [module for module in loss.modules() if isinstance(module, torch.nn.Linear)]

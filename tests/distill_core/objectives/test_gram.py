"""The Gram form against the products themselves, in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill_core.objectives.gram import gram_distance


def squared_distance(q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor) -> Tensor:
    return (q_s @ k_s.mT - q_t @ k_t.mT).square().sum()


@pytest.mark.parametrize("widths", [(5, 5), (3, 5), (5, 2)])
def test_the_gram_forms_gradient_is_exact(widths: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    q_s, k_s = (torch.randn(2, 7, widths[0], generator=draw, dtype=torch.float64).requires_grad_() for _ in "qk")
    q_t, k_t = (torch.randn(2, 7, widths[1], generator=draw, dtype=torch.float64) for _ in "qk")
    assert torch.autograd.gradcheck(lambda q, k: gram_distance(q, k, q_t, k_t), (q_s, k_s))


@pytest.mark.parametrize("away", [1.0, 1e-1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("same_width", [True, False])
def test_the_gram_form_in_fp32_near_the_teacher(away: float, same_width: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    q_t, k_t = (torch.randn(3, 96, 32, generator=draw) for _ in "qk")
    if not same_width:  # a teacher whose scores have the student's rank
        q_t[..., 16:] = 0
    near = [t + away * torch.randn(t.shape, generator=draw) for t in (q_t, k_t)]
    q_s, k_s = (t[..., : 32 if same_width else 16].clone().requires_grad_() for t in near)
    found = gram_distance(q_s, k_s, q_t, k_t)
    found.backward()
    exact_q, exact_k = (t.detach().double().requires_grad_() for t in (q_s, k_s))
    exact = squared_distance(exact_q, exact_k, q_t.double(), k_t.double())
    exact.backward()
    value_bound, gradient_bound = (1e-6, 1e-6) if same_width else (1e-6 + 1e-7 / away**2, 1e-6 / away)
    assert found.item() == pytest.approx(exact.item(), rel=value_bound)
    for leaf, wanted in ((q_s, exact_q), (k_s, exact_k)):
        assert leaf.grad is not None and wanted.grad is not None
        assert (leaf.grad - wanted.grad).norm() <= gradient_bound * wanted.grad.norm()


def test_the_gram_form_is_never_negative() -> None:
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        q, k = (torch.randn(64, 8, generator=draw) * 30 for _ in "qk")
        wider = [torch.nn.functional.pad(t, (0, 1)) for t in (q, k)]
        assert gram_distance(q, k, *wider).item() >= 0
        assert gram_distance(q, k, q, k).item() == 0

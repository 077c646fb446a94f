"""Dropout's masks: their rate, their reproducibility, what they do to values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from distill_core.models.dropout import Draws, Dropout, keep_mask, zero_where


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_rate(p: float) -> None:
    count = 1 << 20
    torch.manual_seed(1)
    mask = keep_mask(torch.empty(count), p)
    dropped = (mask == 0).double().mean().item()
    assert abs(dropped - p) < 5 * (p * (1 - p) / count) ** 0.5 + 2**-17
    assert torch.equal(torch.unique(mask), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (0,)])
def test_shapes_and_types(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    mask = keep_mask(torch.empty(shape, dtype=dtype, requires_grad=True), 0.5)
    assert mask.shape == shape and mask.dtype == dtype and not mask.requires_grad
    assert torch.equal(mask, (mask > 0.5).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_is_dropped_is_zero_and_the_rest_keeps_its_bits(dtype: torch.dtype) -> None:
    values = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    kept = Draws(3).kept(values.shape, 0.3)
    assert kept.dtype == torch.int16 and torch.equal(kept, Draws(3).kept(values.shape, 0.3))
    assert torch.equal(zero_where(values.clone(), kept), values.where(kept == 1, 0.0))


def test_lanes_and_neighbours_are_independent() -> None:
    torch.manual_seed(2)
    kept = (keep_mask(torch.empty(1 << 18, 4), 0.5) > 0).double() - 0.5
    lanes = kept.T @ kept / len(kept)
    torch.testing.assert_close(lanes, torch.eye(4, dtype=torch.float64) / 4, atol=0.01, rtol=0)
    assert abs((kept[1:] * kept[:-1]).mean().item()) < 0.005


def test_the_seed_decides() -> None:
    x, layer = torch.ones(1000), Dropout(0.3)
    torch.manual_seed(5)
    first, second = layer(x), layer(x)
    torch.manual_seed(5)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)


@pytest.mark.parametrize("with_residual", [False, True])
def test_gradients_pass_where_values_did(with_residual: bool) -> None:
    x, residual = torch.randn(50, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    layer = Dropout(0.4)
    torch.manual_seed(6)
    mask = keep_mask(x, 0.4)
    torch.manual_seed(6)
    found = layer.added(x, residual) if with_residual else layer(x)
    torch.testing.assert_close(found, x * mask / 0.6 + (residual if with_residual else 0))
    found.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, mask / 0.6)
    if with_residual:
        assert residual.grad is not None and torch.equal(residual.grad, torch.ones_like(mask))


def test_in_sixteen_bits_the_factor_is_not_rounded() -> None:
    """1 / 0.9 in bf16 would be 0.16 % too small, for all values alike."""
    x = torch.full((1000, 64), 1.8, dtype=torch.bfloat16, requires_grad=True)
    torch.manual_seed(7)
    found = Dropout(0.1)(x)
    found.backward(torch.full_like(found, 0.9))
    assert x.grad is not None
    assert set(found.unique().tolist()) == {0.0, 2.0} and set(x.grad.unique().tolist()) == {0.0, 1.0}


def test_nothing_is_drawn_without_need() -> None:
    x = torch.randn(9)
    state = torch.get_rng_state()
    assert Dropout(0.0)(x) is x and Dropout(0.5).eval()(x) is x
    assert torch.equal(Dropout(0.5).eval().added(x, x), x + x)
    assert torch.equal(torch.get_rng_state(), state)


def test_plans_see_its_memory() -> None:
    with FakeTensorMode():
        x = torch.empty(3, 4, dtype=torch.bfloat16, requires_grad=True)
        found = Dropout(0.1).added(x, torch.empty(3, 4, dtype=torch.bfloat16))
        found.sum().backward()
        assert found.shape == (3, 4) and x.grad is not None and x.grad.dtype == torch.bfloat16

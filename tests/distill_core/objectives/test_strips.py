"""Elementwise work in strips: nothing is left out, and the distance is that of autograd on whole tensors."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from distill_core.objectives import strips


@pytest.mark.parametrize(("rows", "width", "entries"), [(0, 3, 6), (7, 3, 6), (6, 3, 6), (5, 9, 6), (4, 1, 100)])
def test_all_rows_once_and_in_order(rows: int, width: int, entries: int) -> None:
    with patch.object(strips, "ENTRIES", entries):
        found = list(strips.strips(torch.empty(rows, width)))
    assert [row for strip in found for row in range(rows)[strip]] == list(range(rows))
    assert all((strip.stop - strip.start) * width <= max(entries, width) for strip in found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("entries", [20, 2**18])
def test_squared_distance(dtype: torch.dtype, entries: int) -> None:
    draw = torch.Generator().manual_seed(0)
    mine, theirs = (torch.randn(23, 9, dtype=torch.float64, generator=draw).to(dtype) for _ in range(2))
    exact = mine.to(torch.float64, copy=True).requires_grad_()
    wanted = (exact - theirs.double()).square().sum()
    wanted.backward()
    leaf = mine.clone().requires_grad_()
    with patch.object(strips, "ENTRIES", entries):
        found = strips.squared_distance(leaf, theirs)
        (0.3 * found).backward()
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert leaf.grad is not None and exact.grad is not None and leaf.grad.dtype == dtype
    rtol = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(found.item(), wanted.item(), rtol=min(rtol, 1e-6), atol=0)
    torch.testing.assert_close(leaf.grad.double(), 0.3 * exact.grad, rtol=rtol, atol=0)


def test_equal_states_are_at_no_distance() -> None:
    same = torch.randn(4, 5)
    assert strips.squared_distance(same, same).item() == 0

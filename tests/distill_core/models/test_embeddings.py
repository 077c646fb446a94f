"""Gradients of embeddings in 16 bits."""

from __future__ import annotations

import pytest
import torch

from distill_core.models.embeddings import Table


def gradient(dtype: torch.dtype, rows: int, reads: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    table = Table(rows, grad.shape[1]).to(dtype)
    found = table(reads)
    assert found.dtype == dtype and torch.equal(found, table.weight[reads])
    found.backward(grad.to(dtype))
    assert table.weight.grad is not None and table.weight.grad.dtype == dtype
    return table.weight.grad.double()


@pytest.mark.parametrize("ids", [torch.int32, torch.int64])
def test_a_row_that_is_read_many_times(ids: torch.dtype) -> None:
    """[MASK] and token types are read by many tokens: their sum must not be rounded at each of them."""
    generator = torch.Generator().manual_seed(0)
    reads = torch.cat([torch.zeros(4000), torch.arange(10)]).to(ids)
    grad = torch.randn(len(reads), 8, generator=generator).bfloat16().double()
    exact = torch.zeros(10, 8, dtype=torch.float64).index_add_(0, reads.long(), grad)
    found = gradient(torch.bfloat16, 10, reads, grad)
    assert (found - exact).abs().max() <= 2**-8 * exact.abs().max()
    torch.testing.assert_close(gradient(torch.float32, 10, reads, grad), exact, rtol=1e-5, atol=1e-4)


def test_a_frozen_table_is_torchs_own() -> None:
    table = Table(4, 2).bfloat16().requires_grad_(False)
    assert table(torch.tensor([1])).grad_fn is None

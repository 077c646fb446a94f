"""Gradients of embeddings in 16 bits."""

from __future__ import annotations

import pytest
import torch

from distill_core.batch import Batch
from distill_core.models import embeddings
from distill_core.models.config import EncoderConfig
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


@pytest.mark.parametrize("shared", [False, True])
def test_without_token_types_all_tokens_have_the_first(monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    """Looked up for each token, or once for all of them, as on a GPU."""
    monkeypatch.setattr(embeddings, "broadcast", lambda device: shared)
    shape = EncoderConfig(
        vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, type_vocab_size=2
    )
    torch.manual_seed(0)
    table = embeddings.Embeddings(shape)
    batch = Batch.of([[1, 2, 3], [4, 5]])
    x = torch.randn(5, 4)
    found = table.add_places(x, batch.positions, None)
    types = table.token_type_embeddings.weight
    assert torch.equal(found, x + types[0] + table.position_embeddings.weight[batch.positions])
    grad = torch.randn(5, 4)
    found.backward(grad)
    assert types.grad is not None
    torch.testing.assert_close(types.grad, torch.stack([grad.sum(0), torch.zeros(4)]))


def test_a_gpu_looks_the_first_type_up_once() -> None:
    assert embeddings.broadcast(torch.device("cuda")) and not embeddings.broadcast(torch.device("cpu"))

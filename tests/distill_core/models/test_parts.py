"""The gradients of normalisations in 16 bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distill_core.models.parts import LayerNorm


def gradients(norm: nn.LayerNorm, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Of inputs, gamma and beta, in fp64; and what the layer gives."""
    inputs = x.detach().clone().requires_grad_()
    y = norm(inputs)
    y.backward(grad.to(y.dtype))
    found = [inputs.grad, norm.weight.grad, norm.bias.grad, y.detach()]
    return [each.double() for each in found if each is not None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [(1,), (3000,), (20, 50)])
def test_gradients_are_those_of_fp64(dtype: torch.dtype, rows: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(1)
    mine, exact = LayerNorm(24, eps=1e-12), nn.LayerNorm(24, eps=1e-12)
    with torch.no_grad():
        mine.weight.uniform_(0.5, 1.5, generator=draw)
        mine.bias.normal_(generator=draw)
    mine.to(dtype)
    exact.load_state_dict(mine.state_dict())
    x, grad = (torch.randn(*rows, 24, generator=draw).to(dtype) for _ in range(2))
    found = gradients(mine, x, grad)
    expected = gradients(exact.double(), x.double(), grad.double())
    bound = {torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float32: 1e-5}[dtype]
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= bound * other.norm()


def test_a_frozen_one_gives_the_same_as_a_trained_one() -> None:
    norm = LayerNorm(8).bfloat16()
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    trained = norm(x.requires_grad_())
    norm.requires_grad_(False)
    assert torch.equal(trained, norm(x))

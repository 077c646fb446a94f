"""Small things that all parts of the encoder are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_core.models.config import EncoderConfig
from distill_core.models.dropout import Dropout

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class NoNorm(nn.Module):
    """gamma * h + beta, in place of LayerNorm: MobileBERT (arXiv 2004.02984), equation 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


class SummedNorm(torch.autograd.Function):
    """LayerNorm over the last axis of [T, H]; the gradients of gamma and beta are summed over T in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        weight, bias = weight.float(), bias.float()  # so that mean and deviation are kept in fp32
        normed, mean, deviation = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, deviation)
        return normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad,), (x, weight, bias, mean, deviation) = grads, ctx.saved_tensors
        inputs, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, weight.shape, mean, deviation, weight, bias, [True, False, False]
        )
        scaled = x.float().sub_(mean).mul_(deviation).mul_(grad)
        gamma, beta = scaled.flatten(0, -2).sum(0), grad.flatten(0, -2).sum(0, dtype=torch.float32)
        return inputs, gamma.to(x.dtype), beta.to(x.dtype), None


class LayerNorm(nn.LayerNorm):
    """One whose gradients are right in 16 bits.

    On a CPU torch adds up the gradients of gamma and beta in 16 bits, row by row: at 1,024 tokens beta's were a third
    off, and with them the whole gradient 2 %.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda or x.dtype.itemsize > 2 or not (self.weight.requires_grad and torch.is_grad_enabled()):
            return super().forward(x)
        return SummedNorm.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-any-return, no-untyped-call]


def normalisation(config: EncoderConfig, width: int, eps: float | None = None) -> nn.LayerNorm | NoNorm:
    """The configured kind; ``eps``: where it is not ``layer_norm_eps``."""
    if config.norm == "no_norm":
        return NoNorm(width)
    return LayerNorm(width, eps=config.layer_norm_eps if eps is None else eps)


class AddAndNorm(nn.Module):
    """dense -> dropout -> norm(x + residual)."""

    def __init__(self, inner: int, norm: nn.LayerNorm | NoNorm, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, norm.weight.shape[0])
        self.LayerNorm = norm
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout.added(self.dense(x), residual))  # type: ignore[no-any-return]

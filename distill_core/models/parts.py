"""Small things that all parts of the encoder are made of."""

from __future__ import annotations

from collections.abc import Callable

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


def normalisation(config: EncoderConfig, width: int, eps: float | None = None) -> nn.LayerNorm | NoNorm:
    """The configured kind; ``eps``: where it is not ``layer_norm_eps``."""
    if config.norm == "no_norm":
        return NoNorm(width)
    return nn.LayerNorm(width, eps=config.layer_norm_eps if eps is None else eps)


class AddAndNorm(nn.Module):
    """dense -> dropout -> norm(x + residual)."""

    def __init__(self, inner: int, norm: nn.LayerNorm | NoNorm, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, norm.weight.shape[0])
        self.LayerNorm = norm
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout.added(self.dense(x), residual))  # type: ignore[no-any-return]

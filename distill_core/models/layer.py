"""One post-LayerNorm Transformer layer, as in BERT (Devlin et al. 2019, arXiv 1810.04805)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from distill_core.features import Heads
from distill_core.kernels import long_pieces
from distill_core.models.attention import AttentionLayout, attend
from distill_core.models.config import EncoderConfig
from distill_core.models.parts import ACTIVATIONS, AddAndNorm, normalisation

FROZEN_ROWS = 512
"""That go through a feed-forward network at a time on a CPU where nothing is kept for a backward pass: what is between
its two maps stays in the cache, and is no memory that the system hands out anew."""

Wanted = Tensor | Literal["all", "none"]
"""Rows of the stream at which a layer's output is wanted: int64 [M], all of them, or none (its heads alone)."""


def nothing(wanted: Wanted) -> bool:
    return isinstance(wanted, str) and wanted == "none"


def at(stream: Tensor, wanted: Wanted) -> Tensor:
    """The rows ``wanted`` of a stream [N, ...]."""
    return stream[wanted] if isinstance(wanted, Tensor) else stream


class SelfAttention(nn.Module):
    def __init__(self, config: EncoderConfig, value_input: int) -> None:
        super().__init__()
        size = config.attention_size
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(value_input, size)
        self.heads = config.num_attention_heads
        self.dropout_p = config.attention_probs_dropout_prob

    def project(self, x: Tensor, values: Tensor) -> Heads:
        """Query, key and value of each head."""
        projected = (self.query(x), self.key(x), self.value(values))
        return Heads(*(p.view(len(x), self.heads, -1) for p in projected))

    def forward(self, x: Tensor, values: Tensor, where: AttentionLayout) -> tuple[Tensor, Heads]:
        heads = self.project(x, values)
        return attend(*heads, where, self.dropout_p if self.training else 0.0).flatten(1), heads


class Attention(nn.Module):
    """Attention within each sequence, added to a residual: in BERT queries, values and residual are one tensor."""

    def __init__(self, config: EncoderConfig, value_input: int, dropout: float) -> None:
        super().__init__()
        size = config.attention_size
        self.self = SelfAttention(config, value_input)
        self.output = AddAndNorm(size, normalisation(config, size), dropout)

    def forward(
        self, x: Tensor, values: Tensor, residual: Tensor, where: AttentionLayout, wanted: Wanted = "all"
    ) -> tuple[Tensor, Heads]:
        """At the rows ``wanted``, and query, key and value at all."""
        if nothing(wanted):
            return residual[:0], self.self.project(x, values)
        context, heads = self.self(x, values, where)
        return self.output(at(context, wanted), at(residual, wanted)), heads


class Intermediate(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.attention_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.dense(x))


class Layer(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        h, dropout = config.hidden_size, config.hidden_dropout_prob
        self.attention = Attention(config, h, dropout)
        self.intermediate = Intermediate(config)
        self.output = AddAndNorm(config.intermediate_size, normalisation(config, h), dropout)

    def forward(self, x: Tensor, where: AttentionLayout, wanted: Wanted = "all") -> tuple[Tensor, Heads]:
        """The next hidden state at the rows ``wanted``, and query, key and value at all."""
        x, heads = self.attention(x, x, x, where, wanted)
        return (x if nothing(wanted) else self._feed_forward(x)), heads

    def _feed_forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or long_pieces(x.device) or len(x) <= FROZEN_ROWS:
            return self.output(self.intermediate(x), x)  # type: ignore[no-any-return]
        found = torch.empty_like(x)
        for first in range(0, len(x), FROZEN_ROWS):
            some = x[first : first + FROZEN_ROWS]
            found[first : first + FROZEN_ROWS] = self.output(self.intermediate(some), some)
        return found

"""One post-LayerNorm Transformer layer, as in BERT (Devlin et al. 2019, arXiv 1810.04805)."""

from __future__ import annotations

from torch import Tensor, nn

from distill_core.features import Heads
from distill_core.models.attention import AttentionLayout, attend
from distill_core.models.config import EncoderConfig
from distill_core.models.parts import ACTIVATIONS, AddAndNorm, normalisation


class SelfAttention(nn.Module):
    def __init__(self, config: EncoderConfig, value_input: int) -> None:
        super().__init__()
        size = config.attention_size
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(value_input, size)
        self.heads = config.num_attention_heads
        self.dropout_p = config.attention_probs_dropout_prob

    def forward(self, x: Tensor, values: Tensor, where: AttentionLayout) -> tuple[Tensor, Heads]:
        projected = (self.query(x), self.key(x), self.value(values))
        heads = Heads(*(p.view(len(x), self.heads, -1) for p in projected))
        return attend(*heads, where, self.dropout_p if self.training else 0.0).flatten(1), heads


class Attention(nn.Module):
    """Attention within each sequence, added to a residual: in BERT queries, values and residual are one tensor."""

    def __init__(self, config: EncoderConfig, value_input: int, dropout: float) -> None:
        super().__init__()
        size = config.attention_size
        self.self = SelfAttention(config, value_input)
        self.output = AddAndNorm(size, normalisation(config, size), dropout)

    def forward(self, x: Tensor, values: Tensor, residual: Tensor, where: AttentionLayout) -> tuple[Tensor, Heads]:
        context, heads = self.self(x, values, where)
        return self.output(context, residual), heads


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

    def forward(self, x: Tensor, where: AttentionLayout) -> tuple[Tensor, Heads]:
        x, heads = self.attention(x, x, x, where)
        return self.output(self.intermediate(x), x), heads

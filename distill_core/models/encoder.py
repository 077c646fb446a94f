"""One encoder class for teacher, assistant and student: BERT on a token stream.

Parameters carry the names of Hugging Face's ``BertForMaskedLM``, so loading and exporting is a plain state
dict. Post-LayerNorm as in Devlin et al. 2019 (arXiv 1810.04805); the decoder is tied to the word embeddings.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_core.batch import Batch
from distill_core.features import FeatureRequest, Features, Heads
from distill_core.models.attention import AttentionLayout, attend
from distill_core.models.config import EncoderConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class Embeddings(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        h = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, h)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, h)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, h)
        self.LayerNorm = nn.LayerNorm(h, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, ids: Tensor, positions: Tensor, types: Tensor | None) -> Tensor:
        segment = self.token_type_embeddings(torch.zeros_like(ids) if types is None else types)
        x = self.word_embeddings(ids) + segment + self.position_embeddings(positions)
        return self.dropout(self.LayerNorm(x))  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        h = config.hidden_size
        self.query = nn.Linear(h, h)
        self.key = nn.Linear(h, h)
        self.value = nn.Linear(h, h)
        self.heads = config.num_attention_heads
        self.dropout_p = config.attention_probs_dropout_prob

    def forward(self, x: Tensor, where: AttentionLayout) -> tuple[Tensor, Heads]:
        heads = Heads(*(w(x).view(len(x), self.heads, -1) for w in (self.query, self.key, self.value)))
        return attend(*heads, where, self.dropout_p if self.training else 0.0).flatten(1), heads


class AddAndNorm(nn.Module):
    """dense -> dropout -> LayerNorm(x + residual)."""

    def __init__(self, config: EncoderConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)  # type: ignore[no-any-return]


class Attention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = AddAndNorm(config, config.hidden_size)

    def forward(self, x: Tensor, where: AttentionLayout) -> tuple[Tensor, Heads]:
        context, heads = self.self(x, where)
        return self.output(context, x), heads


class Intermediate(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.dense(x))


class Layer(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = AddAndNorm(config, config.intermediate_size)

    def forward(self, x: Tensor, where: AttentionLayout) -> tuple[Tensor, Heads]:
        x, heads = self.attention(x, where)
        return self.output(self.intermediate(x), x), heads


class LayerStack(nn.Module):
    """Only there to give the layers Hugging Face's name ``encoder.layer.i``."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class Bert(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = LayerStack(config)


class Transform(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(self.activation(self.dense(x)))  # type: ignore[no-any-return]


class Predictions(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Tensor, word_embeddings: nn.Embedding) -> Tensor:
        return F.linear(self.transform(x), word_embeddings.weight, self.bias)


class Head(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.predictions = Predictions(config)


class Encoder(nn.Module):
    """Encoder with masked-LM head.

    ``forward`` takes a batch (its ids, positions, types, layout and the rows at which vocabulary logits are
    wanted) and returns just the features of ``request``.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        if config.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act {config.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
        self.config = config
        self.bert = Bert(config)
        self.cls = Head(config)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def forward(self, batch: Batch, request: FeatureRequest) -> Features:
        features = Features()
        x = self.bert.embeddings(batch.ids, batch.positions, batch.types)
        if 0 in request.hidden:
            features.hidden[0] = x
        for index in range(request.deepest(self.config.num_hidden_layers)):
            x, heads = self.bert.encoder.layer[index](x, batch.layout)
            if index + 1 in request.hidden:
                features.hidden[index + 1] = x
            if index + 1 in request.heads:
                features.heads[index + 1] = heads
        self._logits(x, batch, request, features)
        return features

    def _logits(self, x: Tensor, batch: Batch, request: FeatureRequest, features: Features) -> None:
        """Vocabulary logits at the wanted rows; rows that are wanted twice are computed once."""
        words = self.bert.embeddings.word_embeddings
        everywhere = self.cls.predictions(x, words) if "all" in request.logits else None
        for kind in request.logits:
            rows = batch.at(kind)
            if everywhere is not None:
                features.logits[kind] = everywhere if rows is None else everywhere[rows]
            else:
                features.logits[kind] = self.cls.predictions(x[rows], words)

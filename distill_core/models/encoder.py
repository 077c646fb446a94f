"""One encoder class for teacher, assistant and student, on a token stream.

Parameters carry the names of Hugging Face's ``BertForMaskedLM``; ``families/`` translates them for the others. The
decoder is tied to the word embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from distill_core.batch import Batch
from distill_core.decoder import LogitsOnDemand, Rows, Weights
from distill_core.features import FeatureRequest, Features, Heads
from distill_core.models.bottleneck import BottleneckLayer
from distill_core.models.config import EncoderConfig
from distill_core.models.embeddings import Embeddings, TrigramEmbeddings
from distill_core.models.layer import Layer, Wanted
from distill_core.models.parts import ACTIVATIONS, LayerNorm


class LayerStack(nn.Module):
    """Only there to give the layers Hugging Face's name ``encoder.layer.i``."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        kind = Layer if config.bottleneck is None else BottleneckLayer
        self.layer = nn.ModuleList(kind(config) for _ in range(config.num_hidden_layers))


class Pooler(nn.Module):
    """tanh(W h + b) of each sequence's first token: [B, H]."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        return torch.tanh(self.dense(first))


class Bert(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config) if config.bottleneck is None else TrigramEmbeddings(config)
        self.widened = config.bottleneck is None and config.word_size != config.hidden_size
        if self.widened:
            self.embeddings_project = nn.Linear(config.word_size, config.hidden_size)
        self.encoder = LayerStack(config)
        if config.pooler:
            self.pooler = Pooler(config)

    def embed(self, batch: Batch) -> Tensor:
        """Hidden state 0: [N, H]."""
        x: Tensor = self.embeddings(batch.ids, batch.positions, batch.types, batch.layout)
        return self.embeddings_project(x) if self.widened else x


class Transform(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.prediction_size
        self.dense = nn.Linear(config.hidden_size, width)
        self.activation = ACTIVATIONS[config.kin.head_act or config.hidden_act]
        self.LayerNorm = LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(self.activation(self.dense(x)))  # type: ignore[no-any-return]


class Predictions(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.extra = config.prediction_size - config.word_size
        if self.extra:  # MobileBERT's embeddings are narrower than its head: columns of the decoder of their own
            self.dense = nn.Linear(config.vocab_size, self.extra, bias=False)

    def forward(self, words: nn.Embedding, vectors: Tensor, use: Callable[[Tensor, Weights], Any]) -> Any:
        """``use`` of vectors that the transform has put out, [M, prediction size], and of the decoder's weights.

        A call of the module, so that with ZeRO 3 the weights are gathered for ``use`` and for nothing else.
        """
        return use(vectors, Weights(words.weight, self.bias, self.dense.weight if self.extra else None))


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
        self.config = config
        self.bert = Bert(config)
        self.cls = Head(config)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, batch: Batch, request: FeatureRequest) -> Features:
        features = Features()
        x = self.bert.embed(batch)
        if 0 in request.hidden:
            features.hidden[0] = x
        deepest, wanted = request.deepest(self.config.num_hidden_layers), self._wanted(batch, request)
        for index in range(deepest):
            x, heads = self.run_layer(index, x, batch, wanted if index + 1 == deepest else "all")
            if index + 1 in request.hidden:
                features.hidden[index + 1] = x
            if index + 1 in request.heads:
                features.heads[index + 1] = heads
        self._heads(x, batch, request, features, isinstance(wanted, Tensor))
        return features

    def run_layer(self, index: int, x: Tensor, batch: Batch, wanted: Wanted = "all") -> tuple[Tensor, Heads]:
        """Layer ``index`` (from 0) of hidden state ``x``.

        Returns:
            The next hidden state at the rows ``wanted``; query, key and value at all rows.
        """
        return self.bert.encoder.layer[index](x, batch.layout, wanted)  # type: ignore[no-any-return]

    def _wanted(self, batch: Batch, request: FeatureRequest) -> Wanted:
        """The rows at which somebody reads the output of the deepest layer that is run."""
        if self.config.num_hidden_layers in request.hidden or "all" in request.logits:
            return "all"
        rows = self._rows(batch, request)
        if rows:
            return torch.cat(list(rows.values()))
        return "all" if request.deepest(self.config.num_hidden_layers) in request.hidden else "none"

    def _rows(self, batch: Batch, request: FeatureRequest) -> dict[str, Tensor]:
        """By what they are read for: the rows of the last hidden state that heads read."""
        rows: dict[str, Tensor] = {kind: at for kind in request.logits if (at := batch.at(kind)) is not None}
        if request.pooled:
            if not self.config.pooler:
                raise ValueError("the pooler's output is wanted of a model without one; set model.pooler: true")
            rows["pooled"] = batch.layout.starts
        return rows

    def _heads(self, x: Tensor, batch: Batch, request: FeatureRequest, features: Features, chosen: bool) -> None:
        """The pooler's output, and the vectors that enter the decoder at the wanted rows.

        ``chosen``: ``x`` is of just these rows.
        """
        rows = self._rows(batch, request)
        sizes = [len(places) for places in rows.values()]
        states = torch.split(x, sizes) if chosen else [x[places] for places in rows.values()]
        read = dict(zip(rows, states, strict=True))
        if request.pooled:
            features.pooled = self.bert.pooler(read["pooled"])
        if not request.logits:  # a task's model has no head for them
            return
        head = self.cls.predictions
        everywhere = head.transform(x) if "all" in request.logits else None
        vectors: dict[Rows, Tensor] = {}
        for kind in request.logits:
            if everywhere is None:
                vectors[kind] = head.transform(read[kind])
            else:
                vectors[kind] = everywhere[rows[kind]] if kind in rows else everywhere
        features.logits = LogitsOnDemand(vectors, partial(head, self.bert.embeddings.word_embeddings))

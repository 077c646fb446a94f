"""Word, position and token-type embeddings of a token stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill_core.models.attention import AttentionLayout
from distill_core.models.config import EncoderConfig
from distill_core.models.dropout import Dropout
from distill_core.models.parts import normalisation


class Embeddings(nn.Module):
    """BERT's. RoBERTa's positions begin later, DistilBERT has no types, ELECTRA's may be narrower than its layers."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.word_size)
        width = config.word_size if config.bottleneck is None else config.hidden_size
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        if config.type_vocab_size:
            self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        # transformers hands MobileBERT's no eps
        self.LayerNorm = normalisation(config, width, eps=1e-5 if config.bottleneck else None)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.type_vocab_size = config.type_vocab_size
        self.first_position = config.first_position

    def forward(self, ids: Tensor, positions: Tensor, types: Tensor | None, where: AttentionLayout) -> Tensor:
        x = self.add_places(self.words(ids, where), positions, types)
        return self.dropout(self.LayerNorm(x))  # type: ignore[no-any-return]

    def words(self, ids: Tensor, where: AttentionLayout) -> Tensor:
        return self.word_embeddings(ids)  # type: ignore[no-any-return]

    def add_places(self, x: Tensor, positions: Tensor, types: Tensor | None) -> Tensor:
        if self.first_position:
            positions = positions + self.first_position
        if self.type_vocab_size:
            if types is None or self.type_vocab_size < 2:
                types = torch.zeros_like(positions)
            x = x + self.token_type_embeddings(types)
        return x + self.position_embeddings(positions)  # type: ignore[no-any-return]


class TrigramEmbeddings(Embeddings):
    """MobileBERT's: narrow word embeddings, each between those of its neighbours, widened by one linear map."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        assert config.bottleneck is not None
        self.trigram = config.bottleneck.trigram
        self.embedding_transformation = nn.Linear((3 if self.trigram else 1) * config.word_size, config.hidden_size)

    def words(self, ids: Tensor, where: AttentionLayout) -> Tensor:
        x: Tensor = self.word_embeddings(ids)
        if self.trigram:
            last = where.starts + where.sizes - 1
            after = x.roll(-1, 0).index_fill(0, last, 0.0)
            before = x.roll(1, 0).index_fill(0, where.starts, 0.0)
            x = torch.cat([after, x, before], dim=1)
        return self.embedding_transformation(x)  # type: ignore[no-any-return]

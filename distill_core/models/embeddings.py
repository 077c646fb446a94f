"""Word, position and token-type embeddings of a token stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distill_core.models.attention import AttentionLayout
from distill_core.models.config import EncoderConfig
from distill_core.models.dropout import Dropout
from distill_core.models.parts import normalisation


class SummedRows(torch.autograd.Function):
    """Rows of a table; the gradient of a row that is read many times is summed in fp32."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows = len(table)
        return table[ids]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), (ids,) = grads, ctx.saved_tensors
        summed = torch.zeros(ctx.rows, grad.shape[1], dtype=torch.float32, device=grad.device)
        return summed.index_add_(0, ids, grad.float()).to(grad.dtype), None


class Table(nn.Embedding):
    """An embedding whose gradient is right in 16 bits.

    On a CPU torch adds up the rows of such a gradient in 16 bits, one by one: of the row of [MASK] or of a token type,
    which is read hundreds of times in a micro-batch, the error was some 5 to 20 % of the whole gradient.
    """

    def forward(self, ids: Tensor | None) -> Tensor:
        """[N, H]; ``ids`` None: row 0 alone, [1, H], for all tokens."""
        weight = self.weight
        if ids is None:
            return weight[:1]
        if weight.is_cuda or weight.dtype.itemsize > 2 or not (weight.requires_grad and torch.is_grad_enabled()):
            return super().forward(ids)
        return SummedRows.apply(weight, ids)  # type: ignore[no-any-return, no-untyped-call]


def broadcast(device: torch.device) -> bool:
    """Whether one row for all tokens is looked up once. A GPU adds up the gradient of a row that is looked up for each
    token in one thread block, one after the other; of a row that is broadcast it is a reduction."""
    return device.type == "cuda"


class Embeddings(nn.Module):
    """BERT's. RoBERTa's positions begin later, DistilBERT has no types, ELECTRA's may be narrower than its layers."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word_embeddings = Table(config.vocab_size, config.word_size)
        width = config.word_size if config.bottleneck is None else config.hidden_size
        self.position_embeddings = Table(config.max_position_embeddings, width)
        if config.type_vocab_size:
            self.token_type_embeddings = Table(config.type_vocab_size, width)
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
                types = None if broadcast(x.device) else torch.zeros_like(positions)
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

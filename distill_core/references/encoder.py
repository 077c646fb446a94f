"""The student that reads references: its first layer attends to them, all else is the plain encoder.

RefBERT (Wang et al. 2021, arXiv 2106.08898) changes key and value of the first layer's attention; which way is our
reconstruction (docs/refbert.md), hence the variants of ``ReferencesConfig``. One map W_R (with LayerNorm) brings the
teacher's vectors to the student's width; keys and values then go through the layer's own projections.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill_core.batch import Batch
from distill_core.features import Heads
from distill_core.models.attention import attend
from distill_core.models.encoder import Encoder
from distill_core.models.layer import Layer, SelfAttention, Wanted, at
from distill_core.models.parts import LayerNorm
from distill_core.references.attention import attend_to_both
from distill_core.references.config import ReferencesConfig
from distill_core.tasks.model import TaskModel

CLOSED = -2.0
"""Where a gate begins: sigmoid(-2) = 0.12 of the attention goes to the reference."""


class Gate(nn.Module):
    """g = sigmoid(w), one w a head. A bias by name, so that it is not decayed."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((heads,), CLOSED))

    def forward(self, itself: Tensor, other: Tensor, has: Tensor) -> Tensor:
        """(1 - g) ``itself`` + g ``other``, both [N, heads, d]; where not ``has`` (bool [N]), ``itself``."""
        share = torch.sigmoid(self.bias) * has[:, None]
        return itself + share[:, :, None] * (other - itself)


class TeacherMap(nn.Module):
    """LayerNorm(W_R R + b): [R, H_T] -> [R, H_S]; and the gate, if there is one."""

    def __init__(self, teacher_width: int, width: int, heads: int, eps: float, std: float, gate: bool) -> None:
        super().__init__()
        self.dense = nn.Linear(teacher_width, width)
        self.LayerNorm = LayerNorm(width, eps=eps)
        self.gate = Gate(heads) if gate else None
        nn.init.normal_(self.dense.weight, std=std)
        nn.init.zeros_(self.dense.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(vectors))  # type: ignore[no-any-return]


class ReferencedEncoder(Encoder):
    """An encoder whose first layer attends to the batch's references; without them, the encoder it was made from."""

    def __init__(self, encoder: Encoder, settings: ReferencesConfig, teacher_width: int) -> None:
        """Takes over the modules of ``encoder``; ``teacher_width``: H_T."""
        nn.Module.__init__(self)
        shape = encoder.config
        self.config = shape
        for name, part in encoder.named_children():  # a task's encoder has no masked-LM head
            self.add_module(name, part)
        self.settings = settings
        heads, eps = shape.num_attention_heads, shape.layer_norm_eps
        self.references = TeacherMap(
            teacher_width, shape.hidden_size, heads, eps, shape.initializer_range, settings.gate
        )

    @property
    def teacher_width(self) -> int:
        return self.references.dense.in_features

    def run_layer(self, index: int, x: Tensor, batch: Batch, wanted: Wanted = "all") -> tuple[Tensor, Heads]:
        if index or batch.references is None:
            return super().run_layer(index, x, batch, wanted)
        layer = self.bert.encoder.layer[0]
        assert isinstance(layer, Layer)
        attention = layer.attention
        heads = attention.self.project(x, x)
        context = self._context(attention.self, heads, x, batch).flatten(1)
        x = attention.output(at(context, wanted), at(x, wanted))
        return layer.output(layer.intermediate(x), x), heads

    def _context(self, attention: SelfAttention, own: Heads, x: Tensor, batch: Batch) -> Tensor:
        """[N, heads, d]."""
        references = batch.references
        assert references is not None
        variant, dropout = self.settings.variant, attention.dropout_p if self.training else 0.0
        values = self.references(references.vectors.to(x.dtype))
        keys = values if variant == "C" else self._embedded(batch)
        shape = (len(keys), attention.heads, -1) if len(keys) else (0, *own.key.shape[1:])
        key, value = attention.key(keys).view(shape), attention.value(values).view(shape)
        gate = self.references.gate
        if gate is None:
            return attend_to_both(own, key, value, batch, dropout, only_reference=variant == "B")
        itself = attend(*own, batch.layout, dropout)
        other = attend_to_both(own, key, value, batch, dropout, only_reference=True)
        has = (references.sizes > 0)[batch.layout.sequence]
        return gate(itself, other, has)  # type: ignore[no-any-return]

    def _embedded(self, batch: Batch) -> Tensor:
        """E(r), each reference read as one text that begins at position 0: [R, H]."""
        references = batch.references
        assert references is not None
        embeddings = self.bert.embeddings
        x: Tensor = embeddings(references.ids, references.positions, None, batch.layout)
        return self.bert.embeddings_project(x) if self.bert.widened else x


def encoder_of(model: Encoder | TaskModel) -> Encoder:
    """The encoder of a masked LM (itself) or of a task's model."""
    return model.encoder if isinstance(model, TaskModel) else model


def referenced(model: Encoder | TaskModel) -> ReferencedEncoder | None:
    """The encoder that reads references, None for a plain model."""
    found = encoder_of(model)
    return found if isinstance(found, ReferencedEncoder) else None

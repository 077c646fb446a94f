"""Useful FLOPs: the matrix products of a step that its losses cannot do without, from models and objectives.

A multiply-add is two FLOPs; the backward pass costs twice the forward. Nothing else counts: no embeddings (they look
up), no elementwise work, no padding, no recomputation, no rows that no loss looks at. Layers count for all tokens, so
that an encoder which runs its last layer at fewer rows shows a higher utilization.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from distill_core.batch import Count
from distill_core.features import FeatureRequest
from distill_core.models.config import EncoderConfig


@dataclass(frozen=True)
class Flops:
    """FLOPs as a linear function of what is counted in a step (``batch.Count``): tokens, query-key pairs, ..."""

    each: Mapping[Count, float] = field(default_factory=dict)
    """FLOPs for one token, one pair, one masked row, ...; absent: none."""

    def __add__(self, other: Flops) -> Flops:
        names = {**self.each, **other.each}
        return Flops({name: self.each.get(name, 0.0) + other.each.get(name, 0.0) for name in names})

    def __mul__(self, factor: float) -> Flops:
        return Flops({name: factor * value for name, value in self.each.items()})

    def of(self, counts: Mapping[Count, float]) -> float:
        """FLOPs of so many tokens, pairs, ...; what ``counts`` leaves out counts as 0."""
        return sum(value * counts.get(name, 0.0) for name, value in self.each.items())


NO_FLOPS = Flops()


def total(parts: Iterable[Flops]) -> Flops:
    return sum(parts, NO_FLOPS)


def forward_flops(model: EncoderConfig, request: FeatureRequest) -> Flops:
    """A forward pass as far as ``request`` looks: to the deepest layer, with heads at the wanted rows."""
    return layers_flops(model, request.deepest(model.num_hidden_layers)) + heads_flops(model, request)


def layers_flops(model: EncoderConfig, layers: int) -> Flops:
    """The first ``layers`` layers."""
    if model.bottleneck is None:
        matrices = 4 * model.hidden_size**2 + 2 * model.hidden_size * model.intermediate_size
    else:
        matrices = model.layer_parameters()  # the biases among them hardly count
    return Flops({"tokens": 2.0 * matrices * layers, "pairs": 4.0 * model.attention_size * layers})


def heads_flops(model: EncoderConfig, request: FeatureRequest) -> Flops:
    """The masked-LM head at the rows whose logits are wanted, and the pooler."""
    found = at_logits(request, transform_flops(model) + decoder_flops(model))
    return found + Flops({"sequences": 2.0 * model.hidden_size**2}) if request.pooled or request.task else found


def at_logits(request: FeatureRequest, flops: float) -> Flops:
    """``flops`` at each row whose logits are wanted; rows of a kind are a part of all rows."""
    if "all" in request.logits:
        return Flops({"tokens": flops})
    return Flops({kind: flops for kind in request.logits if kind != "all"})


def transform_flops(model: EncoderConfig) -> float:
    """The masked-LM head at one token, before its decoder."""
    return 2.0 * model.prediction_size * model.hidden_size


def decoder_flops(model: EncoderConfig) -> float:
    """The product with the vocabulary at one token."""
    return 2.0 * model.prediction_size * model.vocab_size


def matrix_flops(student: int, teacher: int, matrices: int) -> Flops:
    """Losses on ``matrices`` [L, L] products of width ``student`` and ``teacher`` (all heads together).

    The student's are made, and give a gradient to both factors; the teacher's are made.
    """
    return Flops({"pairs": 2.0 * matrices * (3 * student + teacher)})


def gram_flops(student: int, teacher: int, heads: int) -> Flops:
    """The squared distance of two products by d x d matrices (``objectives/gram.py``) of ``heads`` heads.

    ``student``, ``teacher``: the widths of one head.
    """
    squares = 8 * student**2 + 8 * student * teacher + 4 * teacher**2
    return Flops({"tokens": float(heads * squares)})

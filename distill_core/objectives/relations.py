"""Losses on relations between tokens: MiniLM and MiniLMv2. All in fp32, each sequence for itself."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from configs.errors import ConfigError
from distill_core.batch import Batch
from distill_core.features import Features, Heads
from distill_core.flops import Flops
from distill_core.models.attention import AttentionLayout
from distill_core.models.config import EncoderConfig
from distill_core.objectives.attention import HeadsConfig, HeadsMatch, need_equal_heads
from distill_core.objectives.base import OBJECTIVES, taught
from distill_core.objectives.layers import LayerMap
from distill_core.objectives.tiles import Factors, attention_factors, relation_factors, summed


def relation_kl(mine: Factors, theirs: Factors, where: AttentionLayout) -> Tensor:
    """The sum over all queries of the mean over heads of KL(softmax of theirs || softmax of mine): a scalar."""
    return summed(mine, theirs, where, _kl) / mine.heads


def _kl(mine: Tensor, theirs: Tensor) -> Tensor:
    return F.kl_div(mine.log_softmax(-1), theirs.log_softmax(-1), reduction="none", log_target=True).sum(-1)


class RelationMatch(HeadsMatch):
    """For each pair of layers, the weighted divergences of some ``parts``, reported one by one as kind/T-S/part."""

    count = "tokens"

    def __init__(
        self, config: HeadsConfig, student: EncoderConfig, teacher: EncoderConfig | None, parts: dict[str, float]
    ) -> None:
        super().__init__(config, student, teacher)
        self.parts = {name: weight for name, weight in parts.items() if weight}

    def flops(self) -> Flops:
        return super().flops() * len(self.parts)

    def names(self) -> list[str]:
        return [f"{name}/{part}" for name in super().names() for part in self.parts]

    def forward(self, student: Features, teacher: Features, batch: Batch, progress: float) -> dict[str, Tensor]:
        return {
            f"{name}/{part}": weight * relation_kl(self._factors(mine, part), self._factors(theirs, part), batch.layout)
            for name, mine, theirs in self.matched(student, teacher)
            for part, weight in self.parts.items()
        }

    @abstractmethod
    def _factors(self, heads: Heads, part: str) -> Factors: ...


class MiniLmConfig(HeadsConfig):
    kind: Literal["minilm"]
    layers: LayerMap = "last"
    attention: float = Field(default=1.0, ge=0)
    """Weight of the attention distributions within the loss."""
    values: float = Field(default=1.0, ge=0)
    """Weight of the value relations within the loss."""

    @model_validator(mode="after")
    def _something(self) -> MiniLmConfig:
        if self.attention == self.values == 0:
            raise ValueError("minilm with attention: 0 and values: 0 compares nothing; give one of them a weight")
        return self


@OBJECTIVES.add("minilm")
class MiniLm(RelationMatch):
    """For each pair: mean over heads and queries of KL(P_T || P_S) and of KL(VR_T || VR_S).

    P = softmax(q kᵀ / sqrt(d)), VR = softmax(v vᵀ / sqrt(d)), with each model's own d. Source: MiniLM (arXiv
    2002.10957), eq. 5-8: the last layers, weights 1. Head counts must agree, hidden sizes need not.
    """

    Config = MiniLmConfig

    def __init__(self, config: MiniLmConfig, student: EncoderConfig, teacher: EncoderConfig | None) -> None:
        super().__init__(config, student, teacher, {"attention": config.attention, "values": config.values})
        teacher = taught(config.kind, teacher)
        need_equal_heads("minilm", student, teacher, "")

    def _factors(self, heads: Heads, part: str) -> Factors:
        return attention_factors(heads) if part == "attention" else relation_factors(heads.value, heads.value.shape[1])


class MiniLmV2Config(HeadsConfig):
    kind: Literal["minilmv2"]
    layers: LayerMap = "last"
    """``last``, or pairs: the paper takes layer 21 of 24 of BERT-large, [[21, 12]]."""
    relation_heads: int = Field(ge=1)
    """Divides both hidden sizes (with bottlenecks: ``intra_size``); 48 for a teacher of 768, 64 for one of 1024."""
    query: float = Field(default=1.0, ge=0)
    """Weight of the relations between queries within the loss; 0: not computed."""
    key: float = Field(default=1.0, ge=0)
    value: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _something(self) -> MiniLmV2Config:
        if self.query == self.key == self.value == 0:
            raise ValueError("minilmv2 with query: 0, key: 0 and value: 0 compares nothing; give one of them a weight")
        return self


@OBJECTIVES.add("minilmv2")
class MiniLmV2(RelationMatch):
    """For each pair and X in query, key, value: mean over relation heads and queries of KL(R_T || R_S).

    R = softmax(X Xᵀ / sqrt(d_r)): all heads of X side by side, cut anew into ``relation_heads`` pieces of width d_r =
    H / relation_heads, so that the models may differ in heads and width. Source: MiniLMv2 (arXiv 2012.15828), eq. 4-7.
    """

    Config = MiniLmV2Config

    def __init__(self, config: MiniLmV2Config, student: EncoderConfig, teacher: EncoderConfig | None) -> None:
        weights = {"query": config.query, "key": config.key, "value": config.value}
        super().__init__(config, student, teacher, weights)
        teacher = taught(config.kind, teacher)
        _need_divisor(config.relation_heads, student.attention_size, teacher.attention_size)
        self.relation_heads = config.relation_heads

    def _factors(self, heads: Heads, part: str) -> Factors:
        stream: Tensor = getattr(heads, part)
        return relation_factors(stream, self.relation_heads)


def _need_divisor(heads: int, student: int, teacher: int) -> None:
    """``student``, ``teacher``: the width of all heads together, which is the hidden size but in bottlenecks."""
    both = math.gcd(student, teacher)
    if both % heads:
        odd = " and ".join(str(width) for width in dict.fromkeys((student, teacher)) if width % heads)
        fits = ", ".join(str(n) for n in range(1, both + 1) if both % n == 0)
        raise ConfigError(
            f"minilmv2 cuts queries, keys and values into relation_heads pieces, but {heads} does not divide {odd} "
            f"(all heads together are {student} wide in the student and {teacher} in the teacher). Take one of {fits}."
        )

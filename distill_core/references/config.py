"""``references:`` of a distill stage, and the preflight's check of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from configs.errors import ConfigError
from configs.loader import Config
from distill_core.models.config import EncoderConfig

Variant = Literal["A", "B", "C"]
StoreDtype = Literal["fp16", "int8"]


class RetrievalConfig(Config):
    """BM25 (Robertson & Zaragoza 2009) over token ids."""

    kind: Literal["bm25"] = "bm25"
    k1: float = Field(default=1.2, gt=0)
    b: float = Field(default=0.75, ge=0, le=1)
    keywords: int = Field(default=32, ge=1)
    """Of a text that is looked for: so many of its rarest different tokens."""
    max_frequency: float = Field(default=0.1, gt=0, le=1)
    """Tokens that stand in a larger share of the texts are no keywords."""
    documents: int | None = Field(default=None, ge=2)
    """At most so many texts (drawn by the seed) can become references; default: all. Bounds memory and disk."""


class ReferencesConfig(RetrievalConfig):
    """RefBERT (arXiv 2106.08898): the first layer also attends to a reference. The variants are our reconstruction."""

    max_tokens: int = Field(default=32, ge=1)
    """Of a reference; the rest is not kept."""
    variant: Variant = "A"
    """With E the embeddings, x the text, r its reference, R the teacher's last hidden state of r brought to the
    student's width: `A`: keys [E(x); E(r)], values [E(x); R]; `B`: keys E(r), values R; `C`: keys and values
    [E(x); R]."""
    gate: bool = False
    """Attention to text and reference normalised apart, mixed by a learned gate a head (not with `B`)."""
    store: StoreDtype = "fp16"
    """How the teacher's vectors are kept; `int8`: with a scale a token, half the size."""

    @model_validator(mode="after")
    def _gate_has_two_sides(self) -> ReferencesConfig:
        if self.gate and self.variant == "B":
            raise ValueError("`gate` mixes attention to the text with attention to its reference; variant B has none")
        return self

    @property
    def retrieval(self) -> RetrievalConfig:
        return RetrievalConfig(**{name: getattr(self, name) for name in RetrievalConfig.model_fields})


def check_references(references: ReferencesConfig | None, student: EncoderConfig, who: str) -> None:
    """Raise :class:`ConfigError` when a student of this shape cannot have references."""
    if references is None:
        return
    if student.bottleneck is not None:
        raise ConfigError(
            f"{who}: references are read by the first layer's attention as in BERT, and the student's layers have a "
            "bottleneck (MobileBERT). Drop `references`, or take a student without a bottleneck."
        )
    if student.max_length < references.max_tokens:
        raise ConfigError(
            f"{who}: references.max_tokens is {references.max_tokens}, but the student has {student.max_length} "
            "positions. Lower the first or raise max_position_embeddings."
        )

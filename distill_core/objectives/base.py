"""The contract of a loss term, and the registry of terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from configs.errors import ConfigError
from configs.loader import Config
from configs.registry import Registry
from distill_core.batch import Batch, Count
from distill_core.features import FeatureRequest, Features
from distill_core.flops import Flops
from distill_core.models.config import EncoderConfig

OBJECTIVES: Registry[type[Term]] = Registry("loss")


class Schedule(Config):
    """A value that moves in a straight line over a stretch of the stage, and stands still before and after."""

    start: float = Field(ge=0)
    end: float = Field(ge=0)
    begin: float = Field(default=0.0, ge=0, le=1)
    """Share of the stage's steps at which it leaves ``start``."""
    finish: float = Field(default=1.0, ge=0, le=1)
    """Share of the stage's steps at which it reaches ``end``."""

    @model_validator(mode="after")
    def _forward(self) -> Schedule:
        if self.finish <= self.begin:
            raise ValueError(f"a schedule's finish ({self.finish:g}) must come after its begin ({self.begin:g})")
        return self

    def at(self, progress: float) -> float:
        """The value when the share ``progress`` of the stage's steps is done."""
        share = min(1.0, max(0.0, (progress - self.begin) / (self.finish - self.begin)))
        return self.start + (self.end - self.start) * share


def value_at(value: float | Schedule, progress: float) -> float:
    return value.at(progress) if isinstance(value, Schedule) else value


class TermConfig(Config):
    """What every term has."""

    kind: str
    weight: float | Schedule = 1.0
    """A number, or a schedule over the stage: {start: 0, end: 1}."""

    @model_validator(mode="after")
    def _not_negative(self) -> TermConfig:
        if isinstance(self.weight, float) and self.weight < 0:
            raise ValueError(f"weight {self.weight:g} is negative; a loss is weighted with 0 or more")
        return self

    def pairs(self, teacher_layers: int, student_layers: int) -> list[tuple[int, int]]:
        """(teacher layer, student layer) pairs matched by the term; empty if it matches none.

        Raises:
            ConfigError: when the two depths do not allow the map.
        """
        return []

    def resolved(self, token_id: Callable[[str], int]) -> TermConfig:
        """The same with every vocabulary entry that is given as text turned into its id."""
        return self


def some_weight(terms: list[TermConfig]) -> list[TermConfig]:
    """The same; raises ValueError when all of them have the weight 0 throughout, so that nothing would be learned."""
    weights = [term.weight for term in terms]
    if not any(max(w.start, w.end) if isinstance(w, Schedule) else w for w in weights):
        raise ValueError("every loss has the weight 0, so that nothing would be learned; give one of them a weight")
    return terms


def taught(who: str, teacher: EncoderConfig | None) -> EncoderConfig:
    """The teacher's shape.

    Raises:
        ConfigError: the stage has no teacher.
    """
    if teacher is None:
        raise ConfigError(
            f"{who} compares the student with a teacher, but this stage has none. Take a stage of kind distill, or "
            "losses on labels alone (mlm, sentence_order, task)."
        )
    return teacher


@dataclass(frozen=True)
class Needs:
    """What a term asks of the two models."""

    student: FeatureRequest
    teacher: FeatureRequest = FeatureRequest()


class Term(nn.Module, ABC):
    """One loss, summed over what it is averaged over.

    ``forward`` returns named **sums** (fp32 scalars); ``count`` names the global count that each is divided
    by, so that world size, accumulation and unequal batches change nothing. Parameters of the term
    (projections) are trained with the student and are never exported.
    """

    Config: ClassVar[type[TermConfig]] = TermConfig
    count: Count
    aligned: ClassVar[Literal["tokens", "sequences"]] = "tokens"
    """What of the student is set against the same of the teacher. ``sequences``: something of a whole text, so that a
    teacher may read its own tokens (``tasks/own_tokens.py``): nothing but ``Features.task``, or hidden states at rows
    that are found by ``teacher.where(batch)``, not by ``batch.layout``, on the teacher's side."""

    def __init__(self, config: TermConfig, student: EncoderConfig, teacher: EncoderConfig | None) -> None:
        super().__init__()
        self.kind = config.kind

    @abstractmethod
    def needs(self) -> Needs: ...

    def names(self) -> list[str]:
        """The names of the sums that ``forward`` returns; each begins with the term's kind."""
        return [self.kind]

    def flops(self) -> Flops:
        """Matrix products of forward and backward beside those of the models.

        Here: the term's own parameters, once for each thing that it counts.
        """
        return Flops({self.count: 6.0 * sum(p.numel() for p in self.parameters())})

    @abstractmethod
    def forward(self, student: Features, teacher: Features, batch: Batch, progress: float) -> dict[str, Tensor]:
        """The sums over this batch; ``progress``: the share of the stage's steps that is done, for schedules."""

"""The contract of a loss term, and the registry of terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from configs.loader import Config
from configs.registry import Registry
from distill_core.features import FeatureRequest, Features
from distill_core.models.config import EncoderConfig

if TYPE_CHECKING:
    from distill_core.data import Batch

Count = Literal["tokens", "masked"]
OBJECTIVES: Registry[type[Term]] = Registry("loss")


class TermConfig(Config):
    """What every term has."""

    kind: str
    weight: float = Field(default=1.0, ge=0)

    def pairs(self) -> list[tuple[int, int]]:
        """(teacher layer, student layer) pairs matched by the term; empty if it matches none."""
        return []


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
    count: ClassVar[Count]

    def __init__(self, config: TermConfig, student: EncoderConfig, teacher: EncoderConfig | None) -> None:
        super().__init__()
        self.kind = config.kind

    @abstractmethod
    def needs(self) -> Needs: ...

    def names(self) -> list[str]:
        """The names of the sums that ``forward`` returns; each begins with the term's kind."""
        return [self.kind]

    @abstractmethod
    def forward(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]: ...

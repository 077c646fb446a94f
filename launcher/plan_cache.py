"""Is the teacher-output cache (distill_core/cache.py) worth its disk? The arithmetic that ``distill plan`` shows.

Writing a mask view costs one pass of the teacher's encoder over the corpus; each reading of it saves one. What is left
of the teacher in a step is its decoder product, and bytes to read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_prep.config import MaskConfig
from distill_core.batch import Count
from distill_core.cache import as_kept, distinct_views, why_not
from distill_core.config import DistillStage, TrainedStage
from distill_core.features import FeatureRequest
from distill_core.flops import at_logits, decoder_flops, forward_flops
from distill_core.models.config import EncoderConfig
from distill_core.objective import Objective

WORDS = {"bf16": 2, "fp32": 4}
"""Bytes of a number."""


@dataclass(frozen=True)
class TeacherCost:
    """All teachers of a stage together, for one real token. ``live``, ``write``, ``cached``: FLOPs; ``bytes``: kept."""

    live: float = 0.0
    """A forward pass as far as the losses look."""
    write: float = 0.0
    """The same without the decoder."""
    cached: float = 0.0
    """The decoder alone."""
    bytes: float = 0.0

    def __add__(self, other: TeacherCost) -> TeacherCost:
        return TeacherCost(
            self.live + other.live, self.write + other.write, self.cached + other.cached, self.bytes + other.bytes
        )


@dataclass(frozen=True)
class CachePlan:
    """A stage with live teachers against the same stage with cached ones; FLOPs are per real token of training."""

    chosen: bool
    """The run file asks for the cache."""
    refused: str | None
    """Why it cannot be."""
    cost: TeacherCost
    student: float
    """FLOPs of a step without the teachers: forward and backward passes, projections."""
    tokens: float | None
    """Of the training split; None where it is not known beforehand."""
    epochs: float | None
    views: int
    """Mask views that are kept: those that training meets."""

    @property
    def view_bytes(self) -> float | None:
        return None if self.tokens is None else self.tokens * self.cost.bytes

    @property
    def all_bytes(self) -> float | None:
        return None if self.view_bytes is None else self.view_bytes * self.views

    @property
    def reuse(self) -> float | None:
        """How often each masked copy is read."""
        return None if self.epochs is None else self.epochs / self.views

    @property
    def break_even(self) -> float:
        """Readings of each masked copy that make up for writing it, by FLOPs; more than that is gain."""
        saved = self.cost.live - self.cost.cached
        return self.cost.write / saved if saved else math.inf

    @property
    def pays_from(self) -> int | None:
        """The smallest whole number of readings with a gain."""
        return None if math.isinf(self.break_even) else math.floor(self.break_even + 1e-9) + 1

    @property
    def step_live(self) -> float:
        return self.student + self.cost.live

    @property
    def step_cached(self) -> float:
        return self.student + self.cost.cached

    @property
    def stage_cached(self) -> float:
        """A step with cached teachers and its part of writing the cache."""
        return self.step_cached + (self.cost.write / self.reuse if self.reuse else 0.0)

    @property
    def stage_flops(self) -> float:
        """As the run file has it."""
        return self.stage_cached if self.chosen else self.step_live

    def read_rate(self, tokens_per_second: float) -> float:
        """Bytes/s that training reads, all ranks together."""
        return self.cost.bytes * tokens_per_second


def cache_plan(
    stage: DistillStage,
    masks: MaskConfig,
    losses: Sequence[Objective],
    cost: TeacherCost,
    student_flops: float,
    tokens: float | None,
    epochs: float | None,
) -> CachePlan:
    """The arithmetic of a stage on the corpus.

    Args:
        losses: of the stage, one objective a teacher.
        cost: of all its teachers.
        student_flops: of a step without them, per token.
        tokens, epochs: of the training split and passes over it; None where it is not known.
    """
    distinct = distinct_views(masks) or 1
    return CachePlan(
        chosen=stage.teacher_cache is not None,
        refused=why_not(masks, losses),
        cost=cost,
        student=student_flops,
        tokens=tokens,
        epochs=epochs,
        views=distinct if epochs is None else min(distinct, max(1, math.ceil(epochs))),
    )


def kept_bytes(stage: TrainedStage) -> int:
    """Bytes of a number in the stage's cache, if it had one."""
    settings = stage.teacher_cache if isinstance(stage, DistillStage) else None
    return WORDS[(None if settings is None else settings.precision) or as_kept(stage.training.teacher_runs_in)]


def teacher_cost(
    shape: EncoderConfig, request: FeatureRequest, counts: Mapping[Count, float], word: int
) -> TeacherCost:
    """Of one teacher; ``counts``: what a step counts for each real token, ``word``: bytes of a number in the cache."""
    rows = at_logits(request, 1.0).of(counts)
    cached = rows * decoder_flops(shape)
    live = forward_flops(shape, request).of(counts)
    numbers = rows * shape.prediction_size + len(request.hidden) * shape.hidden_size
    return TeacherCost(live, live - cached, cached, word * numbers)


def speed_up(live: float, cached: float, live_efficiency: float = 1.0, cached_efficiency: float = 1.0) -> float:
    """Of a step, from FLOPs and the shares of the peak speed that they are computed at."""
    return (live / live_efficiency) / (cached / cached_efficiency)

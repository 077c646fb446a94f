"""The sum of the loss terms, and the module that is trained: student and projections in one."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from distill_core.batch import Batch, Count
from distill_core.features import FeatureRequest, Features
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.models.frozen import pack
from distill_core.objectives import OBJECTIVES
from distill_core.objectives.base import Needs, Schedule, TermConfig, value_at
from distill_core.tasks.model import StageModel


@dataclass
class LossTerms:
    """One micro-batch's losses.

    ``parts``: by name: the loss's share of its global mean (scalar with gradient) and its weight at this step.
    """

    parts: dict[str, tuple[Tensor, float]] = field(default_factory=dict)

    def add(self, name: str, share: Tensor, weight: float) -> None:
        self.parts[name] = (share, weight)

    def update(self, other: LossTerms) -> None:
        self.parts |= other.parts

    @property
    def total(self) -> Tensor:
        """The weighted sum, with gradient."""
        weighted = [weight * share for share, weight in self.parts.values()]
        return functools.reduce(operator.add, weighted)


class Objective(nn.Module):
    """The weighted terms of a stage against one teacher.

    Args:
        share: what the terms that look at the teacher are multiplied by (its part of several teachers).
        prefix: of the reported names of those terms, ``"NAME/"`` where there are several teachers.
        labels: whether the terms that look at no teacher are in it (in the first teacher's objective only).
    """

    def __init__(
        self,
        terms: Sequence[TermConfig],
        student: EncoderConfig,
        teacher: EncoderConfig | None,
        share: float = 1.0,
        prefix: str = "",
        labels: bool = True,
    ) -> None:
        super().__init__()
        self.terms = nn.ModuleList()
        self.weights: list[float | Schedule] = []
        self.shares: list[float] = []
        self.kinds: list[str] = []
        self.labels: list[str] = []
        kinds = [term.kind for term in terms]
        for place, config in enumerate(terms):
            term = OBJECTIVES[config.kind](config, student, teacher)
            taught = bool(term.needs().teacher)
            if taught or labels:
                self.terms.append(term)
                self.weights.append(config.weight)
                self.shares.append(share if taught else 1.0)
                self.kinds.append(config.kind)
                number = f".{place}" if kinds.count(config.kind) > 1 else ""
                self.labels.append(f"{prefix if taught else ''}{config.kind}{number}")

    def needs(self) -> Needs:
        student, teacher = FeatureRequest(), FeatureRequest()
        for term in self.terms:
            needs = term.needs()  # type: ignore[operator]
            student, teacher = student | needs.student, teacher | needs.teacher
        return Needs(student, teacher)

    def names(self) -> list[str]:
        """The names under which losses are reported, in order."""
        return [
            label + name.removeprefix(kind)
            for term, kind, label in zip(self.terms, self.kinds, self.labels, strict=True)
            for name in term.names()  # type: ignore[operator]
        ]

    def own_names(self) -> list[str]:
        """The names that the terms themselves give to the same losses."""
        return [name for term in self.terms for name in term.names()]  # type: ignore[operator]

    def forward(
        self, student: Features, teacher: Features, batch: Batch, counts: dict[Count, Tensor], progress: float
    ) -> LossTerms:
        losses = LossTerms()
        for place, term in enumerate(self.terms):
            weight = self.shares[place] * value_at(self.weights[place], progress)
            for name, value in term(student, teacher, batch, progress).items():
                share = value / counts[term.count]  # type: ignore[index]
                losses.add(self.labels[place] + name.removeprefix(self.kinds[place]), share, weight)
        return losses


class Distillation(nn.Module):
    """Student and objectives (one a teacher) as the one module that the engine wraps: one clip, one checkpoint."""

    def __init__(self, student: StageModel, objectives: Sequence[Objective]) -> None:
        super().__init__()
        self.student = student
        self.objectives = nn.ModuleList(objectives)
        self.request = functools.reduce(operator.or_, (o.needs().student for o in objectives))

    def names(self) -> list[str]:
        return [name for objective in self.objectives for name in objective.names()]  # type: ignore[operator]

    def forward(
        self, batch: Batch, teachers: Sequence[Features], counts: dict[Count, Tensor], progress: float
    ) -> LossTerms:
        """Losses of one batch; ``teachers``: the features of each teacher, [Features()] where there is none."""
        features = self.student(batch, self.request)
        losses = LossTerms()
        for objective, teacher in zip(self.objectives, teachers, strict=True):
            losses.update(objective(features, teacher, batch, counts, progress))
        return losses


class Teacher(nn.Module):
    """A frozen model: always in eval mode, without gradients, outside the engine and the checkpoints.

    Args:
        encoder: on its device and in its precision for good (on a CPU its layers are packed, ``frozen.py``).
        number: its place among the stage's teachers, by which it finds its own tokens in a batch that carries them.
    """

    def __init__(self, encoder: StageModel, request: FeatureRequest, number: int = 0) -> None:
        super().__init__()
        self.number = number
        self.encoder = encoder.requires_grad_(False).eval()
        pack((encoder if isinstance(encoder, Encoder) else encoder.encoder).bert.encoder)
        self.request = request

    @property
    def config(self) -> EncoderConfig:
        return self.encoder.config

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.encoder.parameters())

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode: a teacher with live dropout gives noisy targets."""
        return self

    @torch.no_grad()
    def forward(self, batch: Batch, request: FeatureRequest | None = None) -> Features:
        """The features of ``request`` (default: what the objective asks for)."""
        wanted = request or self.request
        own = batch.own.get(self.number)
        features: Features = self.encoder(batch if own is None else own, wanted)
        features.layout = None if own is None else own.layout
        return features

"""The sum of the loss terms, and the module that is trained: student and projections in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill_core.batch import Batch, Count
from distill_core.features import FeatureRequest, Features
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.objectives import OBJECTIVES
from distill_core.objectives.base import Needs, TermConfig, value_at


@dataclass
class LossTerms:
    """One micro-batch's losses.

    ``total``: the weighted sum, each term divided by its global count (scalar with gradient).
    ``shares``: detached, by name: this micro-batch's share of the term's global mean, unweighted.
    ``weights``: by the same names, as they are at this step.
    """

    total: Tensor
    shares: dict[str, Tensor]
    weights: dict[str, float]


class Objective(nn.Module):
    """The weighted terms of a stage."""

    def __init__(self, terms: Sequence[TermConfig], student: EncoderConfig, teacher: EncoderConfig | None) -> None:
        super().__init__()
        self.terms = nn.ModuleList(OBJECTIVES[term.kind](term, student, teacher) for term in terms)
        self.weights = [term.weight for term in terms]
        kinds = [term.kind for term in terms]
        self.kinds = kinds
        self.labels = [k if kinds.count(k) == 1 else f"{k}.{i}" for i, k in enumerate(kinds)]

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

    def forward(
        self, student: Features, teacher: Features, batch: Batch, counts: dict[Count, Tensor], progress: float
    ) -> LossTerms:
        total: Tensor | None = None
        shares: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        for term, kind, label, wanted in zip(self.terms, self.kinds, self.labels, self.weights, strict=True):
            weight = value_at(wanted, progress)
            for name, value in term(student, teacher, batch, progress).items():
                share = value / counts[term.count]  # type: ignore[index]
                name = label + name.removeprefix(kind)
                shares[name], weights[name] = share.detach(), weight
                total = weight * share if total is None else total + weight * share
        assert total is not None
        return LossTerms(total, shares, weights)


class Distillation(nn.Module):
    """Student and objective as the one module that the engine wraps (one clip, one checkpoint)."""

    def __init__(self, student: Encoder, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.request = objective.needs().student

    def forward(self, batch: Batch, teacher: Features, counts: dict[Count, Tensor], progress: float) -> LossTerms:
        features = self.student(batch, self.request)
        terms: LossTerms = self.objective(features, teacher, batch, counts, progress)
        return terms


class Teacher(nn.Module):
    """A frozen encoder: always in eval mode, without gradients, outside the engine and the checkpoints."""

    def __init__(self, encoder: Encoder, request: FeatureRequest) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.request = request

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode: a teacher with live dropout gives noisy targets."""
        return self

    @torch.no_grad()
    def forward(self, batch: Batch, request: FeatureRequest | None = None) -> Features:
        """The features of ``request`` (default: what the objective asks for)."""
        wanted = request or self.request
        features: Features = self.encoder(batch, wanted)
        return features

"""The sum of the loss terms, and the module that is trained: student and projections in one."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from distill_core.batch import Batch, Count
from distill_core.features import FeatureRequest, Features
from distill_core.flops import Flops, forward_flops, total
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.models.frozen import pack
from distill_core.objectives import OBJECTIVES
from distill_core.objectives.base import Needs, Schedule, TermConfig, value_at
from distill_core.objectives.logits import Share, VocabularyTerm, weighted
from distill_core.tasks.model import StageModel


@dataclass
class LossTerms:
    """One micro-batch's losses.

    ``parts``: by name: the loss's share of its global mean (a scalar) and its weight at this step. Shares carry their
    gradient, but for those named in ``fused``, whose weighted sum ``fused_total`` does (objectives/fused.py).
    """

    parts: dict[str, tuple[Tensor, float]] = field(default_factory=dict)
    fused: frozenset[str] = frozenset()
    fused_total: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """The weighted sum, with gradient."""
        weighted = [weight * share for name, (share, weight) in self.parts.items() if name not in self.fused]
        return functools.reduce(operator.add, weighted + ([] if self.fused_total is None else [self.fused_total]))


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

    def flops(self) -> Flops:
        """Matrix products of the terms, forward and backward."""
        return total(term.flops() for term in self.terms)  # type: ignore[operator]

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
        return losses_of([self], student, [teacher], batch, counts, progress)


def losses_of(
    objectives: Sequence[Objective],
    student: Features,
    teachers: Sequence[Features],
    batch: Batch,
    counts: dict[Count, Tensor],
    progress: float,
    counted: Callable[[str], bool] = lambda name: True,
) -> LossTerms:
    """All losses of some objectives; those on vocabulary logits together, since they look at the same ones.

    ``counted``: by name: whether a loss has its weight, or weight 0.
    """
    parts: dict[str, tuple[Tensor, float]] = {}
    shares: dict[str, Share] = {}
    for objective, teacher in zip(objectives, teachers, strict=True):
        for place, term in enumerate(objective.terms):
            weight = objective.shares[place] * value_at(objective.weights[place], progress)
            label, kind, count = objective.labels[place], objective.kinds[place], counts[term.count]  # type: ignore[index]
            if isinstance(term, VocabularyTerm):
                weight = weight if counted(label) else 0.0
                parts[label] = (count, weight)  # keeps its place in the order
                shares[label] = Share(term, teacher, weight / count.double())
                continue
            for name, value in term(student, teacher, batch, progress).items():
                name = label + name.removeprefix(kind)
                parts[name] = (value / count, weight if counted(name) else 0.0)
    if not shares:
        return LossTerms(parts)
    total, sums = weighted(list(shares.values()), student, batch, progress)
    for name, share in shares.items():
        count, weight = parts[name]
        parts[name] = (sums[share.term] / count, weight)
    return LossTerms(parts, frozenset(shares), total)


class Distillation(nn.Module):
    """Student and objectives (one a teacher) as the one module that the engine wraps: one clip, one checkpoint."""

    def __init__(self, student: StageModel, objectives: Sequence[Objective]) -> None:
        super().__init__()
        self.student = student
        self.objectives = nn.ModuleList(objectives)
        self.request = functools.reduce(operator.or_, (o.needs().student for o in objectives))

    def flops(self) -> dict[str, Flops]:
        """Useful FLOPs of forward and backward by part. To be asked before ZeRO 3 takes the parameters away."""
        config = self.student.config
        return {
            "student": forward_flops(config, self.request) * 3,
            "losses": total(objective.flops() for objective in self.objectives),  # type: ignore[operator]
        }

    def names(self) -> list[str]:
        return [name for objective in self.objectives for name in objective.names()]  # type: ignore[operator]

    def forward(
        self, batch: Batch, teachers: Sequence[Features], counts: dict[Count, Tensor], progress: float
    ) -> LossTerms:
        """Losses of one batch; ``teachers``: the features of each teacher, [Features()] where there is none."""
        features = self.student(batch, self.request)
        counted = self.counted(progress)
        return losses_of(self.objectives, features, teachers, batch, counts, progress, counted)  # type: ignore[arg-type]

    def counted(self, progress: float) -> Callable[[str], bool]:
        """By its name: whether a loss is trained at the share ``progress`` of the stage's steps, or has weight 0."""
        return lambda name: True


class Teacher(nn.Module):
    """A frozen model: always in eval mode, without gradients, outside the engine and the checkpoints.

    Args:
        encoder: on its device and in its precision for good (on a CPU its layers are packed, ``frozen.py``).
        number: its place among the stage's teachers, by which it finds its own tokens in a batch that carries them.
        sharded: its layers are spread over the ranks, by hooks of torch that work on ordinary tensors alone.
    """

    def __init__(self, encoder: StageModel, request: FeatureRequest, number: int = 0, sharded: bool = False) -> None:
        super().__init__()
        self.number, self.sharded = number, sharded
        self.encoder = encoder.requires_grad_(False).eval()
        pack((encoder if isinstance(encoder, Encoder) else encoder.encoder).bert.encoder)
        self.request = request

    @property
    def config(self) -> EncoderConfig:
        return self.encoder.config

    def flops(self) -> Flops:
        """Of its forward pass; a teacher that reads its own tokens counts as if they were the student's."""
        return forward_flops(self.config, self.request)

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.encoder.parameters())

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode: a teacher with live dropout gives noisy targets."""
        return self

    def forward(self, batch: Batch, request: FeatureRequest | None = None) -> Features:
        """The features of ``request`` (default: what the objective asks for)."""
        wanted = request or self.request
        own = batch.own.get(self.number)
        with torch.no_grad() if self.sharded else torch.inference_mode():
            features: Features = self.encoder(batch if own is None else own, wanted)
        features.layout = None if own is None else own.layout
        return features.moved(ordinary)


def ordinary(values: Tensor) -> Tensor:
    """What was made in inference mode as a tensor that autograd may keep for a backward pass, on the same memory."""
    if not values.is_inference():
        return values
    made = torch.empty(0, dtype=values.dtype, device=values.device)
    return made.set_(values.untyped_storage(), values.storage_offset(), values.shape, values.stride())

"""Progressive knowledge transfer: the student's layers learn one after another (MobileBERT, arXiv 2004.02984, 3.3).

While layer l learns, only the losses that match layer l count. Layers below it stand still, or move slowly so that
they can go on correcting what is left of their error; nothing above has begun. Then the rest of the stage trains
everything with all losses. What counts and what moves is a pure function of the step, so there is nothing to save.

Every parameter still takes part in every backward pass, with a gradient of zero where it does not learn: DeepSpeed's
partitions then see the same parameters at each step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from configs.errors import ConfigError
from configs.loader import Config
from distill_core.batch import Batch, Count
from distill_core.features import Features
from distill_core.objective import Distillation, LossTerms, Objective
from distill_core.tasks.model import StageModel, TaskModel

OBJECTIVE = -1
"""The part of projections: they learn with the losses that they belong to."""


class ProgressiveConfig(Config):
    """The student's layers one after another, from the lowest."""

    steps_per_layer: int = Field(ge=1)
    """Optimiser steps for each layer; the steps that are left after the last layer train everything."""
    lower_layers: Literal["freeze", "slow"] = "slow"
    """What the layers below the one that learns do."""
    factor: float = Field(default=0.1, gt=0, le=1)
    """`slow`: their learning rate over that of the layer that learns."""


class Progressive:
    """The schedule of a student of so many layers."""

    def __init__(self, config: ProgressiveConfig, layers: int) -> None:
        self.config = config
        self.layers = layers

    def learning(self, step: int) -> int | None:
        """The layer (1 = the lowest) that learns at ``step`` (from 0); None: everything does."""
        layer = step // self.config.steps_per_layer + 1
        return layer if layer <= self.layers else None

    def frozen(self, step: int) -> int:
        """How many layers stand still below the one that learns."""
        layer = self.learning(step)
        return 0 if layer is None or self.config.lower_layers == "slow" else layer - 1

    def part(self, parameter: str) -> int:
        """The part that a parameter of the trained module belongs to.

        Its layer's number; 1 for the embeddings, which learn with the lowest layer; ``layers + 1`` for heads, which
        wait for the rest of the stage; :data:`OBJECTIVE` for projections.
        """
        if not parameter.startswith("student."):
            return OBJECTIVE
        numbered = re.search(r"\.encoder\.layer\.(\d+)\.", parameter)
        if numbered:
            return int(numbered[1]) + 1
        return 1 if ".embeddings" in parameter else self.layers + 1

    def factor(self, part: int, step: int) -> float:
        """Of the learning rate of the parameters of ``part`` at ``step``; 0: they keep every bit."""
        layer = self.learning(step)
        if layer is None or part in (layer, OBJECTIVE):
            return 1.0
        slow = part < layer and self.config.lower_layers == "slow"
        return self.config.factor if slow else 0.0

    def counts(self, matched: int | None, step: int) -> bool:
        """Whether a loss is trained at ``step`` that matches the student's layer ``matched`` (None: no layer).

        The embeddings (0) are matched while the lowest layer learns.
        """
        layer = self.learning(step)
        return layer is None or (matched is not None and max(matched, 1) == layer)

    def check(self, matched: Iterable[int | None], steps: int | None) -> None:
        """Raise :class:`ConfigError` when a layer would have nothing to learn from, or no time.

        Args:
            matched: the student's layers that losses match.
            steps: of the stage, None where they are not known yet.
        """
        taught = {max(layer, 1) for layer in matched if layer is not None}
        missing = [layer for layer in range(1, self.layers + 1) if layer not in taught]
        if missing:
            raise ConfigError(
                f"progressive: the objective compares no teacher layer with the student's layer {missing[0]}, so "
                "nothing would be learned while it is that layer's turn. Add a loss over all layers, such as "
                "{kind: hidden_mse, layers: uniform}."
            )
        needed = self.layers * self.config.steps_per_layer
        if steps is not None and steps < needed:
            raise ConfigError(
                f"progressive: {self.layers} layers of {self.config.steps_per_layer} steps take {needed} steps, but "
                f"the stage has {steps}. Raise training.steps or lower progressive.steps_per_layer."
            )


def matched_layers(objectives: Iterable[Objective]) -> dict[str, int | None]:
    """By the name of each reported loss: the student's layer that it matches, None if it matches none.

    Matching losses are called ``kind/T-S`` or ``kind/T-S/part``.
    """
    found: dict[str, int | None] = {}
    for objective in objectives:
        for name, own in zip(objective.names(), objective.own_names(), strict=True):
            pair = re.search(r"/\d+-(\d+)(?:/|$)", own)
            found[name] = None if pair is None else int(pair[1])
    return found


class ProgressiveDistillation(Distillation):
    """Student and objectives, of which each step trains what the schedule says."""

    def __init__(
        self, student: StageModel, objectives: Sequence[Objective], config: ProgressiveConfig, steps: int
    ) -> None:
        super().__init__(student, objectives)
        self.schedule = Progressive(config, student.config.num_hidden_layers)
        self.steps = steps
        self.matched = matched_layers(objectives)
        self.schedule.check(self.matched.values(), steps)
        self.frozen = 0
        layers = (student.encoder if isinstance(student, TaskModel) else student).bert.encoder.layer
        assert isinstance(layers, nn.ModuleList)
        for below, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(self._cut, below))

    def _cut(self, below: int, _layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """No gradient reaches a frozen layer: it would count in the norm that all gradients are clipped by."""
        return (inputs[0].detach(), *inputs[1:]) if 0 < below == self.frozen else None

    def forward(
        self, batch: Batch, teachers: Sequence[Features], counts: dict[Count, Tensor], progress: float
    ) -> LossTerms:
        step = round(progress * self.steps)
        self.frozen = self.schedule.frozen(step) if self.training else 0
        return super().forward(batch, teachers, counts, progress)

    def counted(self, progress: float) -> Callable[[str], bool]:
        step = round(progress * self.steps)
        return lambda name: self.schedule.counts(self.matched[name], step)

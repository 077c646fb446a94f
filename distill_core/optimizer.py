"""AdamW over groups of parameters: what decays, what moves at its own pace, with and without bias correction."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

from torch import nn

from distill_core.training import OptimizerConfig, TrainingConfig


class Pace(Protocol):
    """How fast parts of the trained module move (``progressive.py``): a pure function of the step."""

    def part(self, parameter: str) -> int: ...

    def factor(self, part: int, step: int) -> float: ...


def parameter_groups(module: nn.Module, training: TrainingConfig, pace: Pace | None = None) -> list[dict[str, Any]]:
    """Weight decay on matrices only; none on biases and LayerNorms. ``part``: of ``pace``, 0 without one."""
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    spared = () if training.optimizer.decay_projections else ("objectives.",)
    for name, parameter in module.named_parameters():
        undecayed = name.endswith("bias") or "LayerNorm" in name or name.startswith(spared)
        groups.setdefault((pace.part(name) if pace else 0, undecayed), []).append(parameter)
    decay = training.optimizer.weight_decay
    return [
        {"params": groups[part, undecayed], "weight_decay": 0.0 if undecayed else decay, "part": part}
        for part, undecayed in sorted(groups)
    ]


class AdamSettings(NamedTuple):
    learning_rate: float
    eps: float
    weight_decay: float


def adam_settings(optimizer: OptimizerConfig, learning_rate: float, step: int) -> AdamSettings:
    """What torch's AdamW is given at ``step`` (from 1).

    Without bias correction, w <- (1 - lr * decay) w - lr * m / (sqrt(v) + eps). torch divides m by c1 = 1 - beta1^t and
    sqrt(v) by sqrt(c2), c2 = 1 - beta2^t; with lr c1 / sqrt(c2), eps / sqrt(c2) and decay sqrt(c2) / c1 these cancel.
    """
    if optimizer.bias_correction:
        return AdamSettings(learning_rate, optimizer.eps, optimizer.weight_decay)
    c1, c2 = (1 - beta**step for beta in optimizer.betas)
    ratio = c1 / math.sqrt(c2)
    return AdamSettings(learning_rate * ratio, optimizer.eps / math.sqrt(c2), optimizer.weight_decay / ratio)

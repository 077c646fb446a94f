"""The memory of one rank, by part."""

from __future__ import annotations

from dataclasses import dataclass

from distill_core.models.config import EncoderConfig
from distill_core.training import TrainingConfig


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank."""

    weights: float
    gradients: float
    optimizer: float
    """fp32 masters and Adam's moments."""
    teacher: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.teacher + self.activations + self.logits


def memory(
    student: EncoderConfig,
    teachers: list[EncoderConfig],
    trained: int,
    training: TrainingConfig,
    tokens: float,
    masked: float,
    ranks: int,
) -> Memory:
    """Bytes on one rank at the peak of a micro-step of ``tokens`` tokens.

    ZeRO divides among the ranks: from stage 1 the optimizer state, from 2 the gradients, from 3 the weights.
    Activations that the backward pass needs, per token and layer: about 11 vectors of the hidden width and 2 of the
    intermediate one (no attention matrix: the kernels recompute it).
    """
    zero, word = training.zero_stage, 2 if training.precision == "bf16" else 4
    h, f = student.hidden_size, student.intermediate_size
    rows = tokens * masked
    teacher_logits = sum(t.vocab_size * rows * (word + 4) for t in teachers)
    passing = max((tokens * word * (6 * t.hidden_size + 2 * t.intermediate_size) for t in teachers), default=0.0)
    return Memory(
        weights=word * trained / (ranks if zero == 3 else 1),
        gradients=4.0 * trained / (ranks if zero >= 2 else 1),
        optimizer=8.0 * trained if zero == 0 else 12.0 * trained / ranks,
        teacher=float(sum(word * t.parameters() for t in teachers)),
        activations=tokens * word * student.num_hidden_layers * (11 * h + 2 * f) + passing,
        logits=student.vocab_size * rows * (word + 3 * 4) + teacher_logits,
    )

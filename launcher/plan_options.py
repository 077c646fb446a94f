"""Bytes on one rank's device, under each way of keeping and running the models."""

from __future__ import annotations

from dataclasses import dataclass

from distill_core.models.config import EncoderConfig
from distill_core.training import TrainingConfig

WORDS = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1, "fp8": 1}


@dataclass(frozen=True)
class Trained:
    """Bytes of one trained parameter."""

    weights: float
    gradients: float
    optimizer: float
    """fp32 masters and Adam's moments."""


def trained(training: TrainingConfig, zero: int, ranks: int) -> Trained:
    """ZeRO divides among the ranks: from stage 1 the optimizer state, from 2 the gradients, from 3 the weights."""
    zero = training.model_copy(update={"zero_stage": zero}).stage_on(ranks)
    weights = WORDS[training.precision] / (ranks if zero == 3 else 1)
    optimizer = 8.0 if zero == 0 else 12.0 / ranks
    return Trained(
        weights=0.0 if training.offload == "parameters" else weights,
        gradients=4.0 / (ranks if zero >= 2 else 1),
        optimizer=optimizer if training.offload == "none" else 0.0,
    )


def teacher(shape: EncoderConfig, training: TrainingConfig, ranks: int) -> float:
    """Bytes of a teacher: with 8 bits or sharded, that is of its layers; embeddings and head are as always."""
    inner = shape.parameters() - shape.model_copy(update={"num_hidden_layers": 0}).parameters()
    outside = training.precision if training.teacher_precision in ("int8", "fp8") else training.teacher_runs_in
    at_once = inner / shape.num_hidden_layers  # the layer that is gathered
    share = inner if training.teacher_sharding == "none" else inner / ranks + at_once
    return WORDS[outside] * (shape.parameters() - inner) + WORDS[training.teacher_runs_in] * share

"""One stage's training loop: the ``training:`` block."""

from __future__ import annotations

import difflib
import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from configs.loader import Config, runtime

# What may be handed through to DeepSpeed's configuration; everything else is generated (engine.py).
DEEPSPEED_KEYS = (
    "activation_checkpointing",
    "comms_logger",
    "communication_data_type",
    "disable_allgather",
    "dump_state",
    "flops_profiler",
    "gradient_predivide_factor",
    "memory_breakdown",
    "prescale_gradients",
    "sparse_gradients",
    "wall_clock_breakdown",
    "zero_optimization",
)


class OptimizerConfig(Config):
    """AdamW with linear warm-up."""

    learning_rate: float = Field(default=4e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-6, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    """Not on biases and LayerNorms."""
    decay_projections: bool = True
    """False: no weight decay on the losses' own parameters, as in TextBrewer (MiniRBT)."""
    bias_correction: bool = True
    """False: Adam's moments are used as they are, as in the BERT code's optimiser and Hugging Face's old AdamW."""
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps."""
    decay: Literal["linear", "cosine", "none"] = "linear"
    """After the warm-up: to 0 at the last step, or none."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Global norm over student and projections; 0 switches it off."""


class TrainingConfig(Config):
    """One stage's training loop."""

    steps: int | None = runtime(None, ge=1)
    """Optimiser steps. A change moves the end of the learning-rate decay."""
    epochs: float | None = runtime(None, gt=0)
    """Instead of ``steps``: so many passes over the training sequences or rows."""
    global_batch_size: int = Field(ge=1)
    """Sequences in one optimiser step, over all ranks."""
    order: Literal["shuffled", "corpus"] = "shuffled"
    """``corpus``: the sequences as they stand in the corpus, epoch after epoch (RobBERTje's unshuffled runs)."""
    sampled_rows: float = Field(default=0.15, gt=0, le=1)
    """Share of the tokens that losses with ``positions: sampled`` look at."""
    micro_batch_tokens: int = runtime(8192, ge=16)
    """The memory knob: tokens of one forward/backward on one rank."""
    precision: Literal["bf16", "fp32"] = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = runtime(1)
    attention: Literal["auto", "runs", "padded", "varlen"] = runtime("auto")
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint_every: int = runtime(1000, ge=1)
    keep_last: int = runtime(2, ge=1)
    evaluate_every: int = runtime(1000, ge=1)
    evaluate_sequences: int = runtime(2000, ge=1)
    """At most so many held-out sequences."""
    select: Literal["last", "best"] = "last"
    """Which model the stage leaves: that of the last step, or of the evaluation with the best score."""
    log_every: int = runtime(10, ge=1)
    peak_tflops: float | None = runtime(None, gt=0)
    """Of one rank's device in this precision, for the model FLOP utilization; default: measured in a square matrix
    product when the run first needs it (``peak.json`` in the run folder)."""
    deepspeed: dict[str, Any] = runtime({})
    """Passed through to DeepSpeed's configuration; unknown keys and keys that we set are refused."""

    @field_validator("deepspeed")
    @classmethod
    def _known_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if key not in DEEPSPEED_KEYS:
                near = difflib.get_close_matches(key, DEEPSPEED_KEYS, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(DEEPSPEED_KEYS)}"
                raise ValueError(
                    f"{key!r} is not passed on to DeepSpeed (which ignores keys it does not know): it is set from the "
                    f"typed keys of `training`, or does not exist; {hint}"
                )
        if "stage" in value.get("zero_optimization", {}):
            raise ValueError("set the ZeRO stage with training.zero_stage, not inside zero_optimization")
        return value

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps (optimiser steps) or epochs (passes over the training data)")
        return self

    def total_steps(self, sequences: int | None) -> int:
        """Optimiser steps over ``sequences`` training sequences (None: not known yet, an epoch counts as one step)."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, math.ceil(self.epochs * (sequences or self.global_batch_size) / self.global_batch_size))

    @model_validator(mode="after")
    def _stage_zero_is_fp32(self) -> TrainingConfig:
        if self.zero_stage == 0 and self.precision != "fp32":
            raise ValueError(
                "zero_stage 0 with 16-bit precision is not offered: DeepSpeed steps its optimizer once on zero "
                "gradients there, so Adam's bias correction is off by one; take zero_stage: 1"
            )
        return self

"""One stage's training loop: the ``training:`` block."""

from __future__ import annotations

import difflib
import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from configs.loader import Config, runtime
from distill_core.early_stopping import EarlyStoppingConfig

Precision = Literal["bf16", "fp16", "fp32"]

# What may be handed through to DeepSpeed's configuration; everything else is generated (engine.py).
DEEPSPEED_KEYS = (
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
    precision: Precision | Literal["auto"] = "bf16"
    """Of both models' computation; the student's weights are kept in fp32 besides. `fp16`, with a dynamic loss scale,
    is for GPUs without bf16. `auto`: bf16 where all ranks' devices have units for it (GPUs from Ampere on, CPUs with
    AVX-512 bf16 or AMX), else fp16 on GPUs, else fp32; decided when the run first starts, and kept (precision.py)."""
    teacher_precision: Literal["bf16", "fp16", "fp32", "int8", "fp8"] | None = None
    """Default: `precision`. `int8` (CPU and CUDA) and `fp8` (GPUs from H100 on) are of the layers' matrix products;
    what it does to each loss is measured on a held-out batch when the stage begins."""
    teacher_sharding: Literal["none", "zero3"] = runtime("none")
    """`zero3`: the teachers' layers are spread over the ranks and gathered one at a time, for a teacher that does not
    fit one GPU."""
    max_skipped_steps: int = runtime(20, ge=1)
    """So many steps in a row whose gradients are not finite are left out (fp16 finds its loss scale that way); more are
    an error, when the next line is logged."""
    zero_stage: Literal[0, 1, 2, 3] = runtime(1)
    offload: Literal["none", "optimizer", "parameters"] = runtime("none")
    """To the CPU's memory: fp32 masters and Adam's moments (`optimizer`, ZeRO 1 to 3), and the 16-bit weights too
    (`parameters`, ZeRO 3)."""
    attention: Literal["auto", "runs", "padded", "varlen"] = runtime("auto")
    activation_checkpointing: bool = runtime(False)
    """Keep of each of the student's layers only what goes into it, and compute the rest again in the backward pass:
    a third more work of the student, and a fraction of its memory."""
    compile: Literal["off", "default", "max-autotune"] = runtime("off")
    """torch.compile's mode, for the parts of both models outside attention; without CUDA graphs. Needs a C++ compiler
    on a CPU, where it has brought nothing, and a C compiler on a GPU, where it has not been measured."""
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint_every: int = runtime(1000, ge=1)
    keep_last: int = runtime(2, ge=1)
    evaluate_every: int = runtime(1000, ge=1)
    evaluate_sequences: int = runtime(2000, ge=1)
    """At most so many held-out sequences."""
    select: Literal["last", "best"] = "last"
    """Which model the stage leaves: that of the last step, or of the evaluation with the best score."""
    early_stopping: EarlyStoppingConfig | None = runtime(None)
    """End before ``steps`` or ``epochs`` when the evaluations get no better (``evaluate_every`` must be given)."""
    log_every: int = runtime(10, ge=1)
    loader_ahead: int = runtime(2, ge=1)
    """Steps that are read and masked ahead of the one that is trained on."""
    loader_threads: int = runtime(1, ge=1)
    """Threads of a rank that do so. More only where the log shows ``data/wait_seconds``."""
    peak_tflops: float | None = runtime(None, gt=0)
    """Of one rank's device in this precision, for the model FLOP utilization; default: measured in a square matrix
    product when the run first needs it (``peak.json`` in the run folder)."""
    deepspeed: dict[str, Any] = runtime({})
    """Passed through to DeepSpeed's configuration; unknown keys and keys that we set are refused."""

    @field_validator("compile", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        """YAML reads a plain `off` as false."""
        return "off" if value is False else value

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

    @model_validator(mode="after")
    def _evaluations_to_stop_by(self) -> TrainingConfig:
        if self.early_stopping is not None and "evaluate_every" not in self.model_fields_set:
            raise ValueError(
                "early_stopping counts evaluations, and `evaluate_every` is not given: say after how many steps there "
                f"is one (patience {self.early_stopping.patience} is so many of them)"
            )
        return self

    @property
    def teacher_runs_in(self) -> str:
        """`teacher_precision` with its default."""
        return self.teacher_precision or self.precision

    def stage_on(self, ranks: int) -> int:
        """The ZeRO stage that is run: one rank alone has nothing to divide, and keeps its state as is quickest."""
        if ranks > 1 or self.offload != "none" or self.precision == "fp16":
            return self.zero_stage
        return min(self.zero_stage, 0 if self.precision == "fp32" else 1)

    def total_steps(self, sequences: int | None) -> int:
        """Optimiser steps over ``sequences`` training sequences (None: not known yet, an epoch counts as one step)."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, math.ceil(self.epochs * (sequences or self.global_batch_size) / self.global_batch_size))

    @model_validator(mode="after")
    def _flash_kernels_have_16_bits(self) -> TrainingConfig:
        for name in ("precision", "teacher_precision"):
            if self.attention == "varlen" and getattr(self, name) == "fp32":
                raise ValueError(
                    f"attention: varlen has kernels of 16 bits only, and {name} is fp32; take attention: auto, which "
                    "takes them where they can be"
                )
        return self

    @model_validator(mode="after")
    def _compiles_whole_weights(self) -> TrainingConfig:
        if self.compile != "off" and self.zero_stage == 3:
            raise ValueError("compile is not offered with zero_stage: 3, whose weights come and go between the parts")
        return self

    @model_validator(mode="after")
    def _offload_needs_partitions(self) -> TrainingConfig:
        if self.offload == "parameters" and self.zero_stage != 3:
            raise ValueError("offload: parameters needs zero_stage: 3, the only one that takes weights apart")
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("offload: optimizer needs zero_stage 1, 2 or 3, which keep the optimizer apart")
        return self

    @model_validator(mode="after")
    def _stage_zero_is_fp32(self) -> TrainingConfig:
        if self.zero_stage == 0 and self.precision != "fp32":
            raise ValueError(
                f"zero_stage 0 with 16-bit precision is not offered (precision: {self.precision}): DeepSpeed steps its "
                "optimizer once on zero gradients there, so Adam's bias correction is off by one; take zero_stage: 1"
            )
        return self


def has_no_teacher(stage: Any) -> Any:
    """Of a stage without teachers: raise ValueError where its training says how they run."""
    for name, default in (("teacher_precision", None), ("teacher_sharding", "none")):
        if getattr(stage.training, name) != default:
            raise ValueError(f"training.{name} is of teachers, and a stage of kind {stage.kind} has none; remove it")
    return stage

"""The run file as a typed tree: ``RunConfig``. Component configs stand beside their components."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field, field_validator, model_validator

from configs.loader import Config, runtime
from data_prep.config import NAME, PrepConfig
from distill_core.evaluate.pseudo_perplexity import PseudoPerplexityConfig
from distill_core.models.config import ModelConfig
from distill_core.models.layer_choice import LayerChoice
from distill_core.objectives import OBJECTIVES
from distill_core.objectives.base import TermConfig

if TYPE_CHECKING:
    AnyTerm = TermConfig
else:  # one union over the registry, so that a new loss file is a new `kind` and errors name the right keys
    _CONFIGS = tuple(OBJECTIVES[name].Config for name in OBJECTIVES)
    AnyTerm = Annotated[Union[_CONFIGS], Field(discriminator="kind")]  # noqa: UP007


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
    """AdamW with linear warm-up and linear decay to 0."""

    learning_rate: float = Field(default=4e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-6, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    """Not on biases and LayerNorms."""
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Global norm over student and projections; 0 switches it off."""


class TrainingConfig(Config):
    """One stage's training loop."""

    steps: int = runtime(ge=1)
    """Optimiser steps. A change moves the end of the learning-rate decay."""
    global_batch_size: int = Field(ge=1)
    """Sequences in one optimiser step, over all ranks."""
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
    log_every: int = runtime(10, ge=1)
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
    def _stage_zero_is_fp32(self) -> TrainingConfig:
        if self.zero_stage == 0 and self.precision != "fp32":
            raise ValueError(
                "zero_stage 0 with 16-bit precision is not offered: DeepSpeed steps its optimizer once on zero "
                "gradients there, so Adam's bias correction is off by one; take zero_stage: 1"
            )
        return self


class TeacherConfig(Config):
    """Where the teacher's weights come from."""

    source: str
    """The name of an earlier stage, a local Hugging Face folder, or a hub name."""
    shape: ModelConfig | None = runtime(None)
    """Only for `distill plan` without the weights at hand."""


class InitConfig(Config):
    """How the student begins (``models/initialise.py``)."""

    kind: Literal["random", "teacher_layers", "svd", "model"] = "random"
    """`svd`: the teacher made narrower; `model`: the weights of another model of the same shape."""
    layers: LayerChoice = []
    """The teacher's layer (0-based) for each student layer, or a rule: uniform, top, bottom, symmetric, alternate,
    distilbert, scores. `teacher_layers` needs it; `svd` makes embeddings only without it."""
    embeddings: bool = True
    """`teacher_layers`: the embeddings too."""
    head: bool = False
    """`teacher_layers`, `svd`: the masked-LM head too, as DistilBERT does; MiniRBT leaves it random."""
    source: str | None = None
    """`model`: the name of an earlier stage, a local Hugging Face folder, or a hub name."""

    @model_validator(mode="after")
    def _keys_belong(self) -> InitConfig:
        if bool(self.layers) != (self.kind == "teacher_layers") and not (self.layers and self.kind == "svd"):
            raise ValueError("`layers` belongs to kind: teacher_layers, and is required there (svd: optional)")
        if not self.embeddings and self.kind != "teacher_layers":
            raise ValueError("`embeddings: false` belongs to kind: teacher_layers")
        if self.head and self.kind not in ("teacher_layers", "svd"):
            raise ValueError("`head: true` belongs to kind: teacher_layers or svd")
        if self.head and not self.embeddings:
            raise ValueError("`head: true` needs `embeddings: true`, as the head's decoder is the word embeddings")
        if (self.source is not None) != (self.kind == "model"):
            raise ValueError("`source` belongs to kind: model, and is required there")
        return self


class StudentConfig(Config):
    model: ModelConfig
    init: InitConfig = InitConfig()


class PretrainStage(Config):
    """Masked-LM training of a model from scratch."""

    kind: Literal["pretrain"]
    name: str = Field(pattern=NAME)
    model: ModelConfig
    training: TrainingConfig


class DistillStage(Config):
    """Distillation of a teacher into a student."""

    kind: Literal["distill"]
    name: str = Field(pattern=NAME)
    teacher: TeacherConfig
    student: StudentConfig
    objective: list[AnyTerm] = Field(min_length=1)
    training: TrainingConfig

    @field_validator("teacher", mode="before")
    @classmethod
    def _short_teacher(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


Stage = Annotated[PretrainStage | DistillStage, Field(discriminator="kind")]


class LaunchConfig(Config):
    """Where the ranks run."""

    backend: str = "local"
    processes: int | None = Field(default=None, ge=1)
    """Ranks on this machine; default: one per GPU, or 1 without GPUs."""


class EvaluationConfig(Config):
    """What is measured at the end of the run."""

    latency_lengths: list[int] = [32, 128]
    latency_batch_sizes: list[int] = [1, 16]
    latency_repeats: int = Field(default=10, ge=1)
    sentences: list[str] = []
    """With one [MASK] each: the fill-mask guesses printed at the end."""
    pseudo_perplexity: PseudoPerplexityConfig | None = None
    """Of all models on held-out sequences; one forward pass a token, so off unless asked for."""
    bias: list[str] = []
    """Template sets: packaged ones (en, nl, zh) or paths of own YAML files."""
    choices: str | None = None
    """Path of a JSON lines file of gaps with words to choose from: {"sentence": "... [MASK] ...", "choices": [...],
    "answer": "..."}."""

    @field_validator("sentences")
    @classmethod
    def _one_mask(cls, value: list[str]) -> list[str]:
        for sentence in value:
            if sentence.count("[MASK]") != 1:
                raise ValueError(f"the sentence {sentence!r} must hold exactly one [MASK]")
        return value


class RunConfig(PrepConfig):
    """A whole run: data, the chain of stages, where it runs and what is reported."""

    seed: int = 1337
    stages: list[Stage] = Field(min_length=1)
    launch: LaunchConfig = runtime(default_factory=LaunchConfig)
    evaluation: EvaluationConfig = runtime(default_factory=EvaluationConfig)

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two stages are called {name!r}; stage names are folder names and must differ")
        for index, stage in enumerate(self.stages):
            if isinstance(stage, DistillStage) and stage.teacher.source in names[index:]:
                raise ValueError(f"stage {stage.name!r}: its teacher {stage.teacher.source!r} is not an earlier stage")
            if stage.training.micro_batch_tokens < self.data.sequences.max_length:
                raise ValueError(
                    f"stage {stage.name!r}: a batch cannot be cut: micro_batch_tokens "
                    f"{stage.training.micro_batch_tokens} is smaller than data.sequences.max_length "
                    f"{self.data.sequences.max_length}; raise the first or lower the second"
                )
        return self

    def stage_folder(self, index: int) -> Path:
        return self.folder / "stages" / f"{index + 1:02d}-{self.stages[index].name}"

    def stage_index(self, name: str) -> int | None:
        return next((i for i, stage in enumerate(self.stages) if stage.name == name), None)

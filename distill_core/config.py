"""The run file as a typed tree: ``RunConfig``. Component configs stand beside their components."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import AfterValidator, Field, field_validator, model_validator

from configs.loader import Config, runtime
from data_prep.config import NAME, PrepConfig
from distill_core.beside import check_beside
from distill_core.cache import TeacherCacheConfig
from distill_core.evaluate.config import EvaluationConfig
from distill_core.models.config import ModelConfig
from distill_core.models.layer_choice import LayerChoice
from distill_core.objectives import OBJECTIVES
from distill_core.objectives.base import TermConfig, some_weight
from distill_core.objectives.logits import MlmConfig
from distill_core.objectives.task import TaskKdConfig, TaskLossConfig
from distill_core.progressive import ProgressiveConfig
from distill_core.references.config import ReferencesConfig
from distill_core.tasks.augment import AugmentConfig
from distill_core.tasks.config import TaskConfig
from distill_core.training import TrainingConfig, has_no_teacher

if TYPE_CHECKING:
    Terms = list[TermConfig]
else:  # one union over the registry, so that a new loss file is a new `kind` and errors name the right keys
    _CONFIGS = tuple(OBJECTIVES[name].Config for name in OBJECTIVES)
    _TERM = Annotated[Union[_CONFIGS], Field(discriminator="kind")]  # noqa: UP007
    Terms = Annotated[list[_TERM], Field(min_length=1), AfterValidator(some_weight)]

MLM: TermConfig = MlmConfig(kind="mlm")
TASK: TermConfig = TaskLossConfig(kind="task")


class TeacherConfig(Config):
    """Where a teacher's weights come from."""

    source: str
    """The name of an earlier stage, a local Hugging Face folder, or a hub name (`ORG/NAME@COMMIT`)."""
    shape: ModelConfig | None = runtime(None)
    """Only for `distill plan` without the weights at hand."""
    weight: float = Field(default=1.0, gt=0)
    """Of its losses, where there are several teachers (divided by the sum of the weights)."""
    head_check: Literal["refuse", "warn", "off"] | None = runtime(None)
    """When vocabulary logits are asked of a teacher whose masked-LM head does no better than token frequencies;
    default: refuse, but only warn of an earlier stage of the run, whose head was trained here."""

    @field_validator("head_check", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        """YAML reads a plain `off` as false."""
        return "off" if value is False else value

    def gate(self, own: bool) -> Literal["refuse", "warn", "off"]:
        """``head_check`` with its default; ``own``: the teacher is an earlier stage of the run."""
        return self.head_check or ("warn" if own else "refuse")


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
    """The name of an earlier stage, a local Hugging Face folder, or a hub name (`ORG/NAME@COMMIT`). `model`: its
    weights are taken whole; `teacher_layers`, `svd`: the model that they are taken from instead of the stage's first
    teacher."""

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
        if self.source is None and self.kind == "model":
            raise ValueError("`source` is required by kind: model")
        if self.source is not None and self.kind == "random":
            raise ValueError("`source` belongs to kind: model, teacher_layers or svd")
        return self

    @property
    def whole(self) -> str | None:
        """The model whose weights are taken as they are."""
        return self.source if self.kind == "model" else None

    @property
    def parts(self) -> str | None:
        """The model, other than a teacher, of which something is taken."""
        return None if self.kind == "model" else self.source


class StudentConfig(Config):
    model: ModelConfig | None = None
    """Its shape; not needed with init: {kind: model}, which takes the shape along."""
    init: InitConfig = InitConfig()

    @model_validator(mode="after")
    def _has_a_shape(self) -> StudentConfig:
        if self.model is None and self.init.kind != "model":
            raise ValueError("give student.model (its shape), or take weights and shape along: init: {kind: model}")
        return self


class PretrainStage(Config):
    """Masked-LM training of a model, from scratch or from given weights."""

    kind: Literal["pretrain"]
    name: str = Field(pattern=NAME)
    model: ModelConfig | None = None
    init: InitConfig = InitConfig()
    """{kind: model, source: ...} goes on from given weights, e.g. to train a head that a teacher lacks;
    {kind: teacher_layers, layers: bottom, source: ...} from some of a model's layers (RBT3)."""
    objective: Terms = Field(default_factory=lambda: [MLM])
    """Losses without a teacher: mlm, sentence_order."""
    training: TrainingConfig

    _no_teacher = model_validator(mode="after")(has_no_teacher)

    @model_validator(mode="after")
    def _has_a_shape(self) -> PretrainStage:
        if (self.model is None) != (self.init.kind == "model"):
            raise ValueError("give either model (a shape, to begin at random) or init: {kind: model, source: ...}")
        if self.init.kind in ("teacher_layers", "svd") and self.init.source is None:
            raise ValueError(f"init: {{kind: {self.init.kind}}} needs a `source` here, as there is no teacher")
        return self


class FinetuneStage(Config):
    """Training of a model on the labels of a task."""

    kind: Literal["finetune"]
    name: str = Field(pattern=NAME)
    model: str
    """The name of an earlier stage, a local Hugging Face folder, or a hub name (`ORG/NAME@COMMIT`)."""
    task: str
    """A name from the run's `tasks`."""
    rows: str | None = None
    """The name of an earlier `augment` stage, whose rows are trained on instead of the task's own."""
    objective: Terms = Field(default_factory=lambda: [TASK])
    training: TrainingConfig

    _no_teacher = model_validator(mode="after")(has_no_teacher)


class AugmentStage(Config):
    """Makes more rows of a task's training data with a masked LM; trains nothing."""

    kind: Literal["augment"]
    name: str = Field(pattern=NAME)
    model: str
    """The masked LM: the name of an earlier stage, a local Hugging Face folder, or a hub name (`ORG/NAME@COMMIT`)."""
    task: str
    augment: AugmentConfig = Field(default_factory=lambda: AugmentConfig())


class DistillStage(Config):
    """Distillation of a teacher (or several) into a student, on the corpus or on the rows of a task."""

    kind: Literal["distill"]
    name: str = Field(pattern=NAME)
    teacher: list[TeacherConfig] = Field(min_length=1)
    """One or several; a name, a mapping, or a list of them."""
    student: StudentConfig
    task: str | None = None
    """A name from the run's `tasks`: the stage reads its rows instead of the corpus."""
    rows: str | None = None
    """The name of an earlier `augment` stage, whose rows are trained on instead of the task's own."""
    references: ReferencesConfig | None = None
    """The student also reads the first teacher's vectors of the most similar other training text (RefBERT)."""
    objective: Terms
    progressive: ProgressiveConfig | None = None
    """The student's layers learn one after another, as MobileBERT's."""
    beside: str | None = runtime(None)
    """The name of the distill stage directly before this one (or of one that is trained beside that): both students
    are trained at once with one teacher forward, and end in the same weights as one after the other."""
    training: TrainingConfig
    teacher_cache: TeacherCacheConfig | None = runtime(None)
    """Compute the teachers' outputs once, keep them on disk, and train without the live teacher; {} for defaults.
    `distill plan` says whether it pays. A change continues the run with outputs that are the same up to rounding."""

    @field_validator("teacher", mode="before")
    @classmethod
    def _short_teacher(cls, value: Any) -> Any:
        given = value if isinstance(value, list) else [value]
        return [{"source": item} if isinstance(item, str) else item for item in given]

    @model_validator(mode="after")
    def _teachers_differ(self) -> DistillStage:
        names = [teacher.source for teacher in self.teacher]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the teacher {twice!r} is named twice; name it once, with a larger weight")
        return self

    @model_validator(mode="after")
    def _rows_of_a_task(self) -> DistillStage:
        if self.rows is not None and self.task is None:
            raise ValueError("`rows` belongs to a stage with a `task`")
        return self

    @model_validator(mode="after")
    def _cache_of_the_corpus(self) -> DistillStage:
        if self.teacher_cache is None:
            return self
        if self.task is not None:
            raise ValueError("`teacher_cache` keeps what teachers say about the corpus; a stage with a `task` has none")
        if self.references is not None:
            raise ValueError("`teacher_cache` and `references` do not go together yet; take one of them")
        runs_in = self.training.teacher_runs_in
        if self.teacher_cache.precision == "fp32" and runs_in in ("bf16", "auto"):
            raise ValueError(
                "teacher_cache.precision: fp32 keeps no more than bf16 of a teacher that runs in bf16"
                + (", as it may with precision: auto" if runs_in == "auto" else "")
            )
        if self.teacher_cache.precision is None and runs_in not in ("bf16", "fp32"):
            raise ValueError(f"the teacher runs in {runs_in}: say teacher_cache.precision, bf16 or fp32")
        return self

    @model_validator(mode="after")
    def _sharded_teachers_answer_together(self) -> DistillStage:
        idle = [name for name in ("teacher_cache", "references") if getattr(self, name) is not None]
        if self.training.teacher_sharding != "none" and idle:
            raise ValueError(
                f"`{idle[0]}` asks the teacher on each rank by itself, but with teacher_sharding all ranks must ask "
                "together; drop one of the two"
            )
        return self


TrainedStage = PretrainStage | DistillStage | FinetuneStage
AnyStage = TrainedStage | AugmentStage
Stage = Annotated[AnyStage, Field(discriminator="kind")]


def model_sources(stage: AnyStage) -> list[str]:
    """What a stage takes weights from: names of stages, folders, hub names."""
    if isinstance(stage, FinetuneStage | AugmentStage):
        return [stage.model]
    init = stage.student.init if isinstance(stage, DistillStage) else stage.init
    found = [teacher.source for teacher in stage.teacher] if isinstance(stage, DistillStage) else []
    return found if init.source is None else [*found, init.source]


def made_from(stage: AnyStage) -> tuple[ModelConfig | None, str | None]:
    """The shape of a stage's model as the run file gives it, and where its weights begin if they are taken along."""
    if isinstance(stage, FinetuneStage | AugmentStage):
        return None, stage.model
    if isinstance(stage, DistillStage):
        return stage.student.model, stage.student.init.whole
    return stage.model, stage.init.whole


def parts_from(stage: AnyStage) -> str | None:
    """The model, other than a teacher, whose layers or embeddings a stage's model begins with."""
    if isinstance(stage, DistillStage):
        return stage.student.init.parts
    return stage.init.parts if isinstance(stage, PretrainStage) else None


def sources(stage: AnyStage) -> list[str]:
    """What a stage takes weights or rows from."""
    rows = getattr(stage, "rows", None)
    return model_sources(stage) + ([] if rows is None else [rows])


def reads_corpus(stage: AnyStage) -> bool:
    """Whether a stage reads the corpus, and not a task's rows; what it makes is then a masked LM."""
    return isinstance(stage, PretrainStage) or (isinstance(stage, DistillStage) and stage.task is None)


def trained(stages: Sequence[AnyStage]) -> list[TrainedStage]:
    """The stages that make a model."""
    return [stage for stage in stages if not isinstance(stage, AugmentStage)]


class LaunchConfig(Config):
    """Where the ranks run."""

    backend: str = "local"
    processes: int | None = Field(default=None, ge=1)
    """Ranks on this machine; default: one per GPU, or 1 without GPUs."""


class RunConfig(PrepConfig):
    """A whole run: data, the chain of stages, where it runs and what is reported."""

    seed: int = 1337
    mode: str | None = runtime(None)
    """The one of the run file's `modes` that was chosen (configs/loader.py)."""
    language: str = runtime("zh")
    """Of the models, as their cards name it."""
    tasks: dict[str, TaskConfig] = {}
    """Labelled data, by the names that stages use."""
    stages: list[Stage] = Field(min_length=1)
    launch: LaunchConfig = runtime(default_factory=LaunchConfig)
    evaluation: EvaluationConfig = runtime(default_factory=EvaluationConfig)

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        names = [stage.name for stage in self.stages]
        if not trained(self.stages):
            raise ValueError("no stage makes a model (augment makes rows); add a finetune, distill or pretrain stage")
        if not self.data.sources:
            self._check_no_corpus()
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two stages are called {name!r}; stage names are folder names and must differ")
        for index, stage in enumerate(self.stages):
            late = [source for source in sources(stage) if source in names[index:]]
            if late:
                raise ValueError(
                    f"stage {stage.name!r} starts from {late[0]!r}, but {late[0]!r} is not an earlier stage"
                )
            rowless = [s.name for s in self.stages[:index] if isinstance(s, AugmentStage)]
            wrong = [source for source in model_sources(stage) if source in rowless]
            if wrong:
                raise ValueError(f"stage {stage.name!r}: {wrong[0]!r} makes rows, not a model; name another stage")
            self._check_task(stage, self.stages[:index])
            if isinstance(stage, AugmentStage):
                continue
            longest = self.longest(stage)
            if stage.training.micro_batch_tokens < longest:
                raise ValueError(
                    f"stage {stage.name!r}: a batch cannot be cut: micro_batch_tokens "
                    f"{stage.training.micro_batch_tokens} is smaller than max_length {longest}; raise the first or "
                    "lower the second"
                )
        check_beside(self.stages, [sources(stage) for stage in self.stages])
        return self

    def _check_no_corpus(self) -> None:
        """Nothing in the run needs the text that it has not."""
        reader = next((stage for stage in self.stages if reads_corpus(stage)), None)
        if reader is not None:
            raise ValueError(
                f"stage {reader.name!r} (kind {reader.kind}) learns from the corpus, but data.sources names no text; "
                "add data.sources" + (", or give the stage a `task`" if isinstance(reader, DistillStage) else "")
            )
        if self.evaluation.pseudo_perplexity is not None:
            raise ValueError("evaluation.pseudo_perplexity is measured on held-out text, but data.sources names none")

    def _check_task(self, stage: AnyStage, earlier: Sequence[AnyStage]) -> None:
        task, rows = getattr(stage, "task", None), getattr(stage, "rows", None)
        if task is not None and task not in self.tasks:
            near = difflib.get_close_matches(task, self.tasks, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self.tasks) or 'none'}"
            raise ValueError(f"stage {stage.name!r}: there is no task {task!r} under `tasks`; {hint}")
        if rows is not None:
            made = [s for s in earlier if isinstance(s, AugmentStage) and s.name == rows]
            if not made:
                raise ValueError(f"stage {stage.name!r}: rows {rows!r} is not an earlier stage of kind augment")
            if made[0].task != task:
                raise ValueError(f"stage {stage.name!r}: rows {rows!r} are of task {made[0].task!r}, not of {task!r}")
        if task is not None and self.tasks[task].kind == "regression":
            answers = [term for term in getattr(stage, "objective", []) if isinstance(term, TaskKdConfig)]
            idle = [name for term in answers for name in term.of_distributions()]
            if idle:
                raise ValueError(
                    f"stage {stage.name!r}: the task {task!r} is a regression, where task_kd is the squared difference "
                    f"of two numbers; {', '.join(idle)} would do nothing. Remove it (or take {{kind: task}}, the "
                    "labels' own loss, as TinyBERT's code does)."
                )

    def longest(self, stage: AnyStage) -> int:
        """Tokens of the longest sequence that the stage can meet."""
        task = getattr(stage, "task", None)
        return self.data.sequences.max_length if task is None else self.tasks[task].max_length

    def stage_folder(self, index: int) -> Path:
        return self.folder / "stages" / f"{index + 1:02d}-{self.stages[index].name}"

    def stage_index(self, name: str) -> int | None:
        return next((i for i, stage in enumerate(self.stages) if stage.name == name), None)

    def model_source(self, source: str) -> str:
        """The folder of an earlier stage's model, or the folder or hub name as given."""
        earlier = self.stage_index(source)
        return source if earlier is None else str(self.stage_folder(earlier) / "model")

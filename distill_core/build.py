"""What a stage's loop works with, and how it is built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from configs.errors import DataError
from configs.loader import to_yaml
from data_prep.corpus import Corpus
from data_prep.inspect import samples as masked_samples
from data_prep.tokenizer import open_tokenizer
from distill_core import checkpoint
from distill_core.cache import AnyTeacher, cache_teachers
from distill_core.checkpoint import Checkpoint
from distill_core.config import DistillStage, PretrainStage, RunConfig, TrainedStage
from distill_core.data import CorpusSource, Loader, Source, held_out_batches
from distill_core.engine import Engine, Rank
from distill_core.evaluate import masked_lm
from distill_core.evaluate.teacher_head import check_head
from distill_core.features import FeatureRequest
from distill_core.load import (
    LoadedTeacher,
    check_heads,
    objectives,
    own_tokens,
    stage_models,
    stage_teachers,
    with_token_ids,
)
from distill_core.meter import Meter
from distill_core.models.attention import choose_kernel
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.monitor import Monitor
from distill_core.objective import Distillation, Objective, Teacher
from distill_core.objectives import OBJECTIVES
from distill_core.progressive import ProgressiveDistillation
from distill_core.record import BestModel, Quality
from distill_core.references.prepare import StageReferences, prepare_references
from distill_core.references.store import Reader
from distill_core.tasks import quality as task_quality
from distill_core.tasks.load import Task, read_labels, read_task
from distill_core.tasks.model import StageModel, TaskModel
from distill_core.tasks.own_tokens import check_own_tokens, with_own_tokens
from distill_core.training import TrainingConfig

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
HEAD_CHECK_SEQUENCES = 200


@dataclass
class Trainee:
    """A stage in training: what is its own. ``quality``: of the last evaluation."""

    config: RunConfig
    index: int
    identity: dict[str, Any]
    student: StageModel
    engine: Engine
    first_step: int
    monitor: Monitor | None
    meter: Meter
    best: BestModel
    quality: Quality | None = None

    @property
    def stage(self) -> TrainedStage:
        stage = self.config.stages[self.index]
        assert isinstance(stage, TrainedStage)
        return stage

    @property
    def training(self) -> TrainingConfig:
        return self.stage.training

    @property
    def folder(self) -> Path:
        return self.config.stage_folder(self.index)


@dataclass
class Parts:
    """Everything the loop works with: the trainees (one stage, or several side by side), and what they share."""

    config: RunConfig
    rank: Rank
    corpus: Corpus
    task: Task | None
    teachers: Sequence[AnyTeacher]
    loader: Loader
    held_out: Source
    steps: int
    trainees: list[Trainee]
    references: StageReferences | None

    @property
    def first_step(self) -> int:
        """Of the trainee that is least far; the others join at their own."""
        return min(trainee.first_step for trainee in self.trainees)

    @property
    def names(self) -> str:
        return ", ".join(repr(trainee.stage.name) for trainee in self.trainees)

    def restart_clocks(self) -> None:
        """What one trainee's evaluation takes is no step's time."""
        for trainee in self.trainees:
            trainee.meter.restart_clock()

    def pairs(self, trainee: Trainee) -> list[list[tuple[int, int]]]:
        """For each loss term its (teacher, student) layer pairs, with the first teacher."""
        if not self.teachers:
            return [[] for _ in trainee.stage.objective]
        depths = (self.teachers[0].config.num_hidden_layers, trainee.student.config.num_hidden_layers)
        return [term.pairs(*depths) for term in trainee.stage.objective]

    def measure(self, trainee: Trainee) -> Quality:
        """Its student (and the first teacher, where it can do the same) on what was kept from training. Collective."""
        teacher = self.teachers[0] if self.teachers else None
        if self.task is None:
            batches = self._batches(self._seen(self.held_out), trainee.training.evaluate_sequences)
            assert isinstance(trainee.student, Encoder)
            return masked_lm.evaluate(trainee.student, teacher, batches, self.rank)
        if not isinstance(teacher, Teacher) or not isinstance(teacher.encoder, TaskModel):
            teacher = None
        dev = self.task.dev
        trained = any(OBJECTIVES[term.kind].count == "targets" for term in trainee.stage.objective)
        batches = self._batches(self._seen(dev), len(dev))
        return task_quality.evaluate(trainee.student, teacher, dev, batches, self.rank, trained)

    def _seen(self, source: Source) -> Source:
        """What was kept from training, with its references."""
        return source if self.references is None else self.references.seen(source, "held_out")

    def _batches(self, source: Source, limit: int) -> Any:
        loader = self.loader
        where = (loader.micro_batch_tokens, loader.rank, loader.world_size, loader.kernel)
        return held_out_batches(source, limit, self.config.seed, *where)


def build(config: RunConfig, identities: dict[int, dict[str, Any]], corpus: Corpus, rank: Rank) -> Parts:
    """Load or create the models of a stage, or of several side by side; wrap the students; find where to go on.

    Args:
        identities: by the stage's number.
    """
    stages = {index: config.stages[index] for index in identities}
    first = next(iter(stages.values()))
    assert isinstance(first, TrainedStage)
    found = {index: newest(config, index, identity) for index, identity in identities.items()}
    task = stage_task(config, first, corpus)
    labels = [] if task is None else task.labels
    steps = first.training.total_steps(len(splits(config, corpus, task)[0]))
    torch.manual_seed(config.seed)
    loaded = stage_teachers(config, next(iter(stages)), corpus, labels)
    modules = {index: student_module(config, index, corpus, labels, loaded, steps) for index in stages}
    task = None if task is None else with_own_tokens(task, own_tokens(loaded))
    teachers = freeze(first, loaded, list(modules.values()), rank)
    train, held_out = splits(config, corpus, task, sampled_share(list(modules.values()), first.training))
    folder, identity = config.stage_folder(next(iter(stages))), next(iter(identities.values()))
    references = stage_references(first, folder, corpus, task, teachers, identity, rank)
    source = train if references is None else references.seen(train, "train")
    loader = make_loader(config, first.training, source, rank, [module.student.config for module in modules.values()])
    check_teacher_heads(first, loaded, teachers, loader, corpus, rank)
    trainees = [
        start_trainee(config, index, identities[index], module, found[index], corpus, rank, steps)
        for index, module in modules.items()
    ]
    for sentence in [] if task is None else task.skipped:
        if trainees[0].monitor is not None:
            trainees[0].monitor.line(f"rows of the task that cannot be used: {sentence}")
    learned, loader, held_out = from_cache(
        config, next(iter(stages)), corpus, teachers, loader, held_out, steps, rank, trainees[0].monitor
    )
    return Parts(config, rank, corpus, task, learned, loader, held_out, steps, trainees, references)


def splits(config: RunConfig, corpus: Corpus, task: Task | None, sampled: float | None = None) -> tuple[Source, Source]:
    """What a stage trains on and what is kept from training; ``sampled``: as in :class:`CorpusSource`."""
    if task is not None:
        return task.train, task.dev
    return CorpusSource(corpus.split("train"), config.seed, sampled), CorpusSource(corpus.split("held_out"))


def newest(config: RunConfig, index: int, identity: dict[str, Any]) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint from which a stage goes on, and a sentence for each that had to be passed over."""
    found, passed = checkpoint.newest(config.stage_folder(index) / "checkpoints")
    if found is not None:
        checkpoint.check_identity(found.identity, identity, f"The checkpoint {found.folder}")
    return found, passed


def start_trainee(
    config: RunConfig,
    index: int,
    identity: dict[str, Any],
    module: Distillation,
    found: tuple[Checkpoint | None, list[str]],
    corpus: Corpus,
    rank: Rank,
    steps: int,
) -> Trainee:
    """Wrap a student, from where its newest checkpoint stands."""
    stage, (begun, passed) = config.stages[index], found
    assert isinstance(stage, TrainedStage)
    pace = module.schedule if isinstance(module, ProgressiveDistillation) else None
    engine = Engine(module, stage.training, rank, None if begun is None else begun.read(), pace)
    first_step = 0 if begun is None else begun.step
    monitor = start_monitor(config, index, corpus, module.names(), first_step, steps) if rank.is_first else None
    if monitor is not None:
        for sentence in passed:
            monitor.line(sentence)
        monitor.line(f"continuing after step {first_step}" if first_step else "starting")
    best = BestModel(config.stage_folder(index), stage.training, engine, rank, first_step)
    return Trainee(config, index, identity, module.student, engine, first_step, monitor, Meter(rank), best)


def from_cache(
    config: RunConfig,
    index: int,
    corpus: Corpus,
    teachers: list[Teacher],
    loader: Loader,
    held_out: Source,
    steps: int,
    rank: Rank,
    monitor: Monitor | None,
) -> tuple[Sequence[AnyTeacher], Loader, Source]:
    """The teachers, the training batches and the held-out ones: from a cache where the stage asks for one."""
    stage = config.stages[index]
    if not isinstance(stage, DistillStage) or stage.teacher_cache is None:
        return teachers, loader, held_out
    settings, epochs = stage.teacher_cache, math.ceil(steps * loader.global_batch_size / len(loader.source))
    root = config.stage_folder(index) / "teacher_cache" if settings.folder is None else Path(settings.folder)
    cached = cache_teachers(
        settings,
        root,
        corpus,
        config.data.masks,
        teachers,
        loader,
        epochs,
        stage.training.precision,
        rank,
        (lambda text: None) if monitor is None else monitor.line,
    )
    return cached.teachers, replace(loader, source=cached.train), cached.held_out


def stage_references(
    stage: TrainedStage,
    folder: Path,
    corpus: Corpus,
    task: Task | None,
    teachers: list[Teacher],
    identity: dict[str, Any],
    rank: Rank,
) -> StageReferences | None:
    """Retrieval and the first teacher's vectors, for a stage that has references. Collective."""
    if not isinstance(stage, DistillStage) or stage.references is None:
        return None
    training = stage.training
    kernel = choose_kernel(training.attention, rank.device)
    reader = Reader(teachers[0].encoder, rank.device, kernel, training.micro_batch_tokens)
    return prepare_references(stage, folder, corpus, task, reader, identity, rank)


def stage_task(config: RunConfig, stage: TrainedStage, corpus: Corpus) -> Task | None:
    """The labelled data of a stage that has a task."""
    if isinstance(stage, PretrainStage) or stage.task is None:
        return None
    tokenizer = open_tokenizer(corpus.tokenizer_folder, config.data.tokenizer)
    rows = None
    if stage.rows is not None:
        made = config.stage_index(stage.rows)
        assert made is not None
        rows = config.stage_folder(made) / "rows.jsonl"
    return read_task(config.tasks[stage.task], rows, tokenizer)


def stage_labels(config: RunConfig, stage: TrainedStage) -> list[str]:
    """The label names of a stage's task, [] without one."""
    if isinstance(stage, PretrainStage) or stage.task is None:
        return []
    return read_labels(config.tasks[stage.task])


def student_module(
    config: RunConfig, index: int, corpus: Corpus, labels: list[str], teachers: list[LoadedTeacher], steps: int
) -> Distillation:
    """Student and objectives as one module. It begins as it does when the stage is trained alone."""
    stage = config.stages[index]
    assert isinstance(stage, TrainedStage)
    who = f"stage {stage.name!r}"
    torch.manual_seed(config.seed)
    stage = stage.model_copy(update={"objective": with_token_ids(config, stage, corpus)})
    models = stage_models(config, index, corpus, labels, teachers)
    shapes = [(teacher.config, teacher.shape) for teacher in models.teachers]
    terms = objectives(stage, models.student.config, shapes)
    check_own_tokens(config, stage, own_tokens(teachers), [shape for _, shape in shapes], terms, who)
    progressive = stage.progressive if isinstance(stage, DistillStage) else None
    module = (
        Distillation(models.student, terms)
        if progressive is None
        else ProgressiveDistillation(models.student, terms, progressive, steps)
    )
    check_heads(module, models, who)
    return module


def freeze(stage: TrainedStage, loaded: list[LoadedTeacher], modules: list[Distillation], rank: Rank) -> list[Teacher]:
    """The teachers on the rank's device, asked for all that the students' objectives need."""
    teachers = []
    for place, teacher in enumerate(loaded):
        request = FeatureRequest()
        for module in modules:
            objective = module.objectives[place]
            assert isinstance(objective, Objective)
            request |= objective.needs().teacher
        teachers.append(Teacher(teacher.model.to(rank.device, DTYPES[stage.training.precision]), request, place))
    return teachers


def sampled_share(modules: list[Distillation], training: TrainingConfig) -> float | None:
    """The share of rows to sample, None when no loss looks at sampled rows."""
    return training.sampled_rows if any("sampled" in module.request.logits for module in modules) else None


def make_loader(
    config: RunConfig, training: TrainingConfig, source: Source, rank: Rank, students: list[EncoderConfig]
) -> Loader:
    flash = training.precision == "bf16" and not any(shape.attention_probs_dropout_prob for shape in students)
    return Loader(
        source,
        config.seed,
        training.global_batch_size,
        training.micro_batch_tokens,
        rank.rank,
        rank.world_size,
        choose_kernel(training.attention, rank.device, flash),
        training.order,
    )


def check_teacher_heads(
    stage: TrainedStage,
    models: list[LoadedTeacher],
    teachers: list[Teacher],
    loader: Loader,
    corpus: Corpus,
    rank: Rank,
) -> None:
    """Measure each teacher whose vocabulary logits are asked for against token frequencies. Collective.

    Raises:
        DataError: one is no better, and its `head_check` says refuse.
    """
    for teacher, loaded in zip(teachers, models, strict=True):
        check = loaded.config.gate(own=loaded.source != loaded.config.source)
        if not teacher.request.logits or check == "off":
            continue
        assert isinstance(teacher.encoder, Encoder)
        held_out = CorpusSource(corpus.split("held_out"))
        where = (loader.micro_batch_tokens, loader.rank, loader.world_size, loader.kernel)
        batches = held_out_batches(held_out, HEAD_CHECK_SEQUENCES, loader.seed, *where)
        found = check_head(teacher.encoder, batches, corpus.unigram, corpus.special_ids, rank)
        if not found.ok:
            message = f"Stage {stage.name!r}: {found.message(loaded.config.source)}"
            if check == "refuse":
                raise DataError(message)
            if rank.is_first:
                print(f"warning: {message}", flush=True)


def start_monitor(
    config: RunConfig, index: int, corpus: Corpus, terms: list[str], first_step: int, steps: int
) -> Monitor:
    stage = config.stages[index]
    title = {"stage": stage.name, "stage_index": index, "stages": len(config.stages)}
    monitor = Monitor(config.stage_folder(index), config.folder / "logs", title, first_step, steps)
    monitor.layout(terms, with_teacher=stage.kind == "distill")
    monitor.text("config", f"```yaml\n{to_yaml(config)}\n```")
    if corpus.has_text:
        shown = "\n\n".join(f"    {line}" for line in masked_samples(corpus, "train", 5, 0))
        monitor.text("masked samples", shown)
    return monitor

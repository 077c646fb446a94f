"""How what a stage's loop works with is built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data_prep.corpus import Corpus
from data_prep.tokenizer import open_tokenizer
from distill_core import checkpoint
from distill_core.cache import AnyTeacher, cache_teachers
from distill_core.checkpoint import Checkpoint
from distill_core.clock import Clock
from distill_core.config import DistillStage, PretrainStage, RunConfig, TrainedStage
from distill_core.data import CorpusSource, Loader, Source
from distill_core.engine import Engine, Rank
from distill_core.frozen import DTYPES, Effect, check_device, encoder_of, record_effects
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
from distill_core.models.attention import Kernel, choose_kernel
from distill_core.models.config import EncoderConfig
from distill_core.models.running import checkpoint_layers, compile_parts
from distill_core.monitor import Monitor, start_monitor
from distill_core.objective import Distillation, Objective, Teacher
from distill_core.parts import Parts, Trainee
from distill_core.peak import peak_flops
from distill_core.progressive import ProgressiveDistillation
from distill_core.record import BestModel
from distill_core.references.prepare import StageReferences, prepare_references
from distill_core.references.store import Reader
from distill_core.tasks.load import Task, read_labels, read_task
from distill_core.tasks.model import StageModel
from distill_core.tasks.own_tokens import check_own_tokens, with_own_tokens
from distill_core.teachers import batch_to_measure, check_teacher_heads, freeze
from distill_core.training import TrainingConfig


def build(config: RunConfig, identities: dict[int, dict[str, Any]], corpus: Corpus, rank: Rank) -> Parts:
    """Load or create the models of a stage, or of several side by side; wrap the students; find where to go on.

    Args:
        identities: by the stage's number.
    """
    stages = {index: config.stages[index] for index in identities}
    first = next(iter(stages.values()))
    assert isinstance(first, TrainedStage)
    for stage in stages.values():
        assert isinstance(stage, TrainedStage)
        check_device(stage.training, rank, f"Stage {stage.name!r}")
    found = {index: newest(config, index, identity) for index, identity in identities.items()}
    task = stage_task(config, first, corpus)
    labels = [] if task is None else task.labels
    steps = first.training.total_steps(len(splits(config, corpus, task)[0]))
    torch.manual_seed(config.seed)
    loaded = stage_teachers(config, next(iter(stages)), corpus, labels)
    modules = {index: student_module(config, index, corpus, labels, loaded, steps) for index in stages}
    task = None if task is None else with_own_tokens(task, own_tokens(loaded))
    sampled = sampled_share(list(modules.values()), first.training)
    train, held_out = splits(config, corpus, task, sampled)
    began = all(checkpoint is None for checkpoint, _ in found.values())
    batch = batch_to_measure(first, held_out, config.seed, rank) if began else None
    teachers, effects = freeze(first, loaded, list(modules.values()), batch, rank)
    folder, identity = config.stage_folder(next(iter(stages))), next(iter(identities.values()))
    references = stage_references(first, folder, corpus, task, teachers, identity, rank)
    source = train if references is None else references.seen(train, "train")
    loader = make_loader(config, first.training, source, rank, [module.student.config for module in modules.values()])
    check_teacher_heads(first, loaded, teachers, loader, corpus, rank)
    clock = Clock(rank.device)
    trainees = [
        start_trainee(config, index, identities[index], module, found[index], corpus, rank, steps, clock)
        for index, module in modules.items()
    ]
    tell(trainees, effects, task)
    learned, loader, held_out = from_cache(
        config, next(iter(stages)), corpus, teachers, loader, held_out, steps, rank, trainees[0].monitor
    )
    parts = Parts(
        rank=rank,
        teachers=learned,
        trainees=trainees,
        steps=steps,
        clock=clock,
        config=config,
        corpus=corpus,
        task=task,
        loader=loader,
        held_out=held_out,
        references=references,
    )
    for trainee in trainees:
        if trainee.monitor is not None:
            trainee.monitor.useful_flops(parts.useful_flops(trainee), trainee.meter.peak)
    return parts


def tell(trainees: list[Trainee], effects: list[list[Effect]], task: Task | None) -> None:
    """What the teachers' precision does to the losses, and which rows of the task cannot be used: in log lines."""
    for trainee, losses in zip(trainees, effects, strict=False):
        for sentence in record_effects(trainee.folder, trainee.training, losses):
            if trainee.monitor is not None:
                trainee.monitor.line(sentence)
    for sentence in [] if task is None else task.skipped:
        if trainees[0].monitor is not None:
            trainees[0].monitor.line(f"rows of the task that cannot be used: {sentence}")


def splits(config: RunConfig, corpus: Corpus, task: Task | None, sampled: float | None = None) -> tuple[Source, Source]:
    """What a stage trains on and what is kept from training; ``sampled``: as in :class:`CorpusSource`."""
    if task is not None:
        return task.train, task.dev
    seen = (config.seed, sampled)
    return CorpusSource(corpus.split("train"), *seen), CorpusSource(corpus.split("held_out"), *seen)


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
    clock: Clock,
) -> Trainee:
    """Wrap a student, from where its newest checkpoint stands."""
    stage, (begun, passed) = config.stages[index], found
    assert isinstance(stage, TrainedStage)
    pace = module.schedule if isinstance(module, ProgressiveDistillation) else None
    flops = module.flops()
    training = stage.training
    meter = Meter(rank, clock, peak_flops(config.folder, training.peak_tflops, DTYPES[training.precision], rank))
    engine = Engine(module, stage.training, rank, None if begun is None else begun.read(), pace)
    first_step = 0 if begun is None else begun.step
    monitor = start_monitor(config, index, corpus, module.names(), first_step, steps) if rank.is_first else None
    if monitor is not None:
        for sentence in passed:
            monitor.line(sentence)
        monitor.line(f"continuing after step {first_step}" if first_step else "starting")
    best = BestModel(config.stage_folder(index), stage.training, engine, rank, first_step)
    return Trainee(config, index, identity, module.student, engine, first_step, monitor, meter, best, flops)


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
        stage.training.teacher_runs_in,
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
    pieces = open_tokenizer(corpus.tokenizer_folder, config.data.tokenizer).pieces
    stage = stage.model_copy(update={"objective": with_token_ids(stage, pieces)})
    models = stage_models(config, index, corpus, labels, teachers)
    shapes = [(teacher.config, teacher.shape) for teacher in models.teachers]
    terms = objectives(stage, models.student.config, shapes)
    check_own_tokens(config, stage, own_tokens(teachers), [shape for _, shape in shapes], terms, who)
    module = wrapped(stage, models.student, terms, steps)
    check_heads(module, models, who)
    return module


def wrapped(stage: TrainedStage, student: StageModel, terms: Sequence[Objective], steps: int) -> Distillation:
    """Student and objectives as one module, which runs as the stage's training says."""
    progressive = stage.progressive if isinstance(stage, DistillStage) else None
    module = (
        Distillation(student, terms)
        if progressive is None
        else ProgressiveDistillation(student, terms, progressive, steps)
    )
    if stage.training.activation_checkpointing:
        checkpoint_layers(encoder_of(module.student).bert.encoder.layer)
    compile_parts(module, stage.training.compile)
    return module


def sampled_share(modules: list[Distillation], training: TrainingConfig) -> float | None:
    """The share of rows to sample, None when no loss looks at sampled rows."""
    return training.sampled_rows if any("sampled" in module.request.logits for module in modules) else None


def stage_kernel(training: TrainingConfig, students: Sequence[EncoderConfig], device: torch.device) -> Kernel:
    """How the batches of a stage are laid out for attention, teachers' and students'."""
    sixteen = "fp32" not in (training.precision, training.teacher_runs_in)
    dropped = any(shape.attention_probs_dropout_prob for shape in students)
    return choose_kernel(training.attention, device, sixteen and not dropped)


def make_loader(
    config: RunConfig, training: TrainingConfig, source: Source, rank: Rank, students: list[EncoderConfig]
) -> Loader:
    return Loader(
        source,
        config.seed,
        training.global_batch_size,
        training.micro_batch_tokens,
        rank.rank,
        rank.world_size,
        stage_kernel(training, students, rank.device),
        training.order,
        training.loader_ahead,
        training.loader_threads,
        pinned=rank.device.type == "cuda",
    )

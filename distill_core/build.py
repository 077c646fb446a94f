"""What a stage's loop works with, and how it is built."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from configs.errors import ConfigError, DataError
from configs.loader import to_yaml
from data_prep.corpus import Corpus
from data_prep.inspect import samples as masked_samples
from data_prep.tokenizer import open_tokenizer
from distill_core import checkpoint
from distill_core.cache import AnyTeacher, cache_teachers
from distill_core.config import DistillStage, PretrainStage, RunConfig, TrainedStage
from distill_core.data import CorpusSource, Loader, Source, held_out_batches
from distill_core.engine import Engine, Rank
from distill_core.evaluate import masked_lm
from distill_core.evaluate.teacher_head import check_head
from distill_core.load import Models, check_heads, objectives, stage_models
from distill_core.models.attention import choose_kernel
from distill_core.models.encoder import Encoder
from distill_core.monitor import Monitor
from distill_core.objective import Distillation, Objective, Teacher
from distill_core.objectives import OBJECTIVES
from distill_core.objectives.base import TermConfig
from distill_core.references.prepare import StageReferences, prepare_references
from distill_core.references.store import Reader
from distill_core.tasks import quality as task_quality
from distill_core.tasks.load import Task, read_labels, read_task
from distill_core.tasks.model import StageModel, TaskModel
from distill_core.training import TrainingConfig

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
HEAD_CHECK_SEQUENCES = 200


class Quality(Protocol):
    """What an evaluation found: masked-LM quality on held-out text, or the scores on a task's dev rows."""

    @property
    def score(self) -> float: ...

    def scalars(self) -> dict[str, float]: ...

    def sentence(self) -> str: ...


@dataclass
class Parts:
    """Everything a stage's loop works with. ``training``: with ``steps`` filled in."""

    config: RunConfig
    index: int
    folder: Path
    rank: Rank
    corpus: Corpus
    task: Task | None
    identity: dict[str, Any]
    training: TrainingConfig
    student: StageModel
    teachers: Sequence[AnyTeacher]
    engine: Engine
    loader: Loader
    held_out: Source
    first_step: int
    steps: int
    monitor: Monitor | None
    references: StageReferences | None

    @property
    def stage(self) -> TrainedStage:
        stage = self.config.stages[self.index]
        assert isinstance(stage, TrainedStage)
        return stage

    @property
    def terms(self) -> list[TermConfig]:
        return self.stage.objective

    @property
    def pairs(self) -> list[list[tuple[int, int]]]:
        """For each loss term its (teacher, student) layer pairs, with the first teacher."""
        if not self.teachers:
            return [[] for _ in self.terms]
        depths = (self.teachers[0].config.num_hidden_layers, self.student.config.num_hidden_layers)
        return [term.pairs(*depths) for term in self.terms]

    def measure(self) -> Quality:
        """The student (and its first teacher, where it can do the same) on what was kept from training. Collective."""
        teacher = self.teachers[0] if self.teachers else None
        if self.task is None:
            batches = self._batches(self._seen(self.held_out), self.training.evaluate_sequences)
            assert isinstance(self.student, Encoder)
            return masked_lm.evaluate(self.student, teacher, batches, self.rank)
        if not isinstance(teacher, Teacher) or not isinstance(teacher.encoder, TaskModel):
            teacher = None
        dev = self.task.dev
        trained = any(OBJECTIVES[term.kind].count == "targets" for term in self.terms)
        batches = self._batches(self._seen(dev), len(dev))
        return task_quality.evaluate(self.student, teacher, dev, batches, self.rank, trained)

    def _seen(self, source: Source) -> Source:
        """What was kept from training, with its references."""
        return source if self.references is None else self.references.seen(source, "held_out")

    def _batches(self, source: Source, limit: int) -> Any:
        loader = self.loader
        where = (loader.micro_batch_tokens, loader.rank, loader.world_size, loader.kernel)
        return held_out_batches(source, limit, self.config.seed, *where)


def build(config: RunConfig, index: int, corpus: Corpus, rank: Rank, identity: dict[str, Any]) -> Parts:
    """Load or create the models, wrap the student, and find where to go on."""
    stage, folder = config.stages[index], config.stage_folder(index)
    assert isinstance(stage, TrainedStage)
    training = stage.training
    torch.manual_seed(config.seed)
    found, passed = checkpoint.newest(folder / "checkpoints")
    if found is not None:
        checkpoint.check_identity(found.identity, identity, f"The checkpoint {found.folder}")
    stage = stage.model_copy(update={"objective": with_token_ids(config, stage, corpus)})
    task = stage_task(config, stage, corpus)
    models = stage_models(config, index, corpus, [] if task is None else task.labels)
    module, teachers = wrap(stage, models, rank)
    source: Source = CorpusSource(corpus.split("train"), config.seed, sampled_share(module, training))
    source = source if task is None else task.train
    references = stage_references(stage, folder, corpus, task, teachers, identity, rank)
    source = source if references is None else references.seen(source, "train")
    loader = make_loader(config, training, source, rank)
    check_teacher_heads(stage, models, teachers, loader, corpus, rank)
    state = found.read() if found is not None else None
    engine = Engine(module, training, rank, state)
    first_step = found.step if found is not None else 0
    steps = training.total_steps(len(source))
    monitor = start_monitor(config, index, corpus, module.names(), first_step, steps) if rank.is_first else None
    if monitor is not None:
        for sentence in passed:
            monitor.line(sentence)
        for sentence in [] if task is None else task.skipped:
            monitor.line(f"rows of the task that cannot be used: {sentence}")
        monitor.line(f"continuing after step {first_step}" if first_step else "starting")
    learned, loader, held_out = from_cache(config, index, corpus, teachers, loader, steps, rank, monitor)
    return Parts(
        config,
        index,
        folder,
        rank,
        corpus,
        task,
        identity,
        training,
        models.student,
        learned,
        engine,
        loader,
        held_out,
        first_step,
        steps,
        monitor,
        references,
    )


def from_cache(
    config: RunConfig,
    index: int,
    corpus: Corpus,
    teachers: list[Teacher],
    loader: Loader,
    steps: int,
    rank: Rank,
    monitor: Monitor | None,
) -> tuple[Sequence[AnyTeacher], Loader, Source]:
    """The teachers, the training batches and the held-out ones: from a cache where the stage asks for one."""
    stage = config.stages[index]
    if not isinstance(stage, DistillStage) or stage.teacher_cache is None:
        return teachers, loader, CorpusSource(corpus.split("held_out"))
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


def with_token_ids(config: RunConfig, stage: TrainedStage, corpus: Corpus) -> list[TermConfig]:
    """The stage's losses with entries of the vocabulary turned into their ids.

    Raises:
        ConfigError: there is no such entry.
    """
    pieces = open_tokenizer(corpus.tokenizer_folder, config.data.tokenizer).pieces
    ids = {piece: number for number, piece in enumerate(pieces)}

    def token_id(piece: str) -> int:
        if piece not in ids:
            near = difflib.get_close_matches(piece, pieces, n=3, cutoff=0.3)
            hint = f" Near: {', '.join(map(repr, near))}." if near else ""
            raise ConfigError(f"Stage {stage.name!r}: the vocabulary has no entry {piece!r}.{hint}")
        return ids[piece]

    return [term.resolved(token_id) for term in stage.objective]


def stage_labels(config: RunConfig, stage: TrainedStage) -> list[str]:
    """The label names of a stage's task, [] without one."""
    if isinstance(stage, PretrainStage) or stage.task is None:
        return []
    return read_labels(config.tasks[stage.task])


def wrap(stage: TrainedStage, models: Models, rank: Rank) -> tuple[Distillation, list[Teacher]]:
    """Student and objectives as one module, and the frozen teachers on the rank's device."""
    shapes = [(teacher.config, teacher.shape) for teacher in models.teachers]
    module = Distillation(models.student, objectives(stage, models.student.config, shapes))
    check_heads(module, models, f"stage {stage.name!r}")
    teachers = []
    for objective, teacher in zip(module.objectives, models.teachers, strict=bool(models.teachers)):
        assert isinstance(objective, Objective)
        frozen = teacher.model.to(rank.device, DTYPES[stage.training.precision])
        teachers.append(Teacher(frozen, objective.needs().teacher))
    return module, teachers


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


def sampled_share(module: Distillation, training: TrainingConfig) -> float | None:
    """The share of rows to sample, None when no loss looks at sampled rows."""
    return training.sampled_rows if "sampled" in module.request.logits else None


def make_loader(config: RunConfig, training: TrainingConfig, source: Source, rank: Rank) -> Loader:
    return Loader(
        source,
        config.seed,
        training.global_batch_size,
        training.micro_batch_tokens,
        rank.rank,
        rank.world_size,
        choose_kernel(training.attention, rank.device),
        training.order,
    )


def check_teacher_heads(
    stage: TrainedStage, models: Models, teachers: list[Teacher], loader: Loader, corpus: Corpus, rank: Rank
) -> None:
    """Measure each teacher whose vocabulary logits are asked for against token frequencies. Collective.

    Raises:
        DataError: one is no better, and its `head_check` says refuse.
    """
    for teacher, loaded in zip(teachers, models.teachers, strict=True):
        own = loaded.source != loaded.config.source
        check = loaded.config.head_check or ("warn" if own else "refuse")
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
    shown = "\n\n".join(f"    {line}" for line in masked_samples(corpus, "train", 5, 0))
    monitor.text("masked samples", shown)
    return monitor

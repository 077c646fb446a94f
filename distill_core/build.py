"""What a stage's loop works with, and how it is built."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from configs.errors import DataError
from configs.loader import to_yaml
from data_prep.corpus import Corpus
from data_prep.inspect import samples as masked_samples
from distill_core import checkpoint
from distill_core.config import DistillStage, PretrainStage, RunConfig, TrainingConfig
from distill_core.data import Loader
from distill_core.engine import Engine, Rank
from distill_core.models import pretrained
from distill_core.models.attention import choose_kernel
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.models.initialise import check_layers, copy_teacher_layers
from distill_core.monitor import Monitor
from distill_core.objective import Distillation, Objective, Teacher
from distill_core.objectives.base import TermConfig
from distill_core.objectives.logits import MlmConfig

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass
class Parts:
    """Everything a stage's loop works with."""

    config: RunConfig
    index: int
    folder: Path
    rank: Rank
    corpus: Corpus
    identity: dict[str, Any]
    student: Encoder
    teacher: Teacher | None
    engine: Engine
    loader: Loader
    first_step: int
    monitor: Monitor | None
    terms: list[TermConfig]

    @property
    def stage(self) -> PretrainStage | DistillStage:
        return self.config.stages[self.index]

    @property
    def pairs(self) -> list[list[tuple[int, int]]]:
        """For each loss term its (teacher, student) layer pairs."""
        if self.teacher is None:
            return [[] for _ in self.terms]
        depths = (self.teacher.encoder.config.num_hidden_layers, self.student.config.num_hidden_layers)
        return [term.pairs(*depths) for term in self.terms]

    @property
    def training(self) -> TrainingConfig:
        return self.stage.training


def build(config: RunConfig, index: int, corpus: Corpus, rank: Rank, identity: dict[str, Any]) -> Parts:
    """Load or create the models, wrap the student, and find where to go on."""
    stage, folder = config.stages[index], config.stage_folder(index)
    training = stage.training
    torch.manual_seed(config.seed)
    found, passed = checkpoint.newest(folder / "checkpoints")
    if found is not None:
        checkpoint.check_identity(found.identity, identity, f"The checkpoint {found.folder}")
    student, teacher_encoder, terms = models(config, index, corpus)
    shape = teacher_encoder.config if teacher_encoder is not None else None
    objective = Objective(terms, student.config, shape)
    teacher = None
    if teacher_encoder is not None:
        frozen = teacher_encoder.to(rank.device, DTYPES[training.precision])
        teacher = Teacher(frozen, objective.needs().teacher)
    state = found.read() if found is not None else None
    engine = Engine(Distillation(student, objective), training, rank, state)
    kernel = choose_kernel(training.attention, rank.device)
    loader = Loader(
        corpus.split("train"),
        config.seed,
        training.global_batch_size,
        training.micro_batch_tokens,
        rank.rank,
        rank.world_size,
        kernel,
    )
    first_step = found.step if found is not None else 0
    monitor = start_monitor(config, index, corpus, objective, first_step) if rank.is_first else None
    if monitor is not None:
        for sentence in passed:
            monitor.line(sentence)
        monitor.line(f"continuing after step {first_step}" if first_step else "starting")
    return Parts(
        config,
        index,
        folder,
        rank,
        corpus,
        identity,
        student,
        teacher,
        engine,
        loader,
        first_step,
        monitor,
        terms,
    )


def models(config: RunConfig, index: int, corpus: Corpus) -> tuple[Encoder, Encoder | None, list[TermConfig]]:
    """Student, teacher (none in pretraining) and loss terms of a stage; fp32, on the CPU."""
    stage = config.stages[index]
    who = f"stage {stage.name!r}"
    if isinstance(stage, PretrainStage):
        return Encoder(stage.model.resolve(corpus.vocab_size)), None, [MlmConfig(kind="mlm")]
    source = teacher_source(config, stage)
    loaded = pretrained.load(source, f"{who}: teacher")
    check_vocabulary(loaded.encoder.config, source, corpus, who)
    shape = stage.student.model.resolve(corpus.vocab_size)
    init = stage.student.init
    if init.kind == "teacher_layers":
        check_layers(init.layers, shape, loaded.encoder.config, who)
    student = Encoder(shape)
    if init.kind == "teacher_layers":
        copy_teacher_layers(student, loaded.encoder, init.layers, init.embeddings)
    terms = list(stage.objective)
    needs_logits = Objective(terms, shape, loaded.encoder.config).needs().teacher.logits
    if loaded.missing_head and needs_logits:
        raise DataError(
            f"{who}: the teacher {source} has no masked-LM head (it would be random), but the objective asks for its "
            "vocabulary logits. Use a teacher with its head, or drop that term."
        )
    return student, loaded.encoder, terms


def teacher_source(config: RunConfig, stage: DistillStage) -> str:
    """The folder of an earlier stage's model, or the folder or hub name as given."""
    earlier = config.stage_index(stage.teacher.source)
    return stage.teacher.source if earlier is None else str(config.stage_folder(earlier) / "model")


def check_vocabulary(teacher: EncoderConfig, source: str, corpus: Corpus, who: str) -> None:
    """Raise :class:`DataError` unless teacher and corpus number their tokens alike."""
    if teacher.vocab_size != corpus.vocab_size:
        raise DataError(
            f"{who}: the teacher {source} has {teacher.vocab_size} tokens, the prepared corpus "
            f"{corpus.vocab_size}. Prepare the corpus with the teacher's vocabulary (data.tokenizer.vocab)."
        )
    theirs, ours = Path(source) / "vocab.txt", corpus.tokenizer_folder / "vocab.txt"
    if theirs.is_file() and ours.is_file():
        a, b = (path.read_text(encoding="utf-8").rstrip("\n").split("\n") for path in (theirs, ours))
        pairs = list(itertools.zip_longest(a, b))  # a padded vocabulary has fewer lines than the model has rows
        different = [i for i, (x, y) in enumerate(pairs) if x != y]
        if different:
            i = different[0]
            there, here = pairs[i]
            raise DataError(
                f"{who}: the vocabulary of the teacher {source} is another one than the corpus was prepared with "
                f"({len(different)} tokens differ; token {i} is {there!r} there and {here!r} here). Prepare the corpus "
                "with data.tokenizer.vocab set to the teacher's vocab.txt."
            )


def start_monitor(config: RunConfig, index: int, corpus: Corpus, objective: Objective, first_step: int) -> Monitor:
    stage = config.stages[index]
    title = {"stage": stage.name, "stage_index": index, "stages": len(config.stages)}
    monitor = Monitor(config.stage_folder(index), config.folder / "logs", title, first_step, stage.training.steps)
    monitor.layout(objective.names(), with_teacher=isinstance(stage, DistillStage))
    monitor.text("config", f"```yaml\n{to_yaml(config)}\n```")
    shown = "\n\n".join(f"    {line}" for line in masked_samples(corpus, "train", 5, 0))
    monitor.text("masked samples", shown)
    return monitor

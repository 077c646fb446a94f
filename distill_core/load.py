"""The models of a stage: the student as it begins, and its teachers. fp32, on the CPU."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from configs import hub
from configs.errors import ConfigError, DataError
from data_prep.corpus import Corpus
from data_prep.tokenizer import open_tokenizer
from data_prep.tokenizer_base import Tokenizer
from distill_core.config import (
    DistillStage,
    FinetuneStage,
    PretrainStage,
    RunConfig,
    StudentConfig,
    TeacherConfig,
    TrainedStage,
)
from distill_core.models import pretrained
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.models.initialise import initialise, load_into
from distill_core.objective import Distillation, Objective
from distill_core.objectives.base import TermConfig
from distill_core.references.weights import with_references
from distill_core.tasks import pretrained as task_models
from distill_core.tasks.config import TaskConfig
from distill_core.tasks.model import StageModel, TaskModel
from distill_core.tasks.own_tokens import own_tokenizers


@dataclass(frozen=True)
class LoadedTeacher:
    """``missing_head``: its masked-LM head is random; ``tokenizer``: its own, where it does not share the student's."""

    config: TeacherConfig
    source: str
    model: StageModel
    missing_head: bool
    tokenizer: Tokenizer | None = None

    @property
    def shape(self) -> EncoderConfig:
        return self.model.config


@dataclass(frozen=True)
class Models:
    """What a stage trains, and what it learns from (nothing in pretraining and fine-tuning)."""

    student: StageModel
    teachers: list[LoadedTeacher]


def stage_teachers(config: RunConfig, index: int, corpus: Corpus, labels: list[str]) -> list[LoadedTeacher]:
    """What a stage learns from; ``labels``: of its task, [] without one.

    Raises:
        ConfigError, DataError: a model cannot be loaded, or does not fit the corpus.
    """
    stage = config.stages[index]
    if not isinstance(stage, DistillStage):
        return []
    task = None if stage.task is None else config.tasks[stage.task]
    own = own_tokenizers(config, stage, open_tokenizer(corpus.tokenizer_folder, config.data.tokenizer))
    who = f"stage {stage.name!r}"
    return [
        _teacher(config, teacher, task, labels, corpus, own.get(number), who)
        for number, teacher in enumerate(stage.teacher)
    ]


def stage_models(
    config: RunConfig, index: int, corpus: Corpus, labels: list[str], teachers: list[LoadedTeacher]
) -> Models:
    """The models of a stage; ``labels``: of its task, [] without one.

    Raises:
        ConfigError, DataError: a model cannot be loaded, or does not fit the corpus or the others.
    """
    stage = config.stages[index]
    assert isinstance(stage, TrainedStage)
    who = f"stage {stage.name!r}"
    task = None if isinstance(stage, PretrainStage) or stage.task is None else config.tasks[stage.task]
    if isinstance(stage, FinetuneStage):
        assert task is not None
        return Models(_finetuned(config.model_source(stage.model), task, labels, corpus, who), [])
    if isinstance(stage, PretrainStage):
        given = StudentConfig(model=stage.model, init=stage.init)
        return Models(_student(config, given, None, corpus, who), [])
    first = teachers[0].model
    student = _student(config, stage.student, first.encoder if isinstance(first, TaskModel) else first, corpus, who)
    if stage.references is not None:
        begun = None if stage.student.init.whole is None else config.model_source(stage.student.init.whole)
        student = with_references(student, stage.references, first.config.hidden_size, begun, who)
    return Models(student if task is None else TaskModel(student, task.kind, labels), teachers)


def _finetuned(source: str, task: TaskConfig, labels: list[str], corpus: Corpus, who: str) -> TaskModel:
    """The model with a new head."""
    loaded = pretrained.load(source, f"{who}: model")
    check_vocabulary(loaded.encoder.config, source, corpus, who)
    return TaskModel(loaded.encoder, task.kind, labels)


def _student(config: RunConfig, student: StudentConfig, teacher: Encoder | None, corpus: Corpus, who: str) -> Encoder:
    init = student.init
    if init.kind == "model":
        assert init.source is not None
        source = config.model_source(init.source)
        loaded = pretrained.load(source, f"{who}: student.init")
        check_vocabulary(loaded.encoder.config, source, corpus, who)
        if student.model is None:
            return loaded.encoder
        made = Encoder(student.model.resolve(corpus.vocab_size, corpus.special_ids["pad"]))
        load_into(made, loaded, f"{who}: student.init")
        return made
    assert student.model is not None
    if init.source is not None:
        teacher = _other(config.model_source(init.source), init.head, corpus, who)
    made = Encoder(student.model.resolve(corpus.vocab_size, corpus.special_ids["pad"]))
    if teacher is not None:
        initialise(made, init, teacher, who)
    return made


def _other(source: str, head: bool, corpus: Corpus, who: str) -> Encoder:
    """The model, other than a teacher, that a student takes layers of; ``head``: and the masked-LM head."""
    loaded = pretrained.load(source, f"{who}: init")
    check_vocabulary(loaded.encoder.config, source, corpus, who)
    if head and loaded.missing_head:
        raise DataError(f"{who}: init has head: true, but {source} has no masked-LM head; remove it.")
    return loaded.encoder


def _teacher(
    config: RunConfig,
    teacher: TeacherConfig,
    task: TaskConfig | None,
    labels: list[str],
    corpus: Corpus,
    own: Tokenizer | None,
    who: str,
) -> LoadedTeacher:
    source = config.model_source(teacher.source)
    if task is not None and task_models.task_kind_of(source) is not None:
        model = task_models.load(source, task.kind, labels, f"{who}: teacher")
        loaded = LoadedTeacher(teacher, source, model, missing_head=True, tokenizer=own)
    else:
        encoder = pretrained.load(source, f"{who}: teacher")
        loaded = LoadedTeacher(teacher, source, encoder.encoder, encoder.missing_head, own)
    if own is None:
        check_vocabulary(loaded.shape, source, corpus, who)
    return loaded


def own_tokens(teachers: list[LoadedTeacher]) -> dict[int, Tokenizer]:
    """By number: the tokenizers of those teachers that do not share the student's."""
    return {number: t.tokenizer for number, t in enumerate(teachers) if t.tokenizer is not None}


def with_token_ids(stage: TrainedStage, pieces: Sequence[str]) -> list[TermConfig]:
    """The stage's losses with entries of the vocabulary, in the order of their ids, turned into these.

    Raises:
        ConfigError: there is no such entry.
    """
    ids = {piece: number for number, piece in enumerate(pieces)}

    def token_id(piece: str) -> int:
        if piece not in ids:
            near = difflib.get_close_matches(piece, pieces, n=3, cutoff=0.3)
            hint = f" Near: {', '.join(map(repr, near))}." if near else ""
            raise ConfigError(f"Stage {stage.name!r}: the vocabulary has no entry {piece!r}.{hint}")
        return ids[piece]

    return [term.resolved(token_id) for term in stage.objective]


def objectives(
    stage: TrainedStage, student: EncoderConfig, teachers: list[tuple[TeacherConfig, EncoderConfig]]
) -> list[Objective]:
    """One objective a teacher (or one without any), weighted by the teachers' shares."""
    if not teachers:
        return [Objective(stage.objective, student, None)]
    if len(teachers) == 1:
        return [Objective(stage.objective, student, teachers[0][1])]
    whole = sum(teacher.weight for teacher, _ in teachers)
    names = teacher_names([teacher.source for teacher, _ in teachers])
    return [
        Objective(
            stage.objective,
            student,
            shape,
            share=teacher.weight / whole,
            prefix=f"{names[place]}/",
            labels=place == 0,
        )
        for place, (teacher, shape) in enumerate(teachers)
    ]


def teacher_names(sources: list[str]) -> list[str]:
    """Short and different names of several teachers: the ends of their paths, as long as it takes."""
    parts = [Path(hub.name_of(source)).parts for source in sources]
    for length in range(1, max(map(len, parts))):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return sources


def check_heads(module: Distillation, models: Models, who: str) -> None:
    """Raise :class:`DataError` where the objective asks for outputs that a model does not have."""
    if module.request.task and not isinstance(models.student, TaskModel):
        raise DataError(f"{who}: the objective has a task's loss, but the stage has no `task`.")
    if module.request.logits and isinstance(models.student, TaskModel):
        raise DataError(
            f"{who}: the objective compares vocabulary logits, but a stage with a `task` has no masked tokens. Use "
            "task, task_kd, and losses on hidden states, attention or relations."
        )
    for objective, teacher in zip(module.objectives, models.teachers, strict=bool(models.teachers)):
        assert isinstance(objective, Objective)
        needs = objective.needs().teacher
        if needs.logits and teacher.missing_head:
            raise DataError(
                f"{who}: the teacher {teacher.source} has no masked-LM head (it would be random), but the objective "
                "asks for its vocabulary logits. Use a teacher with its head, train one with a `pretrain` stage that "
                "starts from it, or drop that term."
            )
        if needs.logits and not finite_decoder(teacher.model):
            raise DataError(
                f"{who}: the word embeddings or the masked-LM head of the teacher {teacher.source} hold values that "
                "are not finite, and so would all its vocabulary logits. Its weights are damaged; copy them again."
            )
        if needs.task and not isinstance(teacher.model, TaskModel):
            raise DataError(
                f"{who}: the objective asks for the answers of the teacher {teacher.source} to the task, but it has no "
                "head for one. Fine-tune it first with a stage of kind finetune, and name that stage as the teacher."
            )


def finite_decoder(model: StageModel) -> bool:
    """Whether its vocabulary logits are finite wherever the vectors that enter the decoder are."""
    if not isinstance(model, Encoder):
        return True
    parameters = [model.bert.embeddings.word_embeddings.weight, *model.cls.predictions.parameters()]
    return all(bool(torch.isfinite(p.sum(dtype=torch.float32))) for p in parameters)


def check_vocabulary(shape: EncoderConfig, source: str, corpus: Corpus, who: str) -> None:
    """Raise :class:`DataError` unless a model and the corpus number their tokens alike."""
    if shape.vocab_size != corpus.vocab_size:
        raise DataError(
            f"{who}: the model {source} has {shape.vocab_size} tokens, the prepared corpus {corpus.vocab_size}. "
            "Teacher and student read the same token ids; prepare the corpus with the model's vocabulary "
            "(data.tokenizer.vocab)."
        )
    theirs, ours = (pretrained.cached(source) or Path(source)) / "vocab.txt", corpus.tokenizer_folder / "vocab.txt"
    if theirs.is_file() and ours.is_file():
        a, b = (path.read_text(encoding="utf-8").rstrip("\n").split("\n") for path in (theirs, ours))
        pairs = list(itertools.zip_longest(a, b))  # a padded vocabulary has fewer lines than the model has rows
        different = [i for i, (x, y) in enumerate(pairs) if x != y]
        if different:
            i = different[0]
            there, here = pairs[i]
            raise DataError(
                f"{who}: the vocabulary of {source} is another one than the corpus was prepared with "
                f"({len(different)} tokens differ; token {i} is {there!r} there and {here!r} here). Prepare the corpus "
                "with data.tokenizer.vocab set to the model's vocab.txt."
            )

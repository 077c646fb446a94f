"""Teachers that read tokens of their own: their vocabulary is not the student's.

Such a teacher reads the same rows of a task as its own tokenizer cuts them (``Batch.own``). Token i of the one is then
not token i of the other, so only what is said of a whole text can be compared: losses whose ``Term.aligned`` is
``sequences``, on tasks that have one answer a text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from configs import hub
from configs.errors import ConfigError, DataError
from data_prep.config import TokenizerConfig
from data_prep.tokenizer import open_tokenizer
from data_prep.tokenizer_base import Tokenizer
from distill_core.config import AnyStage, DistillStage, RunConfig
from distill_core.models import pretrained
from distill_core.models.config import EncoderConfig
from distill_core.objective import Objective
from distill_core.objectives import OBJECTIVES
from distill_core.tasks.data import TaskData, make_data
from distill_core.tasks.load import Task
from distill_core.tasks.model import SEQUENCE_KINDS

FILES = {
    "spiece.model": "sentencepiece",
    "tokenizer.model": "sentencepiece",
    "sentencepiece.bpe.model": "sentencepiece",
    "merges.txt": "bpe",
    "vocab.txt": "wordpiece",
}
"""File of a model's folder -> the kind of its tokenizer; without any of them its tokenizer.json says it."""
MODELS = {"WordPiece": "wordpiece", "BPE": "bpe"}

Own = Mapping[int, Tokenizer]
"""By a teacher's number in its stage: the tokenizer of each that does not share the student's."""


def own_tokenizers(
    config: RunConfig, stage: AnyStage, ours: Tokenizer | None, fetch: bool = True
) -> dict[int, Tokenizer]:
    """The tokenizers of a stage's teachers that have another than the run's; earlier stages share it.

    Args:
        ours: the run's; None: it will be trained on the corpus.
        fetch: whether the tokenizer's files of a hub name may be fetched.

    Raises:
        DataError: a teacher's tokenizer cannot be read.
    """
    found: dict[int, Tokenizer] = {}
    for number, teacher in enumerate(stage.teacher if isinstance(stage, DistillStage) else []):
        assert isinstance(stage, DistillStage)
        if config.stage_index(teacher.source) is not None:
            continue
        folder = tokenizer_folder(teacher.source, fetch)
        kind = None if folder is None else kind_of(folder)
        if folder is None or kind is None:
            continue  # nothing to compare; the sizes of the vocabularies are
        try:
            if not _is_ours(folder, kind, config.data.tokenizer, ours):
                found[number] = open_tokenizer(folder, TokenizerConfig.model_validate({"kind": kind}))
        except DataError as error:
            raise DataError(f"Stage {stage.name!r}: the tokenizer of the teacher {teacher.source}: {error}") from None
    return found


def _is_ours(folder: Path, kind: str, settings: TokenizerConfig, ours: Tokenizer | None) -> bool:
    """Whether a folder's tokenizer is the run's; what the folder leaves open is as the run has it."""
    return ours is not None and kind == settings.kind and open_tokenizer(folder, settings).hash == ours.hash


def tokenizer_folder(source: str, fetch: bool) -> Path | None:
    """The folder with the tokenizer of a local model or a hub name; None where it is not at hand."""
    if hub.is_local(source) or not fetch:
        return pretrained.cached(source)
    with suppress(DataError):
        return pretrained.folder_of(source, source, weights=False)
    return None


def kind_of(folder: Path) -> str | None:
    """``data.tokenizer.kind`` of the tokenizer in a model's folder; None if it holds none that can be read."""
    by_file = next((kind for name, kind in FILES.items() if (folder / name).is_file()), None)
    if by_file is not None:
        return by_file
    with suppress(OSError, ValueError, AttributeError):
        model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")).get("model")
        return MODELS.get(model.get("type"))
    return None


def check_own_tokens(
    config: RunConfig,
    stage: AnyStage,
    own: Own,
    shapes: Sequence[EncoderConfig],
    objectives: Sequence[Objective],
    who: str,
) -> None:
    """What a stage asks of teachers that read their own tokens makes sense.

    Args:
        shapes: of all teachers, and their
        objectives.

    Raises:
        ConfigError: something would be compared token by token.
        DataError: a teacher's tokenizer is not the model's, or its model too short for the task's rows.
    """
    if not own:
        return
    assert isinstance(stage, DistillStage)
    number, theirs = next(iter(own.items()))
    students = "the one to be trained on the corpus" if config.data.tokenizer.vocab is None else "data.tokenizer's"
    other = (
        f"{who}: the teacher {stage.teacher[number].source} reads other tokens than the student (its tokenizer, "
        f"{theirs.kind} with {theirs.vocab_size:,} entries, is not {students})"
    )
    reason = _reason(config, stage, own, objectives)
    if reason is not None:
        raise ConfigError(
            f"{other}, and {reason} With two vocabularies a student can learn in a stage with a `task` of kind "
            f"{' or '.join(SEQUENCE_KINDS)}, by losses that compare whole texts: {', '.join(sequence_losses())}. For "
            f"all others give the student the teacher's vocabulary (data.tokenizer.kind={theirs.kind} "
            f"data.tokenizer.vocab={stage.teacher[number].source}), or take another teacher."
        )
    init = stage.student.init
    theirs_too = init.parts is None and (init.kind == "svd" or (init.kind == "teacher_layers" and init.embeddings))
    if 0 in own and theirs_too:
        raise ConfigError(
            f"{other}, so that its embeddings are not the student's. Set student.init.embeddings: false (kind: "
            "teacher_layers), or take init: {kind: random} or {kind: model, source: ...}."
        )
    for number, theirs in own.items():
        _check_fits(theirs, shapes[number], f"{who}: the teacher {stage.teacher[number].source}", config.longest(stage))


def _reason(config: RunConfig, stage: DistillStage, own: Own, objectives: Sequence[Objective]) -> str | None:
    """Why a stage's teachers must read the student's tokens; None: they need not."""
    if stage.task is None:
        return (
            "on a corpus the two are compared at masked tokens and token by token, which says nothing between two "
            "vocabularies."
        )
    kind = config.tasks[stage.task].kind
    if kind not in SEQUENCE_KINDS:
        answers = "a label for each token" if kind == "tokens" else "the first and last token of an answer"
        return f"a task of kind {kind} asks for {answers}, which the two have at different places."
    if stage.references is not None:
        return "`references` are the teacher's vectors of the student's own tokens."
    terms = [term for number in own for term in objectives[number].terms]
    by_token = [term.kind for term in terms if term.aligned == "tokens" and term.needs().teacher]  # type: ignore[operator]
    if by_token:
        names = ", ".join(dict.fromkeys(map(str, by_token)))
        return f"{names} compare{'s' * (len(set(by_token)) == 1)} the two token by token."
    return None


def alike(shapes: Sequence[EncoderConfig], own: Own, student: EncoderConfig) -> list[EncoderConfig]:
    """The teachers as if all had the student's vocabulary, so that only :func:`check_own_tokens` speaks of it."""
    same = {"vocab_size": student.vocab_size}
    return [shape.model_copy(update=same) if number in own else shape for number, shape in enumerate(shapes)]


def sequence_losses() -> list[str]:
    """The losses that need no common tokens."""
    return [name for name in OBJECTIVES if OBJECTIVES[name].aligned == "sequences"]


def _check_fits(tokenizer: Tokenizer, shape: EncoderConfig, who: str, longest: int) -> None:
    if tokenizer.vocab_size > shape.vocab_size:
        raise DataError(
            f"{who} has embeddings of {shape.vocab_size} tokens, but the tokenizer in its folder has "
            f"{tokenizer.vocab_size}; put the model's own tokenizer there."
        )
    if shape.max_length < longest:
        raise ConfigError(
            f"{who} has {shape.max_length} positions, but the task's longest sequences have {longest} tokens; lower "
            "the task's max_length."
        )


def with_own_tokens(task: Task, own: Own) -> Task:
    """The task whose batches also carry its rows as the teachers of ``own`` read them."""
    return replace(task, train=_read_by(task.train, own), dev=_read_by(task.dev, own)) if own else task


def _read_by(data: TaskData, own: Own) -> TaskData:
    read = {number: make_data(data.rows, data.labels, data.task, theirs) for number, theirs in own.items()}
    return replace(data, own=read)

"""Everything about a run that can be known to fail before any long work starts."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import numpy as np
import torch

from configs.errors import ConfigError, DataError, OutputError, output_error
from data_prep.tokenizer import open_tokenizer
from distill_core.config import DistillStage, PretrainStage, RunConfig
from distill_core.data import cut
from distill_core.models import pretrained
from distill_core.models.config import EncoderConfig
from distill_core.models.initialise import check_layers
from distill_core.objective import Objective


def check(config: RunConfig, world_size: int) -> None:
    """Raise the first of: ConfigError, DataError, OutputError, that ``config`` would meet on the way."""
    check_writable(config.folder)
    vocab_size = given_vocabulary(config)
    check_disk(config, vocab_size)
    for index, stage in enumerate(config.stages):
        who = f"stage {stage.name!r}"
        if stage.training.global_batch_size < world_size:
            raise ConfigError(
                f"{who}: a batch cannot be cut: global_batch_size {stage.training.global_batch_size} is smaller than "
                f"the {world_size} ranks; every rank needs at least one sequence."
            )
        check_cut(config, index, world_size, who)
        student = student_shape(config, index, vocab_size)
        check_shape(config, index, student, who)
        if isinstance(stage, DistillStage):
            teacher = teacher_shape(config, stage, vocab_size, who)
            check_teacher(config, stage, teacher, who)
            if stage.student.init.kind == "teacher_layers":
                check_layers(stage.student.init.layers, student, teacher, who)
            aligned = student.model_copy(update={"vocab_size": teacher.vocab_size})
            with torch.device("meta"):
                try:
                    Objective(stage.objective, aligned, teacher)
                except ConfigError as error:
                    raise ConfigError(f"{who}: {error}") from None


def check_cut(config: RunConfig, index: int, world_size: int, who: str) -> None:
    """The worst batch is one of longest sequences only: what can be cut then can always be cut."""
    training = config.stages[index].training
    longest = np.full(training.global_batch_size, config.data.sequences.max_length)
    try:
        cut(longest, world_size, training.micro_batch_tokens)
    except DataError as error:
        raise ConfigError(f"{who}: {error}") from None


def check_writable(folder: Path) -> None:
    """Raise OutputError unless files can be made in ``folder`` (which is created)."""
    probe = folder / f".probe-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        raise output_error(folder, error) from error


def check_disk(config: RunConfig, vocab_size: int | None) -> None:
    """Raise OutputError when the stages' checkpoints and models will not fit on the disk.

    A checkpoint holds 12 bytes a parameter (fp32 weight and two moments), and one is written beside those kept.
    """
    needed = 0
    for index, stage in enumerate(config.stages):
        if not (config.stage_folder(index) / "DONE.json").exists():
            parameters = student_shape(config, index, vocab_size).parameters()
            needed += parameters * (12 * (stage.training.keep_last + 1) + 4)
    free = shutil.disk_usage(config.folder).free
    if needed > free:
        raise OutputError(
            f"The checkpoints and models of this run need about {needed / 1e9:.2f} GB, but {config.folder} has only "
            f"{free / 1e9:.2f} GB free. Free some space, choose another folder with `output=...`, or lower "
            "training.keep_last."
        )


def given_vocabulary(config: RunConfig) -> int | None:
    """The size of the vocabulary named in ``data.tokenizer.vocab`` (checked), None when it will be trained."""
    tokenizer = config.data.tokenizer
    if tokenizer.vocab is None:
        return None
    return open_tokenizer(Path(tokenizer.vocab), tokenizer).vocab_size


def student_shape(config: RunConfig, index: int, vocab_size: int | None) -> EncoderConfig:
    stage = config.stages[index]
    model = stage.model if isinstance(stage, PretrainStage) else stage.student.model
    return model.resolve(vocab_size or config.data.tokenizer.vocab_size)


def teacher_shape(config: RunConfig, stage: DistillStage, vocab_size: int | None, who: str) -> EncoderConfig:
    """The teacher's shape: an earlier stage's model, or read from its folder or the hub."""
    earlier = config.stage_index(stage.teacher.source)
    if earlier is not None:
        return student_shape(config, earlier, vocab_size)
    return pretrained.read_config(stage.teacher.source, f"{who}: teacher")


def check_shape(config: RunConfig, index: int, student: EncoderConfig, who: str) -> None:
    longest = config.data.sequences.max_length
    if student.max_position_embeddings < longest:
        raise ConfigError(
            f"{who}: the model has {student.max_position_embeddings} positions, but data.sequences.max_length is "
            f"{longest}; raise max_position_embeddings or shorten the sequences."
        )
    if config.stages[index].training.attention == "varlen" and student.attention_probs_dropout_prob > 0:
        raise ConfigError(
            f"{who}: attention: varlen has no attention dropout; set attention_probs_dropout_prob: 0 or take another "
            "kernel."
        )


def check_teacher(config: RunConfig, stage: DistillStage, teacher: EncoderConfig, who: str) -> None:
    """A teacher from outside must number its tokens as the corpus will."""
    if config.stage_index(stage.teacher.source) is not None:
        return
    source, tokenizer = stage.teacher.source, config.data.tokenizer
    if teacher.max_position_embeddings < config.data.sequences.max_length:
        raise ConfigError(
            f"{who}: the teacher {source} has {teacher.max_position_embeddings} positions, but "
            f"data.sequences.max_length is {config.data.sequences.max_length}; shorten the sequences."
        )
    if tokenizer.vocab is None:
        raise ConfigError(
            f"{who}: the vocabulary would be trained on the corpus, but the teacher {source} has one of its own. Set "
            "data.tokenizer.vocab to the teacher's vocab.txt."
        )
    ours = open_tokenizer(Path(tokenizer.vocab), tokenizer)
    if ours.vocab_size != teacher.vocab_size:
        raise DataError(
            f"{who}: the teacher {source} has {teacher.vocab_size} tokens, data.tokenizer.vocab ({tokenizer.vocab}) "
            f"{ours.vocab_size}; they must be the same vocabulary."
        )
    if (Path(source) / "vocab.txt").is_file():
        theirs = open_tokenizer(Path(source) / "vocab.txt", tokenizer)
        if theirs.hash != ours.hash:
            raise DataError(
                f"{who}: data.tokenizer.vocab ({tokenizer.vocab}) and the teacher's vocabulary in {source} have the "
                "same size but not the same tokens; set data.tokenizer.vocab to the teacher's vocab.txt."
            )

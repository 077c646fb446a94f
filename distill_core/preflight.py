"""Everything about a run that can be known to fail before any long work starts."""

from __future__ import annotations

import shutil
import uuid
from functools import partial
from pathlib import Path

import numpy as np
import torch

from configs.errors import ConfigError, DataError, OutputError, output_error
from data_prep.atomic import private_folder
from data_prep.tokenizer import open_tokenizer
from data_prep.tokenizer_base import Tokenizer
from distill_core.cache import why_not
from distill_core.config import (
    AnyStage,
    AugmentStage,
    DistillStage,
    FinetuneStage,
    RunConfig,
    TrainedStage,
    made_from,
    model_sources,
    parts_from,
)
from distill_core.data import cut
from distill_core.evaluate.side_by_side import check_inputs
from distill_core.load import objectives, with_token_ids
from distill_core.models import pretrained
from distill_core.models.config import EncoderConfig
from distill_core.models.initialise import check_init, check_same_shape
from distill_core.progressive import Progressive, matched_layers
from distill_core.references.check import check_stage
from distill_core.tasks.check import check_losses, check_task
from distill_core.tasks.own_tokens import Own, alike, check_own_tokens, own_tokenizers, sequence_losses

VOCABULARIES = {
    "wordpiece": ("vocab.txt",),
    "sentencepiece": ("spiece.model",),
    "bpe": ("tokenizer.json", "vocab.json"),
}


def check(config: RunConfig, world_size: int) -> None:
    """Raise the first of: ConfigError, DataError, OutputError, that ``config`` would meet on the way."""
    check_writable(config.folder)
    check_inputs(config.evaluation)
    check_pairs(config)
    tokenizer = run_tokenizer(config)
    vocab_size = None if tokenizer is None else tokenizer.vocab_size
    check_disk(config, vocab_size)
    for stage in config.stages:
        for source in model_sources(stage):
            if config.stage_index(source) is None:
                pretrained.folder_of(source, f"stage {stage.name!r}")
    for index, stage in enumerate(config.stages):
        who = f"stage {stage.name!r}"
        if isinstance(stage, TrainedStage):
            check_corpus_fits(config, stage, who)
        check_task(config, stage, who)
        own = own_tokenizers(config, stage, tokenizer)
        unlike = {stage.teacher[number].source for number in own} if isinstance(stage, DistillStage) else set()
        for source in model_sources(stage):
            if config.stage_index(source) is None:
                shape = pretrained.read_config(source, who)
                if source not in unlike or source in (made_from(stage)[1], parts_from(stage)):
                    check_given(config, stage, source, shape, who)
        if isinstance(stage, AugmentStage):
            continue
        if tokenizer is not None:
            with_token_ids(stage, tokenizer.pieces)
        if stage.training.global_batch_size < world_size:
            raise ConfigError(
                f"{who}: a batch cannot be cut: global_batch_size {stage.training.global_batch_size} is smaller than "
                f"the {world_size} ranks; every rank needs at least one sequence."
            )
        check_cut(config, index, world_size, who)
        student = stage_shape(config, index, vocab_size)
        check_shape(config, stage, student, who)
        check_stage(config, stage, student, partial(source_shape, config, vocab_size=vocab_size, who=who), who)
        check_objectives(config, index, student, vocab_size, own, who)


def check_pairs(config: RunConfig) -> None:
    """RoBERTa's tokenizers put two separators between texts and know no second type; BERT's pairs have one."""
    if config.data.sequences.kind == "pairs" and config.data.tokenizer.kind == "bpe":
        raise ConfigError(
            "data.sequences.kind: pairs makes BERT's sentence pairs, which models with byte-level BPE (RoBERTa) were "
            "never trained on; take documents, lines or merged."
        )


def check_corpus_fits(config: RunConfig, stage: TrainedStage, who: str) -> None:
    """The corpus has what the losses read: masked tokens, labels of sentence pairs."""
    kinds = [term.kind for term in stage.objective]
    if "sentence_order" in kinds and config.data.sequences.kind != "pairs":
        raise ConfigError(
            f"{who}: sentence_order learns from pairs of texts, but the corpus is made of "
            f"{config.data.sequences.kind}; set data.sequences.kind: pairs, or drop the loss."
        )
    masked = [term.kind for term in stage.objective if term.kind == "mlm" or getattr(term, "positions", "") == "masked"]
    if masked and config.data.masks.rate == 0:
        raise ConfigError(
            f"{who}: {masked[0]} looks at masked tokens, but data.masks.rate is 0; raise the rate, or take a loss that "
            "needs none (positions: all)."
        )
    moved = [term.kind for term in stage.objective if getattr(term, "probability_shift", False)]
    if moved and config.data.masks.rate == 0:
        raise ConfigError(
            f"{who}: {moved[0]} with probability_shift exchanges logits at masked tokens, but data.masks.rate is 0, so "
            "that it would do nothing; raise the rate or remove it."
        )


def check_objectives(
    config: RunConfig, index: int, student: EncoderConfig, vocab_size: int | None, own: Own, who: str
) -> None:
    """Losses, layer maps and initialisation against the shapes of the models, before any of them is loaded."""
    stage = config.stages[index]
    assert isinstance(stage, TrainedStage)
    taught = stage.teacher if isinstance(stage, DistillStage) else []
    shapes = [source_shape(config, teacher.source, vocab_size, f"{who}: teacher") for teacher in taught]
    for shape in [shape for number, shape in enumerate(shapes) if number not in own]:
        student = student.model_copy(update={"vocab_size": shape.vocab_size})
    teachers = list(zip(taught, alike(shapes, own, student), strict=True))
    given, source = made_from(stage)
    if given is not None and source is not None:
        check_same_shape(student, source_shape(config, source, vocab_size, who), f"{who}: init")
    try:
        with torch.device("meta"):
            built = objectives(stage, student, teachers)
    except ConfigError as error:
        raise ConfigError(f"{who}: {error}") from None
    check_own_tokens(config, stage, own, shapes, built, who)
    parts = parts_from(stage)
    if parts is not None and not isinstance(stage, FinetuneStage):
        init = stage.student.init if isinstance(stage, DistillStage) else stage.init
        check_init(init, student, source_shape(config, parts, vocab_size, who), who)
    elif isinstance(stage, DistillStage):
        check_init(stage.student.init, student, shapes[0], who)
    try:
        if isinstance(stage, DistillStage) and stage.progressive is not None:
            schedule = Progressive(stage.progressive, student.num_hidden_layers)
            schedule.check(matched_layers(built).values(), stage.training.steps)
    except ConfigError as error:
        raise ConfigError(f"{who}: {error}") from None
    check_losses(config, stage, built, who)
    if isinstance(stage, DistillStage) and stage.teacher_cache is not None:
        reason = why_not(config.data.masks, built)
        if reason is not None:
            raise ConfigError(f"{who}: teacher_cache: the teachers cannot be cached: {reason}.")


def check_cut(config: RunConfig, index: int, world_size: int, who: str) -> None:
    """The worst batch is one of longest sequences only: what can be cut then can always be cut."""
    stage = config.stages[index]
    assert isinstance(stage, TrainedStage)
    training = stage.training
    longest = np.full(training.global_batch_size, config.longest(stage))
    try:
        cut(longest, world_size, training.micro_batch_tokens)
    except DataError as error:
        raise ConfigError(f"{who}: {error}") from None


def check_writable(folder: Path) -> None:
    """Raise OutputError unless files can be made in ``folder`` (which is created)."""
    probe = folder / f".probe-{uuid.uuid4().hex}"
    private_folder(folder)
    try:
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
        if not isinstance(stage, AugmentStage) and not (config.stage_folder(index) / "DONE.json").exists():
            parameters = stage_shape(config, index, vocab_size).parameters()
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
    tokenizer = run_tokenizer(config)
    return None if tokenizer is None else tokenizer.vocab_size


def run_tokenizer(config: RunConfig) -> Tokenizer | None:
    """The given one, None when it will be trained."""
    tokenizer = config.data.tokenizer
    return None if tokenizer.vocab is None else open_tokenizer(Path(tokenizer.vocab), tokenizer)


def stage_shape(config: RunConfig, index: int, vocab_size: int | None) -> EncoderConfig:
    """Of the model that a stage makes."""
    stage = config.stages[index]
    assert isinstance(stage, TrainedStage)
    given, source = made_from(stage)
    if given is not None:
        return given.resolve(vocab_size or config.data.tokenizer.vocab_size)
    assert source is not None
    return source_shape(config, source, vocab_size, f"stage {stage.name!r}")


def source_shape(config: RunConfig, source: str, vocab_size: int | None, who: str) -> EncoderConfig:
    """An earlier stage's model, or read from its folder or the hub."""
    earlier = config.stage_index(source)
    if earlier is not None:
        return stage_shape(config, earlier, vocab_size)
    return pretrained.read_config(source, who)


def check_shape(config: RunConfig, stage: TrainedStage, student: EncoderConfig, who: str) -> None:
    longest = config.longest(stage)
    if student.max_length < longest:
        raise ConfigError(
            f"{who}: the model has {student.max_length} positions, but its longest sequences have {longest} tokens; "
            "raise max_position_embeddings or shorten the sequences (data.sequences.max_length, or the task's)."
        )
    if stage.training.attention == "varlen" and student.attention_probs_dropout_prob > 0:
        raise ConfigError(
            f"{who}: attention: varlen has no attention dropout; set attention_probs_dropout_prob: 0 or take another "
            "kernel."
        )


def check_given(config: RunConfig, stage: AnyStage, source: str, shape: EncoderConfig, who: str) -> None:
    """A model from outside must number its tokens as the corpus will."""
    tokenizer = config.data.tokenizer
    longest = config.longest(stage)
    if shape.max_length < longest:
        task = getattr(stage, "task", None)
        key = "data.sequences.max_length" if task is None else f"tasks.{task}.max_length"
        raise ConfigError(
            f"{who}: the model {source} has {shape.max_length} positions, but {key} is {longest}; shorten the "
            "sequences."
        )
    if tokenizer.vocab is None:
        raise ConfigError(
            f"{who}: the vocabulary would be trained on the corpus, but the model {source} has one of its own. Set "
            "data.tokenizer.vocab to the model's vocabulary (its folder, or vocab.txt)."
        )
    ours = open_tokenizer(Path(tokenizer.vocab), tokenizer)
    if ours.vocab_size != shape.vocab_size:
        raise DataError(
            f"{who}: the model {source} has {shape.vocab_size} tokens, data.tokenizer.vocab ({tokenizer.vocab}) "
            f"{ours.vocab_size}; they must be the same vocabulary. (Only the teacher of a stage with a task may have "
            f"another one, with losses that compare whole texts: {', '.join(sequence_losses())}; its folder must hold "
            "its tokenizer. Fine-tune it in a run of its own, and name that folder.)"
        )
    folder = pretrained.cached(source)
    if folder is not None and any((folder / name).is_file() for name in VOCABULARIES[tokenizer.kind]):
        theirs = open_tokenizer(folder, tokenizer)
        if theirs.hash != ours.hash:
            raise DataError(
                f"{who}: data.tokenizer.vocab ({tokenizer.vocab}) and the vocabulary in {source} have the "
                "same size but not the same tokens; set data.tokenizer.vocab to the model's own."
            )

"""A finished stage's model as a folder for anyone: Hugging Face files, tokenizer, model card; checked by reloading."""

from __future__ import annotations

import difflib
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch

from configs.errors import ConfigError, DataError, output_error
from distill_core.batch import Batch
from distill_core.config import AugmentStage, RunConfig, trained
from distill_core.evaluate.fill_mask import load_tokenizer
from distill_core.features import FeatureRequest
from distill_core.model_card import model_card
from distill_core.models import pretrained
from distill_core.outcome import Outcome, StageOutcome, data_folder, read_outcome, stage_folder
from distill_core.references.weights import copy_references
from distill_core.tasks import pretrained as task_models
from distill_core.tasks.model import StageModel, TaskModel

TOLERANCE = 1e-4
MODEL_FILES = ("model.safetensors", "config.json")


def export_run(config: RunConfig, folder: Path, stage: str | None = None) -> Path:
    """Write ``folder/export/<stage>/`` from the finished stage's model and return it.

    Args:
        folder: the run folder.
        stage: its name; default: the last one, the final student.

    Raises:
        ConfigError: there is no such stage.
        DataError: the stage is not finished, its model is damaged, or the exported folder does not compute what our
            encoder computes.
        OutputError: the folder cannot be written or the disk is full; an earlier export stays as it was.
    """
    index = _stage_index(config, stage)
    name = config.stages[index].name
    check_finished(config, index, folder)
    outcome = read_outcome(config, folder)
    final = folder / "export" / name
    aside = final.with_name(f".{name}.{uuid.uuid4().hex}")
    try:
        aside.mkdir(parents=True)
        write_folder(outcome, outcome.stages[index], aside)
        check_export(outcome.stages[index].model_folder, aside)
        _put_into_place(aside, final)
    except OSError as error:
        raise output_error(final, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def check_finished(config: RunConfig, index: int, folder: Path) -> None:
    """Raise :class:`DataError` unless the stage has left its model."""
    here = stage_folder(config, index, folder)
    if not (here / "DONE.json").is_file():
        raise DataError(
            f"Stage {config.stages[index].name!r} is not finished (there is no {here / 'DONE.json'}), so it has no "
            "model to measure or export. Repeat the run's command: it continues from the last checkpoint."
        )


def _stage_index(config: RunConfig, stage: str | None) -> int:
    if stage is None:
        return config.stages.index(trained(config.stages)[-1])
    index = config.stage_index(stage)
    if index is None:
        names = [s.name for s in config.stages]
        near = difflib.get_close_matches(stage, names, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(names)}."
        raise ConfigError(f"The run {config.name!r} has no stage {stage!r}. {hint}")
    if isinstance(config.stages[index], AugmentStage):
        raise ConfigError(f"Stage {stage!r} of the run {config.name!r} makes rows, not a model; nothing to export.")
    return index


def write_folder(outcome: Outcome, stage: StageOutcome, target: Path) -> None:
    """Model, tokenizer (with vocab.txt), README.md and what a student with references has into ``target``."""
    for name in MODEL_FILES:
        if not (stage.model_folder / name).is_file():
            raise DataError(
                f"The model of the finished stage {stage.name!r} is incomplete: {stage.model_folder / name} is "
                f"missing. Delete {stage.folder / 'DONE.json'} and repeat the run's command: the stage continues from "
                "its last checkpoint."
            )
        shutil.copyfile(stage.model_folder / name, target / name)
    copy_references(stage.model_folder, stage.folder / "references", target)
    # The corpus's tokenizer fills in what the model folder may lack.
    for source in (data_folder(outcome.config, outcome.folder) / "tokenizer", stage.model_folder):
        pretrained.copy_tokenizer(source, target)
    model_card(outcome, stage).save(target / "README.md")


def check_export(model_folder: Path, exported: Path) -> None:
    """Raise :class:`DataError` unless transformers computes from ``exported`` what our encoder does.

    Logits of every token of a padded batch of unequal lengths, in fp32: at most ``TOLERANCE`` apart.
    """
    ours = load_model(model_folder)
    load_tokenizer(exported, ours.config.vocab_size)
    difference = largest_difference(ours, exported)
    if not difference < TOLERANCE:
        raise DataError(
            f"The export of {model_folder} is not sound: reloaded with transformers, its logits differ from ours by "
            f"{difference:.2g} (at most {TOLERANCE:g} is allowed). Check that the installed transformers is a tested "
            "version (constraints.txt)."
        )


def load_model(folder: Path) -> StageModel:
    """A stage's model: a masked LM, or one with a task's head."""
    kind = task_models.task_kind_of(str(folder))
    if kind is None:
        return pretrained.load(str(folder), "export").encoder
    return task_models.load_as_is(str(folder), "export")


def transformers_class(ours: StageModel) -> Any:
    import transformers

    if isinstance(ours, TaskModel):
        return task_models.hugging_face_class(ours.config, ours.kind)
    return getattr(transformers, ours.config.kin.masked_lm)


@torch.no_grad()
def largest_difference(ours: StageModel, exported: Path) -> float:
    """max |output of ours - output of transformers' class from ``exported``| over all tokens or sequences."""
    theirs: torch.nn.Module = transformers_class(ours).from_pretrained(exported, dtype=torch.float32)
    theirs.eval()
    ours.eval()
    longest = min(48, ours.config.max_length)
    lengths = sorted({longest, max(1, longest // 2), max(1, longest // 3)}, reverse=True)
    ids = torch.randint(ours.config.vocab_size - 1, (len(lengths), longest), generator=torch.Generator().manual_seed(0))
    ids += ids >= ours.config.pad_token_id  # RoBERTa's classes number positions by the places of the padding's id
    rows = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    batch = Batch.of([row.tolist() for row in rows])
    answers = [theirs(input_ids=row[None]) for row in rows]
    if not isinstance(ours, TaskModel):
        found = ours(batch, FeatureRequest(logits=frozenset({"all"}))).logits["all"]
        return float((found - torch.cat([answer.logits[0] for answer in answers])).abs().max())
    outputs = ours(batch, FeatureRequest(task=True)).task
    if ours.kind == "span":
        expected = torch.cat(
            [torch.stack([answer.start_logits[0], answer.end_logits[0]], dim=-1) for answer in answers]
        )
    else:
        expected = torch.cat([answer.logits[0] if ours.kind == "tokens" else answer.logits for answer in answers])
    return float((outputs - expected).abs().max())


def _put_into_place(aside: Path, final: Path) -> None:
    """Rename ``aside`` to ``final``, where an earlier export may be (a folder cannot be replaced in one call)."""
    if not final.exists():
        os.replace(aside, final)
        return
    old = final.with_name(f"{aside.name}.old")
    os.replace(final, old)
    try:
        os.replace(aside, final)
    except OSError:
        os.replace(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)

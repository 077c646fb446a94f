"""What a finished stage leaves: its model as a Hugging Face folder, and DONE.json."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from configs.errors import output_error
from data_prep.shards import sync
from distill_core.build import Parts
from distill_core.config import DistillStage
from distill_core.evaluate.masked_lm import HeldOut
from distill_core.models import pretrained


def write_model(parts: Parts, weights: dict[str, Tensor]) -> None:
    student = {n.removeprefix("student."): w for n, w in weights.items() if n.startswith("student.")}
    folder = parts.folder / "model"
    try:
        pretrained.save(student, parts.student.config, parts.corpus.tokenizer_folder, folder)
        for path in folder.iterdir():  # on the disk before DONE.json says so
            sync(path)
    except OSError as error:
        raise output_error(folder, error) from error


def read_done(folder: Path) -> dict[str, Any] | None:
    path = folder / "DONE.json"
    if not path.is_file():
        return None
    done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return done


def write_done(parts: Parts, quality: HeldOut, seconds: float) -> None:
    """DONE.json: the stage is finished, and what came out of it."""
    stage, training = parts.stage, parts.training
    sequences = training.steps * training.global_batch_size
    split = parts.corpus.split("train")
    tokens = int(sequences * (split.n_tokens / len(split) + 2))
    facts = {
        "name": stage.name,
        "kind": stage.kind,
        "steps": training.steps,
        "sequences": sequences,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens * (1 - parts.first_step / training.steps) / max(seconds, 1e-9), 1),
        "parameters": parts.student.config.parameters(),
        "pairs": parts.pairs,
        "teacher": stage.teacher.source if isinstance(stage, DistillStage) else None,
        "teacher_parameters": parts.teacher.encoder.config.parameters() if parts.teacher is not None else None,
        "corpus_hash": parts.corpus.hash,
        "identity": parts.identity,
        "evaluation": asdict(quality),
        "world_size": parts.rank.world_size,
        "precision": training.precision,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    aside = parts.folder / "DONE.json.tmp"
    try:
        aside.write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
        sync(aside)
        os.replace(aside, parts.folder / "DONE.json")
    except OSError as error:
        raise output_error(parts.folder, error) from error

"""What a finished stage leaves: its model as a Hugging Face folder, and DONE.json; and the best model on the way."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.errors import output_error
from data_prep.atomic import sync
from distill_core.engine import Engine, Rank
from distill_core.models import pretrained
from distill_core.references.measure import reference_facts
from distill_core.references.weights import save_extra, split_state
from distill_core.tasks import pretrained as task_models
from distill_core.tasks.model import TaskModel
from distill_core.training import TrainingConfig

if TYPE_CHECKING:
    from distill_core.parts import Parts, Trainee


class Quality(Protocol):
    """What an evaluation found: masked-LM quality on held-out text, or the scores on a task's dev rows."""

    @property
    def score(self) -> float: ...

    def metrics(self) -> dict[str, float]: ...

    def scalars(self) -> dict[str, float]: ...

    def sentence(self) -> str: ...


class BestModel:
    """With ``training.select: best``: STAGE/best/ holds the weights of the best evaluation so far.

    Best by the evaluation's score, or by the metric of early stopping.
    """

    def __init__(self, stage: Path, training: TrainingConfig, engine: Engine, rank: Rank, first_step: int) -> None:
        """``stage``: its folder. Collective."""
        self.engine, self.rank = engine, rank
        self.folder = stage / "best"
        self.wanted = training.select == "best"
        self.early = training.early_stopping
        self.metric = None if self.early is None else self.early.metric
        score = torch.full((1,), -float("inf") if rank.is_first else 0.0, dtype=torch.float64)
        if self.wanted and rank.is_first and first_step:
            before = read_best(stage)
            if before is not None and before.get("metric") == self.metric:
                score[0] = before["score"]
        self.score = float(rank.sum(score.to(rank.device)))  # the others add 0: all know what the first read

    def consider(self, quality: Quality, done: int) -> None:
        """Keep the weights if this evaluation is better than all before. Collective (all ranks hold one score)."""
        if not self.wanted:
            return
        score = quality.score if self.early is None else self.early.score(self.early.value(quality.metrics()))
        if score <= self.score:
            return
        self.score = score
        weights = self.engine.full_weights()
        if not self.rank.is_first:
            return
        facts = {"step": done, "score": score, "metric": self.metric, "evaluation": facts_of(quality)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, self.folder / "weights.tmp")
            os.replace(self.folder / "weights.tmp", self.folder / "weights.safetensors")
            write_aside(self.folder / "best.json", facts)
        except OSError as error:
            raise output_error(self.folder, error) from error


def read_best(folder: Path) -> dict[str, Any] | None:
    path = folder / "best" / "best.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def facts_of(quality: Quality) -> dict[str, Any]:
    assert is_dataclass(quality) and not isinstance(quality, type)
    return asdict(quality)


def write_model(parts: Parts, trainee: Trainee, weights: dict[str, Tensor]) -> None:
    """STAGE/model/: of the last step, or of the best evaluation."""
    if trainee.training.select == "best":
        weights = load_file(trainee.folder / "best" / "weights.safetensors")
    student = {n.removeprefix("student."): w for n, w in weights.items() if n.startswith("student.")}
    student, extra = split_state(student)
    folder, model, tokenizer = trainee.folder / "model", trainee.student, parts.corpus.tokenizer_folder
    try:
        if isinstance(model, TaskModel):
            task_models.save(student, model.config, model.kind, model.labels, tokenizer, folder)
        else:
            pretrained.save(student, model.config, tokenizer, folder)
        save_extra(model, extra, folder)
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


def write_done(parts: Parts, trainee: Trainee, quality: Quality, seconds: float) -> None:
    """DONE.json: the stage is finished, and what came out of it."""
    stage, training = trainee.stage, trainee.training
    best = read_best(trainee.folder) if training.select == "best" else None
    steps, early = trainee.stopped or parts.steps, trainee.early_stopping
    sequences = steps * training.global_batch_size
    tokens = int(sequences * mean_length(parts))
    first = parts.teachers[0] if parts.teachers else None
    facts = {
        "name": stage.name,
        "kind": stage.kind,
        "steps": steps,
        "epochs": training.epochs if trainee.stopped is None else sequences / len(parts.loader.source),
        "early_stopping": None if early is None else early.facts(steps, parts.steps),
        "sequences": sequences,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "beside": [other.stage.name for other in parts.trainees if other is not trainee],
        "tokens_per_second": round(tokens * (1 - trainee.first_step / steps) / max(seconds, 1e-9), 1),
        "parameters": parameters(trainee.student),
        "pairs": parts.pairs(trainee),
        "labels": trainee.student.labels if isinstance(trainee.student, TaskModel) else [],
        "pooler": trainee.student.config.pooler,
        "teacher": stage.teacher[0].source if stage.kind == "distill" else None,
        "teacher_parameters": None if first is None else first.parameter_count,
        "corpus_hash": parts.corpus.hash,
        "identity": trainee.identity,
        "evaluation": facts_of(quality) if best is None else best["evaluation"],
        "selected_step": steps if best is None else best["step"],
        "references": reference_facts(parts.references, trainee.folder / "model"),
        "world_size": parts.rank.world_size,
        "precision": training.precision,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        write_aside(trainee.folder / "DONE.json", facts)
    except OSError as error:
        raise output_error(trainee.folder, error) from error


def mean_length(parts: Parts) -> float:
    """Tokens of a training sequence, with its special tokens."""
    if parts.task is not None:
        return parts.task.train.n_tokens / len(parts.task.train)
    split = parts.corpus.split("train")
    return split.n_tokens / len(split) + split.specials


def parameters(model: torch.nn.Module) -> int:
    # ZeRO-3 leaves parameters empty between steps, and their size in ds_numel.
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())


def write_aside(path: Path, facts: dict[str, Any]) -> None:
    """Written whole or not at all."""
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
    sync(aside)
    os.replace(aside, path)

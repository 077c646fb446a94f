"""What a run has left in its folder so far, for the model card, the report and the table at the end.

Reads JSON only: no weights and no corpus. A part that is not there yet is None or empty; a part that is there
but cannot be read is a :class:`DataError`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import hub
from configs.errors import DataError, output_error
from distill_core.config import (
    AnyStage,
    AugmentStage,
    DistillStage,
    PretrainStage,
    RunConfig,
    model_sources,
    reads_corpus,
)
from distill_core.models.pretrained import WEIGHTS
from distill_core.tasks.pretrained import task_kind_of
from distill_core.tasks.rows import TaskKind

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class StageOutcome:
    """One stage: its config, and what it has left."""

    index: int
    stage: AnyStage
    folder: Path
    done: dict[str, Any] | None
    """DONE.json of a finished stage."""
    metrics: Rows
    """The rows of metrics.jsonl, by step."""

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"

    @property
    def state(self) -> str:
        """``finished``, ``step 300 of 400`` or ``not started``."""
        if self.done is not None:
            return "finished"
        if not self.metrics:
            return "not started"
        assert not isinstance(self.stage, AugmentStage)
        steps = self.stage.training.steps
        return f"step {self.metrics[-1]['step']}" + (f" of {steps}" if steps is not None else "")

    @property
    def makes_masked_lm(self) -> bool:
        return reads_corpus(self.stage)


@dataclass(frozen=True)
class TaskOutcome:
    """A model trained for a task, with its scores on the task's dev rows."""

    name: str
    task: str
    kind: TaskKind
    parameters: int
    scores: dict[str, float]
    """Empty where the stage does not train the task's head (TinyBERT's intermediate layers)."""
    teacher: str | None
    teacher_scores: dict[str, float] | None
    agreement: float | None
    rows: int
    selected_step: int


@dataclass(frozen=True)
class ModelOutcome:
    """A model of the chain with its measured quality; ``source``: a folder, or a hub name."""

    name: str
    source: str
    parameters: int | None
    loss: float | None
    accuracy: float | None
    agreement: float | None
    """With its own teacher."""
    masked_tokens: int | None
    bytes_on_disk: int | None
    is_stage: bool


@dataclass(frozen=True)
class Outcome:
    """A whole run."""

    config: RunConfig
    folder: Path
    stages: list[StageOutcome]
    models: list[ModelOutcome]
    """The masked LMs."""
    tasks: list[TaskOutcome]
    """In the order of the chain: the first teacher first, the final student last."""
    unigram: dict[str, Any] | None
    latency: Rows
    guesses: Rows
    environment: dict[str, Any]
    manifest: dict[str, Any]
    """Of the prepared corpus."""


def read_outcome(config: RunConfig, folder: Path) -> Outcome:
    """Everything that can be known of the run in ``folder`` without touching weights.

    Raises:
        DataError: when a file of the run is there but damaged.
    """
    stages = [read_stage(config, index, folder) for index in range(len(config.stages))]
    evaluation = folder / "evaluation"
    return Outcome(
        config=config,
        folder=folder,
        stages=stages,
        models=[describe_model(name, source, stages) for name, source in chain_models(config, folder).items()],
        tasks=[found for stage in stages if (found := describe_task(config, stage)) is not None],
        unigram=read_json(evaluation / "unigram.json"),
        latency=(read_json(evaluation / "latency.json") or {}).get("rows", []),
        guesses=(read_json(evaluation / "fill_mask.json") or {}).get("rows", []),
        environment=read_json(folder / "environment.json") or {},
        manifest=read_json(data_folder(config, folder) / "manifest.json") or {},
    )


def data_folder(config: RunConfig, folder: Path) -> Path:
    """The prepared corpus of the run in ``folder`` (which may have been moved since it was run)."""
    return Path(config.data.folder) if config.data.folder else folder / "data"


def stage_folder(config: RunConfig, index: int, folder: Path) -> Path:
    """As ``config.stage_folder``, under ``folder``."""
    return folder / "stages" / config.stage_folder(index).name


def read_stage(config: RunConfig, index: int, folder: Path) -> StageOutcome:
    here = stage_folder(config, index, folder)
    return StageOutcome(
        index=index,
        stage=config.stages[index],
        folder=here,
        done=read_json(here / "DONE.json"),
        metrics=read_rows(here / "metrics.jsonl"),
    )


def chain_models(config: RunConfig, folder: Path) -> dict[str, str]:
    """The masked LMs, name -> folder or hub name, in the order of the chain: models from outside before what is
    made of them."""
    stages = {stage.name for stage in config.stages}
    models: dict[str, str] = {}
    for index, stage in enumerate(config.stages):
        for source in model_sources(stage):
            if source not in stages and task_kind_of(source) is None:
                models[outside_name(source, stages)] = source
        if reads_corpus(stage):
            models[stage.name] = str(stage_folder(config, index, folder) / "model")
    return models


def outside_name(source: str, stages: set[str]) -> str:
    """A short name for a teacher from outside: its folder's or its hub name."""
    name = Path(source).name if Path(source).is_dir() else hub.name_of(source)
    return f"{name} (given)" if name in stages else name


def describe_model(name: str, source: str, stages: list[StageOutcome]) -> ModelOutcome:
    own = next((s for s in stages if s.name == name), None)
    if own is not None:
        done = own.done or {}
        parameters, who = done.get("parameters"), "student"
    else:  # a teacher from outside was measured beside its first finished student
        taught = (
            s.done
            for s in stages
            if s.makes_masked_lm and isinstance(s.stage, DistillStage) and s.stage.teacher[0].source == source
        )
        done = next((d for d in taught if d is not None), {})
        parameters, who = done.get("teacher_parameters"), "teacher"
    evaluation = done.get("evaluation") or {}
    quality = evaluation.get(who) or {}
    return ModelOutcome(
        name=name,
        source=source,
        parameters=parameters,
        loss=quality.get("loss"),
        accuracy=quality.get("accuracy"),
        agreement=evaluation.get("agreement") if own is not None else None,
        masked_tokens=evaluation.get("masked_tokens"),
        bytes_on_disk=_added(weights_bytes(Path(source)), ((own and own.done) or {}).get("references")),
        is_stage=own is not None,
    )


def describe_task(config: RunConfig, stage: StageOutcome) -> TaskOutcome | None:
    """The scores of a finished stage with a task."""
    if stage.makes_masked_lm or isinstance(stage.stage, AugmentStage) or stage.done is None:
        return None
    assert not isinstance(stage.stage, PretrainStage) and stage.stage.task is not None
    found = stage.done["evaluation"]
    head = found.get("head_trained", True)
    return TaskOutcome(
        name=stage.name,
        task=stage.stage.task,
        kind=config.tasks[stage.stage.task].kind,
        parameters=stage.done["parameters"],
        scores=found["student"] if head else {},
        teacher=stage.done["teacher"],
        teacher_scores=found["teacher"],
        agreement=found["agreement"] if head else None,
        rows=found["rows"],
        selected_step=stage.done["selected_step"],
    )


def _added(weights: int | None, references: dict[str, Any] | None) -> int | None:
    """A model that reads references is as large as all that it needs: store and index too."""
    return weights if weights is None or not references else weights + int(references["bytes"])


def weights_bytes(folder: Path) -> int | None:
    """Size of a local model's weights; None when there are none (a hub name, a stage that is not finished)."""
    single = next((folder / n for n in WEIGHTS if not n.endswith(".json") and (folder / n).is_file()), None)
    if single is not None:
        return single.stat().st_size
    parts = [*folder.glob("model-*.safetensors")] or [*folder.glob("pytorch_model-*.bin")]
    return sum(part.stat().st_size for part in parts) or None


# ---------------------------------------------------------------- files


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None when there is no such file.

    Raises:
        DataError: when the file cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}). Delete it and repeat the run's command.") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} does not hold a JSON object. Delete it and repeat the run's command.")
    return content


def read_rows(path: Path) -> Rows:
    """The rows of a metrics.jsonl in the order of their steps.

    A line torn by a crash is left out. Steps that were taken again after a resume stand in the file once more:
    the later row counts, entry by entry (a step's evaluation is a row of its own).
    """
    if not path.is_file():
        return []
    by_step: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            by_step.setdefault(int(row["step"]), {}).update(row)
        except (ValueError, KeyError, TypeError):
            continue
    return [by_step[step] for step in sorted(by_step)]


def write_text(path: Path, text: str) -> None:
    """Write aside and rename, so that a reader finds the old file or the new one.

    Raises:
        OutputError: when that is not possible.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise output_error(path, error) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")

"""What runs of one recipe with several seeds have left: losses by step, quality at the end, of each stage."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill_core.config import AugmentStage, RunConfig, TrainedStage
from distill_core.outcome import StageOutcome, read_outcome

POINTS = 6


@dataclass(frozen=True)
class Figure:
    """One figure of several seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    def show(self, form: str) -> str:
        """``5.93 (5.91–5.96)``: the mean, and the least and the greatest where they look different."""
        low, high = form.format(min(self.values)), form.format(max(self.values))
        mean = form.format(self.mean)
        return mean if low == high else f"{mean} ({low}–{high})"


@dataclass(frozen=True)
class Stage:
    """A stage of a recipe, over its seeds."""

    name: str
    kind: str
    parameters: int
    steps: int
    at: tuple[int, ...]
    """Steps; each loss is the mean of the steps since the log line before."""
    losses: tuple[Figure, ...]
    metric: str
    """``held-out loss`` of masked LM, or a task's metric."""
    student: Figure | None
    """None where the stage trains no head."""
    accuracy: Figure | None
    """Of masked LM."""
    teacher: Figure | None
    seconds: Figure

    @property
    def fall(self) -> float:
        """Share of the first of its losses that is gone at the last."""
        return 1 - self.losses[-1].mean / self.losses[0].mean


@dataclass(frozen=True)
class Curves:
    """A recipe."""

    recipe: str
    seeds: tuple[int, ...]
    stages: tuple[Stage, ...]
    unigram: float | None
    masked_tokens: int | None
    perplexity: dict[str, Figure]
    """Pseudo-perplexity per token by model, where the recipe measures it."""


def read_curves(recipe: str, runs: Sequence[RunConfig]) -> Curves:
    """From finished runs, which differ in their seed alone."""
    outcomes = [read_outcome(config, config.folder) for config in runs]
    columns = zip(*(outcome.stages for outcome in outcomes), strict=True)
    trained = [column for column in columns if not isinstance(column[0].stage, AugmentStage)]
    unigram = outcomes[0].unigram or {}
    return Curves(
        recipe,
        tuple(config.seed for config in runs),
        tuple(_stage(column) for column in trained),
        unigram.get("loss"),
        unigram.get("masked_tokens"),
        _perplexity(runs),
    )


def _stage(column: Sequence[StageOutcome]) -> Stage:
    stage, done = column[0].stage, [outcome.done or {} for outcome in column]
    assert not isinstance(stage, AugmentStage)
    logged = [[row for row in outcome.metrics if "loss/total" in row] for outcome in column]
    chosen = spread(len(logged[0]), POINTS)
    evaluations = [one["evaluation"] for one in done]
    metric = evaluations[0].get("main", "loss")
    return Stage(
        name=stage.name,
        kind=stage.kind,
        parameters=done[0]["parameters"],
        steps=done[0]["steps"],
        at=tuple(int(logged[0][i]["step"]) for i in chosen),
        losses=tuple(Figure(tuple(float(rows[i]["loss/total"]) for rows in logged)) for i in chosen),
        metric="held-out loss" if metric == "loss" else metric,
        student=_quality(evaluations, "student", metric) if learns_head(stage, evaluations[0]) else None,
        accuracy=_quality(evaluations, "student", "accuracy") if metric == "loss" else None,
        teacher=_quality(evaluations, "teacher", metric),
        seconds=Figure(tuple(float(one["seconds"]) for one in done)),
    )


def spread(count: int, points: int) -> list[int]:
    """So many indices below ``count``, evenly, with the first and the last."""
    points = min(count, points)
    return [round(i * (count - 1) / max(points - 1, 1)) for i in range(points)]


def learns_head(stage: TrainedStage, evaluation: dict[str, Any]) -> bool:
    """Whether a loss of the stage reaches the head that its evaluation asks."""
    if "head_trained" in evaluation:
        return bool(evaluation["head_trained"])
    kinds = [loss.kind for loss in stage.objective]
    return any(kind == "mlm" or kind.startswith("kd_") for kind in kinds)


def _quality(evaluations: Sequence[dict[str, Any]], who: str, metric: str) -> Figure | None:
    found = [evaluation.get(who) for evaluation in evaluations]
    return None if any(one is None for one in found) else Figure(tuple(float(one[metric]) for one in found if one))


def _perplexity(runs: Sequence[RunConfig]) -> dict[str, Figure]:
    paths = [config.folder / "evaluation" / "pseudo_perplexity.json" for config in runs]
    if not all(path.is_file() for path in paths):
        return {}
    each = [json.loads(path.read_text(encoding="utf-8"))["rows"] for path in paths]
    return {rows[0]["model"]: Figure(tuple(row["per_token"] for row in rows)) for rows in zip(*each, strict=True)}

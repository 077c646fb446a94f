"""Ending a stage before its last step, when what is measured on the held-out data gets no better.

As in Lightning's and Hugging Face's callbacks: an evaluation is an improvement when it is better by more than
``min_delta`` than the best one that counted as such, and the stage ends at the ``patience``-th evaluation in a row
that is none. Whether it ends is a pure function of the settings and of what the evaluations have found; that list
stands in checkpoints and in DONE.json, so a killed run comes to the same end, and a stage that has ended goes on when
it is given more patience.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator

from configs.errors import ConfigError
from configs.loader import Config
from configs.problems import refusal
from distill_core.objectives import OBJECTIVES
from distill_core.objectives.logits import VocabularyTerm
from distill_core.tasks.metrics import METRICS

if TYPE_CHECKING:
    from distill_core.config import AnyStage, TrainedStage
    from distill_core.engine import Rank
    from distill_core.tasks.config import TaskConfig

Metric = Literal[
    "loss",
    "accuracy",
    "agreement",
    "pseudo_perplexity",
    "pseudo_perplexity_per_token",
    "f1",
    "macro_f1",
    "mcc",
    "precision",
    "recall",
    "token_accuracy",
    "exact_match",
    "pearson",
    "spearman",
]
PERPLEXITIES: tuple[Metric, ...] = ("pseudo_perplexity", "pseudo_perplexity_per_token")
LOWER_IS_BETTER: tuple[Metric, ...] = ("loss", *PERPLEXITIES)
SEQUENCES = 100


class EarlyStoppingConfig(Config):
    """`early_stopping:`; looks at the evaluations after each ``evaluate_every`` steps. `steps` or `epochs` remain what
    the learning rate falls over, and are the most that the stage takes."""

    metric: Metric
    """On held-out text `loss`, `accuracy`, `agreement` with the teacher, `pseudo_perplexity` (exp of the mean over
    sequences of their mean, as RobBERTje's code has it) or `pseudo_perplexity_per_token` (Salazar et al. 2020); on a
    task's dev rows one of its scores, or `agreement`. With `select: best` it also says which model is the best."""
    patience: int = Field(default=3, ge=1)
    """The stage ends at so many evaluations in a row without an improvement."""
    min_delta: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """What is better by no more than this is no improvement."""
    sequences: int | None = Field(default=None, ge=1)
    """Of the pseudo-perplexities, which take a forward pass of the student for each token: at most so many held-out
    sequences (default: 100)."""

    @model_validator(mode="after")
    def _sequences_of_perplexities(self) -> EarlyStoppingConfig:
        if self.sequences is not None and self.metric not in PERPLEXITIES:
            raise ValueError(
                f"`sequences` belongs to the metrics {' and '.join(PERPLEXITIES)}; {self.metric} is measured on "
                "`evaluate_sequences`. Remove it, or set training.evaluate_sequences"
            )
        return self

    @property
    def perplexity_sequences(self) -> int | None:
        """How many held-out sequences are scored token by token; None: none are."""
        return (self.sequences or SEQUENCES) if self.metric in PERPLEXITIES else None

    @property
    def measure(self) -> dict[str, Any]:
        """What makes the values of two evaluations comparable."""
        return {"metric": self.metric, "sequences": self.perplexity_sequences}

    def score(self, value: float) -> float:
        """Higher is better."""
        return -value if self.metric in LOWER_IS_BETTER else value

    def value(self, metrics: Mapping[str, float]) -> float:
        """Of an evaluation.

        Raises:
            ConfigError: the evaluation has not measured it.
        """
        if self.metric not in metrics:
            raise ConfigError(
                f"training.early_stopping.metric is {self.metric}, but the evaluation has measured "
                f"{', '.join(metrics)} only; name one of them, and start again: the run continues from its last "
                "checkpoint."
            )
        return metrics[self.metric]


# ---------------------------------------------------------------- the decision


@dataclass(frozen=True)
class Standing:
    """After some evaluations: the best that counted, its step, and how many came after it. ``stopped``: the step of
    the evaluation that ends the stage."""

    best: float | None = None
    best_step: int | None = None
    waited: int = 0
    stopped: int | None = None


Evaluations = list[tuple[int, float | None]]
"""(finished optimiser steps, value; None where it was not finite)."""


def standing(config: EarlyStoppingConfig, evaluations: Evaluations) -> Standing:
    """What the evaluations, in their order, come to; those behind the one that ends the stage do not count."""
    best: float | None = None
    best_step, waited = None, 0
    for step, value in evaluations:
        if value is not None and (best is None or config.score(value) - config.score(best) > config.min_delta):
            best, best_step, waited = value, step, 0
        else:
            waited += 1
        if waited >= config.patience:
            return Standing(best, best_step, waited, step)
    return Standing(best, best_step, waited)


@dataclass
class EarlyStopping:
    """Of a stage in training: its settings, and what its evaluations have found."""

    config: EarlyStoppingConfig
    rank: Rank
    evaluations: Evaluations = field(default_factory=list)
    standing: Standing = field(init=False)

    def __post_init__(self) -> None:
        self.standing = standing(self.config, self.evaluations)

    def consider(self, metrics: Mapping[str, float], step: int) -> None:
        """Note the evaluation after ``step``. Collective: rank 0's value counts, so that all ranks decide alike."""
        value = torch.zeros(1, dtype=torch.float64)
        if self.rank.is_first:
            value[0] = self.config.value(metrics)
        found = float(self.rank.sum(value.to(self.rank.device)))
        self.evaluations.append((step, found if math.isfinite(found) else None))
        self.standing = standing(self.config, self.evaluations)

    def scalars(self) -> dict[str, float]:
        now = self.standing
        found = {"early_stopping/evaluations_without_improvement": float(now.waited)}
        return found if now.best is None else found | {"early_stopping/best": now.best}

    def sentence(self, step: int, at_most: int) -> str | None:
        """Why the stage ends after ``step`` of ``at_most``; None while it goes on."""
        now, config = self.standing, self.config
        if now.stopped is None:
            return None
        count = f"{now.waited} evaluation{'s' if now.waited > 1 else ''}"
        if now.best is None:
            why = f"{config.metric} was not finite in {count}"
        else:
            moved = "fallen" if config.metric in LOWER_IS_BETTER else "risen"
            least = f"by more than {config.min_delta:g} " if config.min_delta else ""
            why = f"{config.metric} has not {moved} {least}in {count} since step {now.best_step} ({now.best:.6g})"
        return f"stopped early after step {step} of at most {at_most}: {why}"

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {**self.config.measure, "evaluations": self.evaluations}

    def facts(self, step: int, at_most: int) -> dict[str, Any]:
        """For DONE.json of a stage that has taken ``step`` steps of ``at_most``."""
        now = self.standing
        return {
            **self.state(),
            "patience": self.config.patience,
            "min_delta": self.config.min_delta,
            "best": now.best,
            "best_step": now.best_step,
            "at_most": at_most,
            "stopped": now.stopped is not None,
            "reason": self.sentence(step, at_most),
        }


def evaluations_in(config: EarlyStoppingConfig, state: Mapping[str, Any] | None) -> Evaluations:
    """Those that a checkpoint or DONE.json holds; [] where there are none, or of another measure."""
    if state is None or any(state.get(name) != value for name, value in config.measure.items()):
        return []
    return [(step, value) for step, value in state["evaluations"]]


def has_ended(config: EarlyStoppingConfig | None, state: Mapping[str, Any] | None) -> bool:
    """Whether a stage that has left ``state`` in DONE.json ends there under the settings of now, too."""
    return config is not None and standing(config, evaluations_in(config, state)).stopped is not None


# ---------------------------------------------------------------- what a stage measures


def check_metrics(stages: Sequence[AnyStage], tasks: Mapping[str, TaskConfig]) -> None:
    """Raise pydantic's error, at its place in the run file, where a stage does not measure what it is to end by."""
    for index, stage in enumerate(stages):
        training = getattr(stage, "training", None)
        if training is None or training.early_stopping is None:
            continue
        reason = why_not(stage, tasks, training.early_stopping)  # type: ignore[arg-type]
        if reason is not None:
            place = ("stages", index, "training", "early_stopping", "metric")
            raise refusal(place, f"stage {stage.name!r}: {reason}", training.early_stopping.metric)


def why_not(stage: TrainedStage, tasks: Mapping[str, TaskConfig], wanted: EarlyStoppingConfig) -> str | None:
    """Why a stage cannot end by ``wanted``, and what to do; None where it can."""
    task = None if stage.kind == "pretrain" else stage.task
    losses = [OBJECTIVES[term.kind] for term in stage.objective]
    if getattr(stage, "progressive", None) is not None:
        return (
            "with `progressive` most of the student stands still while a layer learns, so that no evaluation gets "
            "better; stop early in a stage of its own behind this one (init: {kind: model, source: "
            f"{stage.name}}}), or remove early_stopping"
        )
    if task is None:
        found: tuple[str, ...] = ("loss", "accuracy", *PERPLEXITIES)
        trained = any(issubclass(loss, VocabularyTerm) for loss in losses)
        where, needed = "held-out text", "mlm or kd_ce"
    else:
        found = METRICS[tasks[task].kind]
        trained = any(loss.count == "targets" for loss in losses)
        where, needed = f"the dev rows of task {task!r} ({tasks[task].kind})", "task or task_kd"
    if stage.kind == "distill":
        found = (*found, "agreement")
    if wanted.metric not in found:
        return f"on {where} it measures {', '.join(found)}, but not {wanted.metric}; name one of these"
    if not trained:
        return (
            f"no loss of its objective trains the head that {wanted.metric} is measured with, so that it would not get "
            f"better; add a loss such as {needed}, or remove early_stopping"
        )
    if wanted.metric in PERPLEXITIES and getattr(stage, "references", None) is not None:
        return f"{wanted.metric} is measured without references, and the stage has `references`; take loss"
    return None

"""What early stopping makes of a plan: its steps are the most that a stage takes, and evaluations may cost more."""

from __future__ import annotations

from distill_core.features import MASKED_LOGITS
from distill_core.flops import forward_flops
from launcher.plan import Plan, StagePlan


def at_most(stage: StagePlan) -> str:
    """To be written before what a stage takes in all."""
    return "" if stage.training.early_stopping is None else "at most "


def stopping_lines(plan: Plan) -> list[str]:
    """For each stage with early stopping: when it may end, and what pseudo-perplexities cost."""
    return [line for stage in plan.stages if (line := stopping_line(stage)) is not None]


def stopping_line(stage: StagePlan) -> str | None:
    training, early = stage.training, stage.training.early_stopping
    if early is None:
        return None
    first = training.evaluate_every * (early.patience + 1)
    known = training.steps is not None or stage.epochs is not None
    rhythm = f"patience {early.patience}, an evaluation each {training.evaluate_every:,} steps"
    if known and first >= stage.steps:
        text = (
            f"{stage.name}: early stopping by {early.metric} cannot end it before its {stage.steps:,} steps are over "
            f"({rhythm}); lower evaluate_every or patience if it should"
        )
    else:
        text = f"{stage.name}: early stopping by {early.metric} may end it after step {first:,} or later ({rhythm})"
    share = perplexity_steps(stage)
    return text if share is None else f"{text}; an evaluation takes the FLOPs of {share:.2g} steps for it"


def perplexity_steps(stage: StagePlan) -> float | None:
    """FLOPs of one measurement of the pseudo-perplexity over those of a step; None where it is not measured.

    A text of L tokens takes L forward passes of the student over L tokens, each with one row of logits.
    """
    early, data = stage.training.early_stopping, stage.data
    if early is None or early.perplexity_sequences is None:
        return None
    tokens = early.perplexity_sequences * data.mean_length * data.pairs_per_token
    counts = {"tokens": 1.0, "pairs": data.pairs_per_token, "masked": 1.0 / data.pairs_per_token}
    return tokens * forward_flops(stage.student, MASKED_LOGITS).of(counts) / stage.flops_per_step  # type: ignore[arg-type]

"""Stages that are trained side by side: one loader and one teacher forward for several students.

Each stage stays what it is, with its own student, optimizer, curves, checkpoints and DONE.json, and ends in the same
weights as if it were trained alone. They share what a batch and the teachers' answers to it are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill_core.config import AnyStage, DistillStage

SHARED = ("task", "rows", "teacher_cache")
SHARED_TRAINING = (
    "steps",
    "epochs",
    "global_batch_size",
    "micro_batch_tokens",
    "order",
    "sampled_rows",
    "precision",
    "teacher_precision",
    "teacher_sharding",
    "attention",
)


def groups(stages: Sequence[AnyStage]) -> list[list[int]]:
    """The stages' numbers in the order of the run; those trained side by side in one list."""
    found: list[list[int]] = []
    for index, stage in enumerate(stages):
        if getattr(stage, "beside", None) is None:
            found.append([index])
        else:
            found[-1].append(index)
    return found


def group_of(stages: Sequence[AnyStage], index: int) -> list[int]:
    """The group that stage ``index`` is in; [index] when it is trained alone."""
    return next(group for group in groups(stages) if index in group)


def check_beside(stages: Sequence[AnyStage], sources: Sequence[Sequence[str]]) -> None:
    """Raise ValueError, naming the field, where a stage cannot be trained beside the one that it names.

    Args:
        sources: for each stage what it takes weights or rows from.
    """
    for index, stage in enumerate(stages):
        if stage.kind != "distill" or stage.beside is None:
            continue
        who = f"stage {stage.name!r}: beside {stage.beside!r}"
        group = group_of(stages[: index + 1], index)[:-1]
        members = [stages[i].name for i in group]
        if stage.beside not in members:
            where = f"is not the stage before it ({members[-1]!r})" if members else "is not before it: no stage is"
            raise ValueError(f"{who} {where}; stages trained side by side stand one after the other")
        first = stages[group[0]]
        if first.kind != "distill":
            raise ValueError(f"{who}: that is a stage of kind {first.kind}; only distill stages share their teachers")
        started = [name for name in sources[index] if name in members]
        if started:
            raise ValueError(f"{who}: it starts from {started[0]!r}, which is trained at the same time; drop `beside`")
        if first.references is not None or stage.references is not None:
            raise ValueError(f"{who}: a stage with `references` is trained alone; drop `beside`")
        _check_equal(first, stage, who)


def _check_equal(first: DistillStage, stage: DistillStage, who: str) -> None:
    pairs: list[tuple[str, Any, Any]] = [("teacher", _teachers(first), _teachers(stage))]
    pairs += [(name, getattr(first, name), getattr(stage, name)) for name in SHARED]
    pairs += [
        (f"training.{name}", getattr(first.training, name), getattr(stage.training, name)) for name in SHARED_TRAINING
    ]
    for name, theirs, mine in pairs:
        if theirs != mine:
            raise ValueError(
                f"{who}: stages trained side by side read the same batches and the same teachers, but {name} is "
                f"{mine} here and {theirs} in {first.name!r}; make them equal, or drop `beside`"
            )


def _teachers(stage: DistillStage) -> list[dict[str, Any]]:
    return [teacher.model_dump(exclude={"shape"}) for teacher in stage.teacher]

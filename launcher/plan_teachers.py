"""The teachers of each stage: their shares of the losses, and what becomes of a head that knows nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.table import Table
from rich.text import Text

from distill_core.config import RunConfig, TeacherConfig
from distill_core.models.config import EncoderConfig
from distill_core.objectives.base import Needs
from distill_core.tasks.own_tokens import Own
from launcher.plan_losses import table_of

if TYPE_CHECKING:
    from launcher.plan import Plan

GATES = {"refuse": "refused if random", "warn": "warned of if random", "off": "not checked", None: "not used"}


@dataclass(frozen=True)
class TeacherPlan:
    """One teacher of a stage. ``share``: its part of the teachers' losses; ``gate``: what its masked-LM head meets,
    None where no loss asks for its vocabulary logits."""

    source: str
    shape: EncoderConfig
    share: float
    gate: Literal["refuse", "warn", "off"] | None


def teacher_plans(
    config: RunConfig, teachers: Sequence[tuple[TeacherConfig, EncoderConfig]], needs: Sequence[Needs]
) -> list[TeacherPlan]:
    """``needs``: what the stage's objective asks of each teacher, in their order."""
    whole = sum(teacher.weight for teacher, _ in teachers)
    return [
        TeacherPlan(
            source=teacher.source,
            shape=shape,
            share=teacher.weight / whole,
            gate=teacher.gate(config.stage_index(teacher.source) is not None) if need.teacher.logits else None,
        )
        for (teacher, shape), need in zip(teachers, needs, strict=bool(teachers))
    ]


def described(teachers: Sequence[tuple[TeacherConfig, EncoderConfig]], own: Own) -> tuple[str, ...]:
    """The teachers that read tokens of their own, with the kind and size of their vocabularies."""
    return tuple(f"{teachers[n][0].source} ({t.kind}, {t.vocab_size:,} entries)" for n, t in own.items())


def teachers_table(plan: Plan) -> Table | None:
    """Every teacher of every stage; None where no stage has one."""
    table = table_of("stage", "teacher", "share of its losses", "masked-LM head")
    for stage in plan.stages:
        for teacher in stage.teachers:
            table.add_row(Text(stage.name), Text(teacher.source), f"{teacher.share:.3g}", GATES[teacher.gate])
    table.caption = "random: no better than token frequencies on held-out text (teacher.head_check)"
    return table if table.rows else None

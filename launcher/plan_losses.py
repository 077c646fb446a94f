"""What a stage's losses are and what they compare, and how its student begins: as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from distill_core.batch import Count
from distill_core.config import DistillStage, TrainedStage
from distill_core.models.config import EncoderConfig
from distill_core.models.initialise import check_init
from distill_core.models.layer_choice import chosen_layers
from distill_core.objective import Objective
from distill_core.objectives.base import Schedule

if TYPE_CHECKING:
    from launcher.plan import Plan, StagePlan

ALWAYS = ("temperature", "temperature_squared")
"""Settings that are shown even where the run file leaves them to their defaults."""
ELSEWHERE = ("kind", "weight", "layers")
"""Settings that have a column, or the table of layers."""
AT_RANDOM = "at random"


@dataclass(frozen=True)
class LossPlan:
    """One loss of a stage's objective.

    ``label``: its name in curves; ``count``: what it is averaged over; ``settings``: what the run file says of it, by
    key; ``parameters``: of its projections, with the first teacher; ``shared``: one projection for all pairs;
    ``pairs``: (teacher layer, student layer).
    """

    label: str
    weight: float | Schedule
    count: Count
    settings: dict[str, Any]
    parameters: int
    shared: bool
    pairs: list[tuple[int, int]]


def loss_plans(
    stage: TrainedStage, first: Objective, student: EncoderConfig, teacher: EncoderConfig | None
) -> list[LossPlan]:
    """The losses of a stage; ``first``: its objective against the first ``teacher`` (or none), which holds them all."""
    kinds = [config.kind for config in stage.objective]
    found = []
    for place, (config, term) in enumerate(zip(stage.objective, first.terms, strict=True)):
        shown = [name for name in type(config).model_fields if name in config.model_fields_set or name in ALWAYS]
        found.append(
            LossPlan(
                label=f"{config.kind}.{place}" if kinds.count(config.kind) > 1 else config.kind,
                weight=config.weight,
                count=term.count,  # type: ignore[arg-type]
                settings={name: getattr(config, name) for name in shown if name not in ELSEWHERE},
                parameters=sum(p.numel() for p in term.parameters()),
                shared=bool(getattr(config, "shared_projection", False)),
                pairs=[] if teacher is None else config.pairs(teacher.num_hidden_layers, student.num_hidden_layers),
            )
        )
    return found


def beginnings(stage: TrainedStage, student: EncoderConfig, origin: EncoderConfig | None) -> list[str]:
    """How the embeddings and each layer of a stage's model begin, in words.

    Args:
        origin: what layers or embeddings may be taken from: the first teacher, or the model that `init` names.

    Raises:
        ConfigError: the student cannot begin so from a model of this shape.
    """
    depth = student.num_hidden_layers
    init = stage.student.init if isinstance(stage, DistillStage) else getattr(stage, "init", None)
    if init is None or init.kind == "model":
        return [f"as in {stage.model if init is None else init.source}"] * (depth + 1)  # type: ignore[union-attr]
    if init.kind == "random" or origin is None:
        return [AT_RANDOM] * (depth + 1)
    who = f"stage {stage.name!r}"
    check_init(init, student.model_copy(update={"vocab_size": origin.vocab_size}), origin, who)
    how, whose = " made narrower" if init.kind == "svd" else "", init.parts or "teacher"
    words = [f"{whose} embeddings{how}" if init.embeddings else AT_RANDOM]
    if not init.layers:
        return words + [AT_RANDOM] * depth
    layers = chosen_layers(init.layers, depth, origin.num_hidden_layers, who)
    if layers is None:
        return words + [f"a {whose} layer, by its weights{how}"] * depth
    return words + [f"{whose} layer {layer + 1}{how}" for layer in layers]


# ---------------------------------------------------------------- tables


def losses_table(plan: Plan) -> Table:
    """Every loss of every stage with its weight and settings."""
    table = table_of("stage", "loss", "weight", "mean over", "settings")
    for stage in plan.stages:
        for loss in stage.losses:
            settings = ", ".join(f"{name} {_said(value)}" for name, value in loss.settings.items())
            table.add_row(Text(stage.name), loss.label, _said(loss.weight), loss.count, Text(settings))
    values = [value for s in plan.stages for loss in s.losses for value in (loss.weight, *loss.settings.values())]
    if any(isinstance(value, Schedule) for value in values):
        table.caption = "a to b (begin to finish): moves in a straight line over this part of the stage's steps"
    return table


def layers_table(stage: StagePlan) -> Table:
    """Which teacher layer each student layer is copied from and compared with; 0 is the embedding output."""
    matched = [loss for loss in stage.losses if loss.pairs]
    table = table_of(f"{stage.name}: layer", "begins", *(loss.label for loss in matched))
    for layer, begins in enumerate(stage.begins):
        cells = [_partners(loss, layer) for loss in matched]
        table.add_row("embeddings" if layer == 0 else str(layer), Text(begins), *cells)
    projected, captions = [loss for loss in matched if loss.parameters], []
    if len(stage.teachers) > 1:
        captions.append(f"the layers are those of the first teacher ({stage.teachers[0].source})")
    if projected and stage.teacher is not None:
        widths = f"{stage.student.hidden_size} -> {stage.teacher.hidden_size}"
        how = ", ".join(f"{loss.label}: {'one for all' if loss.shared else 'one for each'}" for loss in projected)
        captions.append(f"->[W] a learned projection {widths} ({how})")
    table.caption = Text("\n".join(captions)) if captions else None
    return table


def layered(stages: Sequence[StagePlan]) -> list[StagePlan]:
    """The stages whose layers there is something to say about."""
    return [s for s in stages if any(loss.pairs for loss in s.losses) or len(set(s.begins)) > 1]


def table_of(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, caption_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _partners(loss: LossPlan, layer: int) -> str:
    partners = ", ".join(str(t) for t, s in loss.pairs if s == layer)
    arrow = "->\\[W]" if loss.parameters else "->"
    return f"{arrow} teacher {partners}" if partners else ""


def _said(value: Any) -> str:
    """A setting as the run file would say it."""
    if isinstance(value, Schedule):
        return f"{value.start:g} to {value.end:g} ({value.begin:.0%} to {value.finish:.0%})"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)

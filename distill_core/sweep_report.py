"""The comparison of a sweep's runs: SWEEP/report.html and SWEEP/report.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.page import Plot, Section, Table, render
from distill_core.config import AugmentStage, RunConfig, reads_corpus, trained
from distill_core.model_card import TEMPLATES
from distill_core.outcome import Outcome, read_outcome, write_text
from distill_core.plots import overlaid
from distill_core.report_facts import closed, duration, latency_at

BEST = "★"
Changes = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A measured figure; ``better``: max or min where a best one is marked."""

    title: str
    values: list[float | None]
    form: Callable[[float], str]
    better: Callable[[list[float]], float] | None = None
    """Which of the values is the best."""

    def cells(self) -> list[str]:
        known = [value for value in self.values if value is not None]
        best = self.better(known) if self.better is not None and len(set(known)) > 1 else None
        return [
            "–" if value is None else f"{BEST} {self.form(value)}" if value == best else self.form(value)
            for value in self.values
        ]


def write_sweep_report(name: str, folder: Path, runs: Sequence[tuple[Changes, RunConfig]]) -> Path:
    """Write both files from what the runs have left so far, and return the HTML one.

    Args:
        folder: of the sweep.
        runs: key -> value of each run, with its config.

    Raises:
        DataError: a file of a run is damaged.
        OutputError: the folder cannot be written.
    """
    outcomes = [read_outcome(config, config.folder) for _, config in runs]
    sections = [compared([changes for changes, _ in runs], outcomes), curves(outcomes)]
    facts: dict[str, Any] = {
        "name": name,
        "headline": headline(outcomes),
        "missing": [f"{o.config.name} is not finished ({state(o)})." for o in outcomes if state(o) != "finished"],
        "sections": [section for section in sections if section.tables or section.plots],
    }
    for file in ("report.md", "report.html"):
        write_text(folder / file, render(f"{file}.j2", facts, TEMPLATES))
    return folder / "report.html"


def headline(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    done = sum(state(outcome) == "finished" for outcome in outcomes)
    found = [(str(done), f"of {len(outcomes)} runs finished")]
    losses = [(loss, o.config.name) for o in outcomes if (loss := quality(o, "loss")) is not None]
    if losses and same_corpus(outcomes):
        best = min(losses)
        found.append((f"{best[0]:.4f}", f"least held-out loss: {best[1]}"))
    return found


def state(outcome: Outcome) -> str:
    """``finished``, or how far the first stage is that is not."""
    open_stage = next((stage for stage in outcome.stages if stage.done is None), None)
    return "finished" if open_stage is None else f"{open_stage.name}: {open_stage.state}"


# ---------------------------------------------------------------- the table


def compared(changes: Sequence[Changes], outcomes: Sequence[Outcome]) -> Section:
    """A row a run: what was changed, and what came of it."""
    keys = list(dict.fromkeys(key for change in changes for key in change))
    found = [column for column in columns(outcomes) if any(value is not None for value in column.values)]
    measured = [column.cells() for column in found]
    rows = []
    for number, (change, outcome) in enumerate(zip(changes, outcomes, strict=True)):
        values = [said(change[key]) if key in change else "–" for key in keys]
        rows.append([outcome.config.name, *values, state(outcome), *(cells[number] for cells in measured)])
    heads = ["run", *short(keys), "state", *(column.title for column in found)]
    notes = [
        "Of each run's last student. Loss (nats) and accuracy of masked-language modelling on held-out documents; "
        "teacher's gain: the share of the way from the unigram baseline's loss to the run's first model; time: of "
        f"training, all stages. {BEST}: the best of its column."
    ]
    if not same_corpus(outcomes):
        notes.append(
            "The runs read different corpora: their held-out losses and accuracies are of different tokens, and none "
            "is marked as the best."
        )
    renamed = [f"{head}: {key}" for head, key in zip(short(keys), keys, strict=True) if head != key]
    notes += [f"Changed keys: {'; '.join(renamed)}."] if renamed else []
    return Section("Runs", notes, [Table("", heads, rows, len(keys) + 2)])


def columns(outcomes: Sequence[Outcome]) -> list[Column]:
    low, high = (min, max) if same_corpus(outcomes) else (None, None)
    found = [
        Column("parameters", [parameters(o) for o in outcomes], "{:,.0f}".format, min),
        Column("loss", [quality(o, "loss") for o in outcomes], "{:.4f}".format, low),
        Column("accuracy", [quality(o, "accuracy") for o in outcomes], "{:.2%}".format, high),
        Column("teacher's gain", [gain(o) for o in outcomes], "{:.0%}".format, high),
    ]
    for task, score in dict.fromkeys((t.task, s) for o in outcomes for t in o.tasks for s in t.scores):
        values = [task_score(o, task, score) for o in outcomes]
        found.append(Column(f"{task}: {score.replace('_', ' ')}", values, "{:.4f}".format, max))
    shapes = {(row["batch_size"], row["length"]) for o in outcomes for row in latency_at(o).values()}
    if len(shapes) == 1:
        batch, length = shapes.pop()
        found.append(Column(f"ms at {batch}×{length}", [latency(o) for o in outcomes], "{:.2f}".format, min))
    return [*found, Column("time", [seconds(o) for o in outcomes], duration, min)]


def same_corpus(outcomes: Sequence[Outcome]) -> bool:
    return len({o.manifest["hash"] for o in outcomes if "hash" in o.manifest}) <= 1


def parameters(outcome: Outcome) -> float | None:
    name = trained(outcome.config.stages)[-1].name
    return next(((s.done or {}).get("parameters") for s in outcome.stages if s.name == name), None)


def quality(outcome: Outcome, kind: str) -> float | None:
    """Of the last masked LM that the run makes."""
    own = [model for model in outcome.models if model.is_stage]
    value: float | None = getattr(own[-1], kind) if own else None
    return value


def gain(outcome: Outcome) -> float | None:
    return closed(outcome, quality(outcome, "loss")) if len(outcome.models) > 1 else None


def task_score(outcome: Outcome, task: str, score: str) -> float | None:
    found = [t.scores[score] for t in outcome.tasks if t.task == task and score in t.scores]
    return found[-1] if found else None


def latency(outcome: Outcome) -> float | None:
    rows = latency_at(outcome)
    measured = [rows[stage.name]["milliseconds_median"] for stage in outcome.stages if stage.name in rows]
    return float(measured[-1]) if measured else None


def seconds(outcome: Outcome) -> float | None:
    return sum((stage.done or {}).get("seconds", 0.0) for stage in outcome.stages) or None


def short(keys: Sequence[str]) -> list[str]:
    """The last part of each key, where that tells them apart."""
    last = [key.rpartition(".")[2] for key in keys]
    return [part if last.count(part) == 1 else key for part, key in zip(last, keys, strict=True)]


def said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# ---------------------------------------------------------------- curves


def curves(outcomes: Sequence[Outcome]) -> Section:
    """For each stage the runs' training losses and held-out losses, one upon the other."""
    plots: list[Plot] = []
    stages = [s for o in outcomes for s in o.config.stages if not isinstance(s, AugmentStage)]
    for name in dict.fromkeys(stage.name for stage in stages):
        rows = {o.config.name: s.metrics for o in outcomes for s in o.stages if s.name == name and s.metrics}
        drawn = [overlaid(name, "loss/total", "training loss, total", rows)]
        if any(reads_corpus(stage) for stage in stages if stage.name == name):
            drawn.append(overlaid(name, "eval/student_loss", "held-out masked-LM loss", rows))
        some = [plot for plot in drawn if plot is not None]
        plots += [Plot(plot, wide=True, heading="" if place else name) for place, plot in enumerate(some)]
    return Section("Curves", ["The runs' curves, one upon the other, are drawn in report.html."], plots=plots)

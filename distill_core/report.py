"""RUN/report.html (one file, plots inside) and RUN/report.md: what a run did and what came out of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.page import Code, Plot, Section, render
from distill_core import report_data, report_evaluation, report_facts
from distill_core.config import RunConfig
from distill_core.model_card import TEMPLATES
from distill_core.outcome import Outcome, read_outcome, write_text
from distill_core.plots import bars, quality_curves, training_curves


def write_report(config: RunConfig, folder: Path) -> Path:
    """Write both files from what the run folder holds so far, and return the HTML one.

    Works at any time: what is not there yet is listed as missing.

    Raises:
        DataError: a file of the run is damaged.
        OutputError: the folder cannot be written.
    """
    outcome = read_outcome(config, folder)
    sections = [
        models(outcome),
        tasks(outcome),
        chain(outcome),
        curves(outcome),
        speed(outcome),
        guesses(outcome),
        language(outcome),
        data(outcome),
        provenance(outcome),
    ]
    facts: dict[str, Any] = {
        "name": config.name,
        "headline": report_facts.headline(outcome),
        "missing": report_facts.missing(outcome) + report_evaluation.missing(outcome),
        "sections": [s for s in sections if s.notes or s.tables or s.plots or s.codes],
    }
    for name in ("report.md", "report.html"):
        write_text(folder / name, render(f"{name}.j2", facts, TEMPLATES))
    return folder / "report.html"


# ---------------------------------------------------------------- sections


def models(outcome: Outcome) -> Section:
    """Every model of the chain: size, held-out quality against the unigram baseline, latency."""
    measured = [m for m in outcome.models if m.loss is not None and m.accuracy is not None]
    unigram = outcome.unigram or {}
    speeds = report_facts.latency_at(outcome)
    plots = [
        bars(
            "held-out loss (nats)",
            {m.name: m.loss for m in measured if m.loss is not None},
            "{:.3f}".format,
            unigram.get("loss"),
        ),
        bars(
            "held-out accuracy",
            {m.name: m.accuracy for m in measured if m.accuracy is not None},
            "{:.1%}".format,
            unigram.get("accuracy"),
        ),
        bars(
            "parameters (millions)",
            {m.name: m.parameters / 1e6 for m in outcome.models if m.parameters},
            "{:.2f}".format,
        ),
        bars("latency (ms)", {name: row["milliseconds_median"] for name, row in speeds.items()}, "{:.2f}".format),
    ]
    return Section(
        "Models",
        notes=report_facts.models_notes(outcome),
        tables=[report_facts.models_table(outcome)],
        plots=[Plot(plot) for plot in plots if plot is not None],
    )


def tasks(outcome: Outcome) -> Section:
    if not outcome.tasks:
        return Section("Tasks")
    notes = ["Scores on the tasks' dev rows; step: the one whose model was kept."]
    return Section("Tasks", notes, [report_evaluation.tasks_table(outcome)])


def chain(outcome: Outcome) -> Section:
    return Section("The chain", report_facts.chain_notes(outcome), list(report_facts.chain_tables(outcome)))


def curves(outcome: Outcome) -> Section:
    """Loss curves of every stage, and their course in numbers."""
    plots: list[Plot] = []
    for stage in outcome.stages:
        title = f"stage-{stage.index + 1}-{stage.name}"
        drawn = (training_curves(title, stage.metrics), quality_curves(title, stage.metrics, outcome.unigram))
        some = [Plot(plot, wide=True) for plot in drawn if plot is not None]
        if some:
            some[0] = replace(some[0], heading=f"{stage.index + 1}. {stage.name}")
        plots += some
    tables = [report_facts.course_table(stage) for stage in outcome.stages if stage.metrics]
    ends = report_evaluation.early_stopping_table(outcome)
    notes = report_evaluation.early_stopping_notes(outcome)
    return Section("Training", notes, [*tables, *([ends] if ends.rows else [])], plots)


def speed(outcome: Outcome) -> Section:
    tables = [report_facts.throughput_table(outcome), report_facts.latency_table(outcome)]
    notes = [report_facts.LATENCY_NOTE] if outcome.latency else []
    return Section("Speed", notes=notes, tables=[table for table in tables if table.rows])


def guesses(outcome: Outcome) -> Section:
    if not outcome.guesses:
        return Section("Fill-mask")
    return Section("Fill-mask", tables=[report_facts.guesses_table(outcome)])


def language(outcome: Outcome) -> Section:
    """Pseudo-perplexity, bias and zero-shot choice, as far as they were asked for."""
    listings = report_evaluation.occupation_listings(outcome)
    return Section(
        "Language",
        notes=report_evaluation.notes(outcome),
        tables=report_evaluation.tables(outcome),
        codes=[Code(title, "text", text) for title, text in listings.items()],
    )


def data(outcome: Outcome) -> Section:
    if not outcome.manifest:
        return Section("Data")
    if not outcome.config.data.sources:
        words = f"No corpus: all stages read labelled rows. Vocabulary: {report_data.vocabulary(outcome.manifest)}."
        return Section("Data", notes=[words])
    return Section("Data", tables=report_data.data_tables(outcome.manifest))


def provenance(outcome: Outcome) -> Section:
    """What was run, where and with what."""
    packages = outcome.environment.get("packages") or {}
    codes = [Code("command", "sh", report_data.command(outcome), folded=False)]
    codes += [Code("resolved run file", "yaml", report_data.resolved_yaml(outcome))]
    if packages:
        lines = "\n".join(f"{name}=={version}" for name, version in packages.items())
        codes.append(Code("all installed packages", "text", lines))
    return Section(
        "What was run",
        tables=report_data.environment_tables(outcome.environment),
        codes=codes,
    )

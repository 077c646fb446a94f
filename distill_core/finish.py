"""What happens after the last stage, on rank 0: the measurements of the whole chain, export, report, and a table."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs.errors import DataError
from data_prep.corpus import Corpus
from data_prep.page import Table as PageTable
from data_prep.shards import file_hash
from distill_core.config import RunConfig, trained
from distill_core.data import CorpusSource, held_out_batches
from distill_core.evaluate import fill_mask, latency, side_by_side, unigram
from distill_core.evaluate.bias import read_templates
from distill_core.evaluate.choice import read_choices
from distill_core.export import check_finished, export_run
from distill_core.models import pretrained
from distill_core.outcome import (
    Outcome,
    chain_models,
    data_folder,
    read_json,
    read_outcome,
    write_json,
)
from distill_core.report import write_report
from distill_core.report_evaluation import tables, tasks_table
from distill_core.report_facts import latency_at

TOP_K = 5
WIDTH = 110
"""Of the tables where there is no terminal to ask (logs/rank-0.log)."""


def finish_run(config: RunConfig, folder: Path) -> None:
    """Measure, export, report and print. Idempotent: what was measured on the same models is kept.

    Raises:
        DataError: a stage is not finished, or the exported model is not sound.
        OutputError: the run folder cannot be written.
    """
    for index in range(len(config.stages)):
        check_finished(config, index, folder)
    corpus = Corpus.open(data_folder(config, folder), config.data.verify)
    models = chain_models(config, folder)
    evaluation = folder / "evaluation"
    training = trained(config.stages)[-1].training

    facts: dict[str, Any] = {"corpus": corpus.hash, "limit": training.evaluate_sequences, "seed": config.seed}
    if corpus.has_text:
        kept(
            evaluation / "unigram.json",
            facts,
            lambda: unigram_baseline(corpus, training.evaluate_sequences, config.seed),
        )
    hashes = fingerprints(models)
    longest = corpus.max_length if corpus.has_text else max(map(config.longest, config.stages))
    facts = {"models": hashes, "max_length": longest}
    facts |= config.evaluation.model_dump(mode="json", include=_LATENCY)
    kept(evaluation / "latency.json", facts, lambda: {"rows": latency_rows(config, models, longest)})
    asked = first_and_last(models)
    sentences = config.evaluation.sentences
    facts = {"models": {name: hashes[name] for name in asked}, "sentences": sentences, "top_k": TOP_K}
    kept(
        evaluation / "fill_mask.json",
        facts,
        lambda: {"rows": fill_mask.compare(asked, sentences, TOP_K)},
    )
    measure_language(config, folder, corpus, models, hashes)
    exported = export_run(config, folder)
    report = write_report(config, folder)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale without Chinese must not fail a finished run
        sys.stdout.reconfigure(errors="replace")
    console = Console()
    show(read_outcome(config, folder), exported, report, console if console.is_terminal else Console(width=WIDTH))


_LATENCY = {"latency_lengths", "latency_batch_sizes", "latency_repeats"}


def measure_language(
    config: RunConfig, folder: Path, corpus: Corpus, models: dict[str, str], hashes: dict[str, str]
) -> None:
    """Pseudo-perplexity, bias and zero-shot choice, as far as the run file asks for them: evaluation/*.json."""
    wanted, evaluation = config.evaluation, folder / "evaluation"
    if wanted.pseudo_perplexity is not None:
        limit = wanted.pseudo_perplexity.sequences
        facts: dict[str, Any] = {"models": hashes, "corpus": corpus.hash, "sequences": limit, "seed": config.seed}
        kept(
            evaluation / "pseudo_perplexity.json",
            facts,
            lambda: {"rows": side_by_side.pseudo_perplexities(models, corpus, limit, config.seed)},
        )
    if wanted.bias:
        sets = {name: read_templates(name) for name in wanted.bias}
        facts = {"models": hashes, "sets": {name: templates.model_dump() for name, templates in sets.items()}}
        kept(evaluation / "bias.json", facts, lambda: {"rows": side_by_side.biases(models, sets)})
    if wanted.choices is not None:
        items = read_choices(wanted.choices)
        facts = {"models": hashes, "file": wanted.choices, "hash": file_hash(Path(wanted.choices))}
        kept(evaluation / "choices.json", facts, lambda: {"rows": side_by_side.choices(models, items)})


def kept(path: Path, settings: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The content of ``path`` if it was measured under the same ``settings``, else ``compute()``, written there."""
    try:
        before = read_json(path)
    except DataError:  # damaged: measured again
        before = None
    if before is not None and before.get("settings") == settings:
        return before
    content = {**compute(), "settings": settings}
    write_json(path, content)
    return content


def fingerprints(models: dict[str, str]) -> dict[str, str]:
    """name -> hash of a local model's weights, or its hub name."""
    found = {}
    for name, source in models.items():
        weights = [path for w in pretrained.WEIGHTS if (path := Path(source) / w).is_file()]
        found[name] = file_hash(weights[0]) if weights else source
    return found


def first_and_last(models: dict[str, str]) -> dict[str, str]:
    """The first and the last masked LM (one entry in a chain of one model)."""
    names = list(models)
    if not names:  # a run of task stages alone, from a task model
        return {}
    return {name: models[name] for name in dict.fromkeys((names[0], names[-1]))}


def latency_rows(config: RunConfig, models: dict[str, str], max_length: int) -> list[dict[str, Any]]:
    """All models of the chain against the first."""
    encoders = {name: pretrained.load(source, f"latency of {name}").encoder for name, source in models.items()}
    return latency.compare(encoders, config.evaluation, max_length) if encoders else []


def unigram_baseline(corpus: Corpus, limit: int, seed: int) -> dict[str, Any]:
    """How well one does on the held-out masks without reading: the training split's token frequencies.

    p(token) = (count + 1) / (sum of counts + V), where special tokens are not counted; the guess is always the most
    frequent token. Over the same masked tokens as the stages' evaluation of ``limit`` sequences under ``seed``.

    Returns:
        {"loss": mean of -log p(label) in nats, "accuracy": share of labels that are the most frequent token,
        "masked_tokens"}.
    """
    split = corpus.split("held_out")
    batches = held_out_batches(CorpusSource(split), limit, seed, max(8192, corpus.max_length), 0, 1, "runs")
    labels = np.concatenate([batch.labels.numpy() for batch in batches if batch.labels is not None])
    loss, right = unigram.sums(unigram.log_probabilities(corpus.unigram, corpus.special_ids), labels)
    n = max(len(labels), 1)
    return {"loss": loss / n, "accuracy": right / n, "masked_tokens": len(labels)}


# ---------------------------------------------------------------- the last words


def show(outcome: Outcome, exported: Path, report: Path, console: Console) -> None:
    """The table of models, the guesses, and where everything is."""
    if outcome.models:
        console.print()
        console.print(models_table(outcome))
    if outcome.tasks:
        console.print()
        console.print(as_rich(replace(tasks_table(outcome), title="tasks")))
    if outcome.guesses:
        console.print()
        console.print(fill_mask.table(outcome.guesses))
    for facts in tables(outcome):
        console.print()
        console.print(as_rich(facts))
    console.print()
    lines = {
        "student": str(exported),
        "report": str(report),
        "curves": f"distill monitor {outcome.folder}    (TensorBoard)",
    }
    for name, where in lines.items():
        # soft_wrap: a path must stay in one piece to be copied
        console.print(Text(f"{name:<9}{where}"), soft_wrap=True)


def models_table(outcome: Outcome) -> Table:
    """A line a model: parameters, held-out quality against the unigram baseline, latency against the teacher."""
    speed = latency_at(outcome)
    shape = next(iter(speed.values()), None)
    where = f"ms at {shape['batch_size']}x{shape['length']}" if shape else "ms"
    table = Table(title="models", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("model", overflow="fold")
    for column in ("parameters", "held-out loss", "accuracy", "agreement", where, "speed-up"):
        table.add_column(column, justify="right")
    if outcome.unigram is not None:
        loss, accuracy = outcome.unigram["loss"], outcome.unigram["accuracy"]
        table.add_row("unigram baseline", "", f"{loss:.4f}", f"{accuracy:.1%}", "", "", "")
    for model in outcome.models:
        row = speed.get(model.name)
        table.add_row(
            Text(model.name),
            _or_blank(model.parameters, "{:,}"),
            _or_blank(model.loss, "{:.4f}"),
            _or_blank(model.accuracy, "{:.1%}"),
            _or_blank(model.agreement, "{:.1%}"),
            _or_blank(row and row["milliseconds_median"], "{:.2f}"),
            _or_blank(row and row["speedup"], "{:.2f}x"),
        )
    return table


def as_rich(facts: PageTable) -> Table:
    """A table of the report for the terminal."""
    table = Table(title=facts.title, title_justify="left", show_edge=False, pad_edge=False)
    for number, column in enumerate(facts.columns):
        table.add_column(column, justify="left" if number < facts.text_columns else "right", overflow="fold")
    for row in facts.rows:
        table.add_row(*map(Text, row))
    return table


def _or_blank(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)

"""Reference curves as a Markdown page."""

from __future__ import annotations

import datetime
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

from benchmarks.recipes.curves import Curves, Figure, Stage
from benchmarks.recipes.runs import Material, kind_of, published_shapes
from benchmarks.recipes.small import Scale
from benchmarks.step.record import hardware, table, versions

HARDLY = 0.05
"""A stage that loses less than this share of its first loss is named."""
WHAT = """Every recipe of `configs/recipes/`, in its mode `fixed`, carried out from text to an exported student by
`distill run` on a small scale, to be repeated and compared with. What each recipe is: [recipes.md](recipes.md). A small
run shows that and how fast each loss falls; it does not show how good a recipe is at its full size."""
REST = """Everything else is the recipe's: stages, losses with their weights, temperatures and kinds of layer map,
families, initialisation, tokenizer, kinds of sequences and masks, the optimiser with its warm-up and decay."""
OTHER_LANGUAGES = """Recipes of other languages run on the same text and rows, with the kind of tokenizer that they say
and a vocabulary trained on the text: what is compared is the method, not the language."""
READING = """A training loss is the weighted sum of all losses of the stage, and the mean of the {steps} steps that end
at the step named. A figure is the mean over the seeds, with the least and the greatest in brackets where they differ.
A cross-entropy against a teacher (`kd_ce`, `task_kd`, `attention_ce`) cannot fall below the teacher's own entropy,
which for a teacher as weak as these is most of it.
*At the end*: loss (nats) and accuracy of masked LM on held-out text, or a task's metric on its dev rows; – where the
stage trains no head that could be asked. *Teacher*: the same figure of the stage's teacher. Seconds are of training and
its evaluations on one core, which other work may have shared."""


def write_page(
    path: Path, command: str, material: Material, teachers: dict[str, Path], found: Sequence[Curves]
) -> None:
    """Everything that was found, with what it was found on."""
    seeds = ", ".join(map(str, sorted({seed for curves in found for seed in curves.seeds})))
    today = datetime.date.today().isoformat()
    facts = f"""**Date:** {today}. **Seeds:** {seeds} (of weights, dropout and the order of the data; the corpus and
    what is held out are the same). **Hardware:** {hardware()}. **Versions:** {versions()}."""
    parts = [
        "# Reference curves of the recipes",
        _fill(WHAT),
        f"**Command:** `{command}`",
        _fill(facts),
        "## What is small",
        _scale_table(material.scale),
        _fill(REST),
        *map(_fill, _material(material, teachers)),
        "## Reading the tables",
        _fill(READING.format(steps=material.scale.log_every)),
        _fill(hardly(found)),
        "## Curves",
        *(section(curves) for curves in found),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _fill(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def _scale_table(scale: Scale) -> str:
    layers = {} if scale.layers is None else scale.layers
    rows = [
        ["layers", ", ".join(f"{a} -> {b}" for a, b in layers.items()) or "as published"],
        ["width", ", ".join(f"{a} -> {b}" for a, b in scale.widths.items())],
        ["attention heads", str(scale.heads or "as published")],
        ["feed-forward", "in proportion to the width"],
        [
            "MobileBERT's bottleneck, embeddings and feed-forward networks",
            f"{scale.bottleneck}, {scale.bottleneck}, {scale.feed_forwards}",
        ],
        ["MiniLMv2's relation heads", str(scale.relation_heads)],
        ["layers that a student begins with, pairs of layers", f"those of one layer in {scale.factor}; rules stay"],
        ["sequences of the corpus", f"of {scale.length} tokens, {scale.batch} in a step"],
        ["rows of a task", f"of {scale.task_length} tokens, {scale.task_batch} in a step"],
        ["steps", f"{scale.steps} of each stage, instead of the recipe's steps or epochs"],
        ["layer by layer (MobileBERT)", f"{scale.steps_per_layer} steps of each layer before them"],
        ["learning rate", f"{scale.learning_rate:g}; on a task {scale.task_learning_rate:g}"],
        ["precision", "fp32"],
        ["stored mask views", "1 (no text is read twice)"],
        ["augmented copies of each text of a row", str(scale.copies)],
        ["early stopping, templates for bias, fill-mask sentences", "left out"],
        ["pseudo-perplexity", f"of {scale.perplexity_sequences} sequences"],
        ["teacher", "every published one: the small one of its tokenizer's kind"],
    ]
    return "\n".join(["| | here |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _material(material: Material, teachers: dict[str, Path]) -> list[str]:
    names = ", ".join(Path(text).name for text in material.texts)
    size = (
        "" if material.megabytes is None else f"; {material.megabytes:g} MB, at most as much of each as of the others"
    )
    rows = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in material.rows.items()}
    return [
        f"**Text:** {names}{size}; {material.scale.held_out:.0%} of the documents held out.",
        f"**Task:** the first {rows['train']:,} training and {rows['dev']:,} dev rows.",
        OTHER_LANGUAGES,
        *(_teacher(kind, folder) for kind, folder in teachers.items()),
    ]


def _teacher(kind: str, folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = f"{config['num_hidden_layers']} x {config['hidden_size']}, {config['vocab_size']:,} tokens"
    done = folder.parent / "DONE.json"
    if not done.is_file():
        return f"**Teacher, {kind}:** {shape}, given."
    facts = json.loads(done.read_text(encoding="utf-8"))
    quality = facts["evaluation"]["student"]
    return (
        f"**Teacher, {kind}:** {shape}, {facts['parameters']:,} parameters, masked LM for {facts['steps']:,} steps of "
        f"{facts['sequences'] // facts['steps']} sequences; at its end held-out loss {quality['loss']:.3f}, accuracy "
        f"{quality['accuracy']:.1%}."
    )


def hardly(found: Sequence[Curves]) -> str:
    """Which stages learn next to nothing."""
    slow = [
        f"`{curves.recipe}` {stage.name} ({stage.fall:.1%})"
        for curves in found
        for stage in curves.stages
        if stage.fall < HARDLY
    ]
    if slow:
        text = (
            f"Stages whose loss falls by less than {HARDLY:.0%} from the first column to the last: {', '.join(slow)}."
        )
    else:
        text = f"Every stage loses at least {HARDLY:.0%} of its first loss."
    return f"{text} {_unigrams(found)}"


def _unigrams(found: Sequence[Curves]) -> str:
    """What has not become better at masked LM than token frequencies are."""
    worse = [
        f"`{curves.recipe}` {stage.name}"
        for curves in found
        for stage in curves.stages
        if stage.student is not None
        and curves.unigram is not None
        and stage.metric == "held-out loss"
        and stage.student.mean > curves.unigram
    ]
    if not worse:
        return "Every student that trains its masked-LM head beats the unigram baseline."
    return f"Still above the unigram baseline in their held-out loss, after so few steps: {', '.join(worse)}."


def section(curves: Curves) -> str:
    """One recipe."""
    seeds = f"{len(curves.seeds)} seed{'s' if len(curves.seeds) > 1 else ''}"
    head = f"{published_shapes(curves.recipe)} as published; {kind_of(curves.recipe)}; {seeds}."
    if curves.unigram is not None:
        head += f" Unigram baseline on held-out text {curves.unigram:.3f} ({curves.masked_tokens:,} masked tokens)."
    for model, figure in curves.perplexity.items():
        head += f" Pseudo-perplexity a token of {model}: {figure.show('{:.0f}')}."
    groups: dict[tuple[int, ...], list[Stage]] = {}
    for stage in curves.stages:
        groups.setdefault(stage.at, []).append(stage)
    return "\n\n".join([f"### {curves.recipe}", _fill(head), *(_table(at, stages) for at, stages in groups.items())])


def _table(at: Sequence[int], stages: Sequence[Stage]) -> str:
    head = ["stage", "parameters", "steps", *(f"loss at {step}" for step in at), "at the end", "teacher", "seconds"]
    rows = [
        [
            stage.name,
            f"{stage.parameters:,}",
            str(stage.steps),
            *(loss.show(form_of(stage.losses[-1])) for loss in stage.losses),
            _end(stage),
            _figure(stage.teacher, stage.metric),
            stage.seconds.show("{:.0f}"),
        ]
        for stage in stages
    ]
    return table(head, rows)


def form_of(last: Figure) -> str:
    """Three figures that count, of what is left at the end."""
    return "{:.1f}" if last.mean >= 20 else "{:.2f}" if last.mean >= 1 else "{:.3f}"


def _end(stage: Stage) -> str:
    text = _figure(stage.student, stage.metric)
    if stage.student is not None and stage.accuracy is not None:
        text += f", {stage.accuracy.show('{:.1%}')}"
    return text


def _figure(figure: Figure | None, metric: str) -> str:
    if figure is None:
        return "–"
    return figure.show("{:.3f}") if metric == "held-out loss" else f"{metric} {figure.show('{:.1%}')}"

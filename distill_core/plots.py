"""The report's plots, as inline SVG.

Axes and text are drawn in ``currentColor``, so that a plot follows the page's light or dark colours. Text stays text
(no glyph outlines) and is ASCII: the names of stages and losses. Nothing depends on the time or on a display.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from distill_core.charts import PALETTE, style, svg

Rows = list[dict[str, Any]]
STUDENT, TEACHER, UNIGRAM = PALETTE[0], PALETTE[1], PALETTE[7]


def training_curves(name: str, rows: Rows) -> str | None:
    """Total loss and each term over the steps of a stage; None when nothing was logged."""
    terms = sorted({key for row in rows for key in row if key.startswith("loss/")} - {"loss/total"})
    if len(_series(rows, "loss/total")[0]) < 2:
        return None
    with style():
        both = len(terms) > 1
        figure = Figure(figsize=(9.2, 3.1), layout="constrained")
        axes = figure.subplots(1, 2 if both else 1, squeeze=False)[0]
        _line(axes[0], rows, "loss/total", STUDENT)
        axes[0].set(title="training loss, total", xlabel="step")
        if both:
            for place, term in enumerate(terms):
                colour = PALETTE[place % len(PALETTE)]
                _line(axes[1], rows, term, colour, term.removeprefix("loss/"), "--" if place >= len(PALETTE) else "-")
            values = [v for term in terms for v in _series(rows, term)[1]]
            if values and min(values) > 0 and max(values) > 8 * min(values):
                axes[1].set_yscale("log")
                axes[1].yaxis.set_major_formatter("{x:g}")
                # Between decades there is room for labels only in a narrow range, which may hold no decade.
                axes[1].yaxis.set_minor_formatter("{x:g}" if max(values) < 20 * min(values) else NullFormatter())
            axes[1].set(title="terms, unweighted", xlabel="step")
            axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return svg(figure, f"train-{name}")


def quality_curves(name: str, rows: Rows, unigram: dict[str, Any] | None) -> str | None:
    """Held-out loss and accuracy of student, teacher and unigram baseline over the steps of a stage."""
    if not _series(rows, "eval/student_loss")[0]:
        return None
    with style():
        figure = Figure(figsize=(9.2, 3.1), layout="constrained")
        for axes, kind in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            _line(axes, rows, f"eval/student_{kind}", STUDENT, "this model", marker="o")
            teacher = _series(rows, f"eval/teacher_{kind}")[1]
            if teacher:
                axes.axhline(teacher[-1], color=TEACHER, linestyle="--", label="its teacher")
            if unigram is not None:
                axes.axhline(unigram[kind], color=UNIGRAM, linestyle=":", label="unigram baseline")
            axes.set(title=f"held-out masked-LM {kind}", xlabel="step")
            axes.legend(loc="best")
        return svg(figure, f"quality-{name}")


def overlaid(name: str, key: str, title: str, runs: dict[str, Rows]) -> str | None:
    """One quantity over the steps of several runs; None when fewer than two points of any are there."""
    drawn = {run: rows for run, rows in runs.items() if len(_series(rows, key)[0]) > 1}
    if not drawn:
        return None
    with style():
        figure = Figure(figsize=(9.2, max(3.4, 0.9 + 0.2 * len(drawn))), layout="constrained")
        axes = figure.subplots()
        for place, (run, rows) in enumerate(drawn.items()):
            dashes = ("-", "--", ":", "-.")[place // len(PALETTE) % 4]
            _line(axes, rows, key, PALETTE[place % len(PALETTE)], run, dashes)
        axes.set(title=title, xlabel="step")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return svg(figure, f"{key}-{name}")


def bars(
    title: str, values: dict[str, float], form: Callable[[float], str], baseline: float | None = None
) -> str | None:
    """One horizontal bar a model, the first on top, with its value; ``baseline``: the unigram's, as a line."""
    if not values:
        return None
    with style():
        figure = Figure(figsize=(4.5, 0.8 + 0.42 * len(values)), layout="constrained")
        axes = figure.subplots()
        colours = [TEACHER, *[STUDENT] * (len(values) - 1)]
        drawn = axes.barh(list(values), list(values.values()), color=colours, height=0.6)
        axes.bar_label(drawn, labels=[form(v) for v in values.values()], padding=4)
        axes.invert_yaxis()
        if baseline is not None:
            axes.axvline(baseline, color=UNIGRAM, linestyle=":", label="unigram baseline")
            axes.legend(loc="upper left", bbox_to_anchor=(0.0, 0.0))
        axes.set_title(title)
        axes.set_xlim(0, 1.22 * max([*values.values(), baseline or 0.0, 1e-9]))
        axes.grid(visible=False)
        axes.tick_params(axis="x", bottom=False, labelbottom=False)
        axes.spines["bottom"].set_visible(False)
        return svg(figure, f"bars-{title}")


def _series(rows: Rows, key: str) -> tuple[list[int], list[float]]:
    kept = [row for row in rows if isinstance(row.get(key), int | float)]
    return [row["step"] for row in kept], [float(row[key]) for row in kept]


def _line(
    axes: Axes, rows: Rows, key: str, colour: str, label: str | None = None, style: str = "-", marker: str = ""
) -> None:
    steps, values = _series(rows, key)
    axes.plot(steps, values, color=colour, label=label, linestyle=style, marker=marker, markersize=4)

"""Plots for reports, as inline SVG.

Axes and text are drawn in ``currentColor``, so that a plot follows the page's light or dark colours. Text stays text
(no glyph outlines) and is ASCII. Nothing depends on the time or on a display.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

_INK = "#010203"  # a colour that nothing else has; it becomes currentColor
PALETTE = ("#3b82f6", "#e5602f", "#12a37a", "#a855f7", "#d4a017", "#e0457b", "#0ea5b7", "#8b949e")
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "zhengliu",
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.12,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def style() -> Iterator[None]:
    with matplotlib.rc_context(_STYLE):
        yield


def svg(figure: Figure, name: str) -> str:
    """``figure`` as an <svg> element whose ids are its own among several on one page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*<style.*?</style>", "", text, flags=re.DOTALL)  # its `*` would reach the whole page
    # The page's font instead of matplotlib's; sizes stay.
    text = re.sub(r"font: ([\w ]*?[\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    prefix = re.sub(r"[^A-Za-z0-9]+", "-", name)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r"^<svg ", '<svg role="img" ', text)
    return re.sub(r'(<svg[^>]*?) width="[\d.]+pt" height="[\d.]+pt"', r"\1", text)

"""A histogram as inline SVG, written down without a library for plots.

Importing one and drawing three histograms with it took as long as everything else that a small corpus needs, and is
time that workers wait: nothing else of a preparation is done at its end by one process alone. Axes and text have
``currentColor``, so that the plot follows the page's light or dark colours.
"""

from __future__ import annotations

from html import escape
from math import ceil, floor, log2, log10

_WIDTH, _HEIGHT = 324, 202
_TOP, _RIGHT, _BOTTOM = 26, 12, 162
"""Of the axes, in the same units; their left depends on the labels."""
_DIGIT = 6
"""Width of a digit of a label."""
_MOST_LABELS = 9
_FILL = "#3b82f6"


def histogram(title: str, edges: list[int], counts: list[int], xlabel: str) -> str | None:
    """Bars from one edge to the next (``len(edges) == len(counts) + 1``), over octaves; empty ends are cut.

    Returns:
        An <svg> element; None without counts.
    """
    filled = [place for place, count in enumerate(counts) if count]
    if not filled:
        return None
    first, last = filled[0], filled[-1] + 1
    low, high, most = octave(edges[first]), octave(edges[last]), 1.05 * max(counts)
    heights = ticks(most)
    left = 16 + _DIGIT * len(f"{heights[-1]:,}")

    def across(octaves: float) -> float:
        return left + (octaves - low) / (high - low) * (_WIDTH - _RIGHT - left)

    def up(count: float) -> float:
        return _BOTTOM - count / most * (_BOTTOM - _TOP)

    outline = f"M{across(low):.1f} {_BOTTOM}" + "".join(
        f"V{up(count):.1f}H{across(octave(edge)):.1f}"
        for count, edge in zip(counts[first:last], edges[first + 1 : last + 1], strict=True)
    )
    every = 1 + floor(high - low) // _MOST_LABELS
    powers = [power for power in range(ceil(low), floor(high) + 1) if power % every == 0]
    lines = [
        *(f"M{left} {up(height):.1f}H{_WIDTH - _RIGHT}" for height in heights),
        *(f"M{across(power):.1f} {_TOP}V{_BOTTOM}" for power in powers),
    ]
    labels = [
        *(_text(left - 5, up(height) + 3.5, f"{height:,}", "end") for height in heights),
        *(_text(across(power), _BOTTOM + 14, f"{2**power if power >= 0 else 0}", "middle") for power in powers),
        _text((left + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, xlabel, "middle"),
    ]
    return (
        f'<svg role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="system-ui, sans-serif" font-size="10" '
        f'fill="currentColor" stroke="none"><title>{escape(title)}</title>'
        f'<path d="{"".join(lines)}" stroke="currentColor" stroke-opacity=".12" fill="none"/>'
        f'<path d="{outline}V{_BOTTOM}Z" fill="{_FILL}"/>'
        f'<path d="M{left} {_TOP}V{_BOTTOM}H{_WIDTH - _RIGHT}" stroke="currentColor" stroke-width=".8" fill="none"/>'
        f'<text x="{left}" y="{_TOP - 10}" font-weight="bold">{escape(title)}</text>{"".join(labels)}</svg>'
    )


def octave(edge: int) -> float:
    """Where an edge stands: its logarithm to the base 2; 0 stands one before 1."""
    return log2(edge) if edge else -1.0


def ticks(most: float) -> list[int]:
    """Round counts from 0 up to ``most``, in steps of 1, 2 or 5 times a power of ten; six at most."""
    power = 10 ** max(0, floor(log10(most / 5)))
    step = next(size * power for size in (1, 2, 5, 10) if size * power * 5 >= most)
    return list(range(0, floor(most) + 1, step))


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'

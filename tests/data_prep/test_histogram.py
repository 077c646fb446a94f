"""Histograms as SVG: what is drawn is what was counted."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.histogram import histogram, octave, ticks
from data_prep.statistics import EDGES

NAME = "{http://www.w3.org/2000/svg}"


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def outline(svg: str) -> tuple[list[float], list[float]]:
    """Heights of the bars, and where they begin and the last one ends."""
    path = drawn(svg).findall(f"{NAME}path")[1].attrib["d"]
    start, base, *steps = re.findall(r"-?[\d.]+", path)
    heights, ends = steps[:-1:2], steps[1::2]
    return [float(base) - float(h) for h in heights], [float(start), *map(float, ends)]


@given(st.lists(st.integers(0, 10**9), max_size=len(EDGES)))
def test_bars_are_the_counts_over_octaves(counts: list[int]) -> None:
    svg = histogram("units", [*EDGES, EDGES[-1] * 2], counts, "tokens of a sentence")
    filled = [place for place, count in enumerate(counts) if count]
    if not filled:
        assert svg is None
        return
    assert svg is not None
    shown = counts[filled[0] : filled[-1] + 1]
    heights, ends = outline(svg)
    assert len(heights) == len(shown) and len(ends) == len(shown) + 1
    assert heights == pytest.approx([count * max(heights) / max(shown) for count in shown], abs=0.11)
    edges = [octave(edge) for edge in [*EDGES, EDGES[-1] * 2][filled[0] : filled[-1] + 2]]
    scale = (ends[-1] - ends[0]) / (edges[-1] - edges[0])
    assert ends == pytest.approx([ends[0] + (edge - edges[0]) * scale for edge in edges], abs=0.11)
    assert all(a < b for a, b in pairwise(ends))


def test_everything_is_inside_and_in_the_colour_of_the_page() -> None:
    svg = histogram("a < b", [1, 2, 4, 8], [3, 0, 1_250_000], "x & y")
    assert svg is not None
    tree = drawn(svg)
    _, _, width, height = map(float, tree.attrib["viewBox"].split())
    labels = tree.findall(f"{NAME}text")
    assert all(0 < float(one.attrib["x"]) < width and 0 < float(one.attrib["y"]) < height for one in labels)
    texts = [one.text for one in labels]
    assert texts[0] == "a < b" and texts[-1] == "x & y" and {"1", "8", "500,000"} <= set(texts)
    assert tree.attrib["fill"] == "currentColor"


@given(st.floats(0.5, 1e15))
def test_ticks_are_few_and_round(most: float) -> None:
    found = ticks(most)
    assert found[0] == 0 and found[-1] <= most and len(found) <= 6
    steps = {b - a for a, b in pairwise(found)}
    assert len(steps) <= 1 and all(str(step).rstrip("0") in ("1", "2", "5") for step in steps)

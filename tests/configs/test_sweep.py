"""The ``sweep`` block: which runs it stands for, and what is refused before any of them starts."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from configs.errors import ConfigError
from configs.loader import Config, read_tree
from configs.sweep import Point, label, points, take_sweep, validate_all

FILE = """
name: all
seed: 1
stages:
  - {{name: teacher, rate: 0.1}}
  - {{name: student, rate: 0.1, steps: 5}}
sweep: {sweep}
"""


class Stage(Config):
    name: str
    rate: float = Field(gt=0)
    steps: int = 1


class Run(Config):
    name: str
    seed: int
    stages: list[Stage]


def expand(folder: Path, sweep: str) -> list[Point]:
    path = folder / "run.yaml"
    path.write_text(FILE.format(sweep=sweep), encoding="utf-8")
    tree, origins = read_tree(path)
    found = take_sweep(tree, origins, str(path))
    assert found is not None
    assert "sweep" not in tree
    return points(tree, origins, found, str(path))


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    found = expand(tmp_path, "{grid: {stages.student.rate: [0.1, 0.2], seed: [1, 2, 3]}}")
    assert [point.name for point in found][:2] == ["0001-rate-0.1-seed-1", "0002-rate-0.1-seed-2"]
    runs = validate_all(found, Run, "run.yaml")
    wanted = list(itertools.product([0.1, 0.2], [1, 2, 3]))
    assert [(run.stages[1].rate, run.seed) for run in runs] == wanted
    assert all(run.stages[0].rate == 0.1 and run.stages[1].steps == 5 for run in runs)


def test_a_list_is_just_those(tmp_path: Path) -> None:
    found = expand(tmp_path, "{list: [{seed: 2}, {seed: 3, stages.0.steps: 9}]}")
    runs = validate_all(found, Run, "run.yaml")
    assert [(run.seed, run.stages[0].steps) for run in runs] == [(2, 1), (3, 9)]
    assert [point.changes for point in found] == [{"seed": 2}, {"seed": 3, "stages.0.steps": 9}]


def test_runs_share_no_value(tmp_path: Path) -> None:
    first, second = expand(tmp_path, "{list: [{stages.0.steps: 2}, {seed: 5}]}")
    first.tree["stages"][1]["steps"] = 77
    assert second.tree["stages"][1]["steps"] == 5


def test_a_file_without_a_sweep(tmp_path: Path) -> None:
    tree: dict[str, Any] = {"name": "x", "sweep": None}
    assert take_sweep(tree, {}, "x") is None
    assert tree == {"name": "x"}


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ("{}", "either grid"),
        ("{grid: {seed: [1]}, list: [{seed: 2}]}", "either grid"),
        ("{grid: {seed: []}}", "grid.seed"),
        ("{grid: {seed: 3}}", "grid.seed"),
        ("{gird: {seed: [3]}}", "Did you mean `grid`"),
        ("{list: [{}]}", "sweep.list.0"),
        ("{grid: {name: [a, b]}}", "'name' cannot be swept"),
        ("{grid: {sweep.grid: [a, b]}}", "cannot be swept"),
        ("{grid: {seed: [1, 1]}}", "wo runs have the same values"),
        ("{grid: {a: &x [1,2,3,4,5,6,7,8,9,0], b: *x, c: *x, d: *x}}", "10,000 runs"),
        ("{grid: {stages.tutor.rate: [1], seed.x: [1]}}", "no item 'tutor' (it has teacher, student)"),
    ],
)
def test_what_is_refused(tmp_path: Path, sweep: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        expand(tmp_path, sweep)
    assert "run.yaml" in str(caught.value)


def test_all_problems_of_all_runs_come_at_once(tmp_path: Path) -> None:
    found = expand(tmp_path, "{list: [{seed: x}, {stages.student.rate: -1}, {stages.student.rate: -1, seed: 4}]}")
    with pytest.raises(ConfigError) as caught:
        validate_all(found, Run, "run.yaml")
    head, *lines = str(caught.value).splitlines()
    assert "2 problems" in head
    assert "0001-seed-x: `seed` = 'x' (sweep)" in lines[0]
    assert "0002-rate-1 and 1 more: `stages.1.rate` = -1" in lines[1]


def test_what_all_runs_share_stands_once(tmp_path: Path) -> None:
    found = expand(tmp_path, "{grid: {seed: [1, 2]}}")
    for point in found:
        point.tree["colour"] = 1
    with pytest.raises(ConfigError, match=r"1 problem in .*\n  - all 2 runs: `colour`"):
        validate_all(found, Run, "run.yaml")


VALUES = st.recursive(
    st.text() | st.integers() | st.floats() | st.booleans() | st.none(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


@given(st.dictionaries(st.text(min_size=1), VALUES, max_size=3))
def test_labels_are_parts_of_folder_names(changes: dict[str, Any]) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._-]*", label(changes))

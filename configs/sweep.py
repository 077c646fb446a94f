"""The ``sweep`` block of a run file: several runs that differ in some keys.

    sweep:
      grid: {stages.student.training.optimizer.learning_rate: [1.0e-3, 3.0e-3], seed: [1, 2]}   # every combination
    sweep:
      list: [{seed: 1}, {seed: 2, stages.student.training.steps: 100}]                           # or just these
      at_once: 2                                                                                 # at the same time

Keys are written as in overrides: list items by their index or their ``name``. Generic: knows no room of the house.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import Field, model_validator

from configs import loader
from configs.errors import ConfigError
from configs.loader import Config
from configs.problems import Origins

PLACING = ("name", "output", "mode", "modes", "extends", "sweep")
"""Keys that say what is read, and where runs lie: the same for all runs of a sweep."""
MAX_RUNS = 9_999
VALUE_LENGTH, NAME_LENGTH = 24, 80

C = TypeVar("C", bound=Config)


class SweepConfig(Config):
    """Which runs."""

    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Key -> values; the runs are all combinations, the last key changing fastest."""
    points: list[Annotated[dict[str, Any], Field(min_length=1)]] = Field(default=[], alias="list")
    """The changes of each run."""
    at_once: int = Field(default=1, ge=1)
    """How many runs may be at work at the same time; on this machine they divide its devices."""

    @model_validator(mode="after")
    def _one_of_them(self) -> SweepConfig:
        if bool(self.grid) == bool(self.points):
            raise ValueError("give either grid: {a.b: [values]} or list: [{a.b: value}], with at least one key")
        for key in self.keys:
            first = key.partition(".")[0]
            if first in PLACING:
                raise ValueError(f"{key!r} cannot be swept: it is the same for all runs of a sweep")
        count = len(self.points) or math.prod(map(len, self.grid.values()))
        if count > MAX_RUNS:
            raise ValueError(f"these are {count:,} runs; a sweep has at most {MAX_RUNS:,}")
        texts = [json.dumps(change, sort_keys=True, default=str) for change in self.changes]
        twice = next((text for text in texts if texts.count(text) > 1), None) if len(set(texts)) < count else None
        if twice is not None:
            raise ValueError(f"two runs have the same values: {twice}")
        return self

    @property
    def keys(self) -> list[str]:
        return list(self.grid or dict.fromkeys(key for point in self.points for key in point))

    @property
    def changes(self) -> list[dict[str, Any]]:
        """Of each run: key -> value."""
        if self.points:
            return self.points
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


@dataclass(frozen=True)
class Point:
    """One run of a sweep, before it is validated."""

    name: str
    """Number and values: ``0002-learning_rate-0.003-seed-1``."""
    changes: dict[str, Any]
    tree: dict[str, Any]
    origins: Origins


def take_sweep(tree: dict[str, Any], origins: Origins, source: str) -> SweepConfig | None:
    """Take ``sweep`` out of ``tree``; None when it has none.

    Raises:
        ConfigError: with all that is wrong in the block.
    """
    if tree.get("sweep") is None:
        tree.pop("sweep", None)
        return None
    block = {"sweep": tree.pop("sweep")}
    return loader.validate(block, _Block, origins, source).sweep


class _Block(Config):
    sweep: SweepConfig


def points(tree: dict[str, Any], origins: Origins, sweep: SweepConfig, source: str) -> list[Point]:
    """The runs, each with a tree of its own.

    Raises:
        ConfigError: keys that lead nowhere.
    """
    found, problems = [], []
    for number, changes in enumerate(sweep.changes, 1):
        name = f"{number:04d}-{label(changes)}"[:NAME_LENGTH].rstrip("-.")
        own, places = loader.unshared(tree), dict(origins)
        for key, value in changes.items():
            try:
                loader.write_at(own, places, key, loader.unshared(value), "sweep")
            except ConfigError as error:
                problems += error.problems
        found.append(Point(name, changes, own, places))
    if problems:
        raise loader.refused(source, list(dict.fromkeys(problems)))
    return found


def label(changes: Mapping[str, Any]) -> str:
    """Last parts of keys and values, as part of a folder name: ``learning_rate-0.001-seed-2``."""
    words = []
    for key, value in changes.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        words += [_plain(key.rpartition(".")[2]), _plain(text)[:VALUE_LENGTH].strip("-.")]
    return "-".join(word for word in words if word)


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")


def validate_all(points: Sequence[Point], model: type[C], source: str) -> list[C]:
    """Every run as ``model``.

    Raises:
        ConfigError: with the problems of all of them; what several runs share stands once.
    """
    valid: list[C] = []
    problems: list[tuple[str, str]] = []
    for point in points:
        try:
            valid.append(loader.validate(point.tree, model, point.origins, source))
        except ConfigError as error:
            problems += [(point.name, line) for line in error.problems]
    if problems:
        raise loader.refused(source, merged(problems, len(points)))
    return valid


def merged(problems: Sequence[tuple[str, str]], of: int) -> list[str]:
    """(run, problem) pairs -> a line for each problem, with the runs that have it; ``of``: how many runs there are."""
    lines = []
    for problem in dict.fromkeys(line for _, line in problems):
        names = [name for name, line in problems if line == problem]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        who = f"all {of} runs" if len(names) == of > 1 else f"{names[0]}{more}"
        lines.append(f"{who}: {problem}")
    return lines

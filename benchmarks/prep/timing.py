"""Figures that other work on the machine disturbs little: seconds of the processor, interleaved, medians."""

from __future__ import annotations

import gzip
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

Row = tuple[str, float, str]
"""What was measured, its value, and the unit."""


def interleaved(steps: dict[str, Callable[[], Any]], repeats: int = 5, seconds: float = 120.0) -> dict[str, float]:
    """Median seconds of the processor that each step takes, all of them in turn ``repeats`` times.

    Each runs once before, unmeasured (compilation, caches). No new round begins after ``seconds``; there are three
    at least.
    """
    for step in steps.values():
        step()
    began, found = time.monotonic(), {name: list[float]() for name in steps}
    for done in range(repeats):
        if done >= 3 and time.monotonic() - began > seconds:
            break
        for name, step in steps.items():
            start = time.process_time()
            step()
            found[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in found.items()}


class Steps:
    """Processor seconds by step, each without the steps inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = ["other"]
        self._since = time.process_time()

    def _turn(self) -> None:
        now = time.process_time()
        self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its time added to ``name``."""

        def wrapper(*args: Any, **keys: Any) -> Any:
            with self.step(name):
                return function(*args, **keys)

        return wrapper

    def timed_items(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that gives an iterator, the time of its items added to ``name``."""

        def wrapper(*args: Any, **keys: Any) -> Any:
            items = iter(function(*args, **keys))
            while True:
                with self.step(name):
                    item = next(items, self)
                if item is self:
                    return
                yield item

        return wrapper


def texts_of(paths: list[str], megabytes: float) -> list[str]:
    """Documents of JSON lines (perhaps gzipped) and text files, about ``megabytes`` of each file alike."""
    share, found = megabytes * 1e6 / max(1, len(paths)), list[str]()
    for path in paths:
        size = 0
        for text in _documents(path):
            found.append(text)
            size += len(text.encode("utf-8"))
            if size > share:
                break
    return found


def _documents(path: str) -> Iterator[str]:
    if path.endswith((".jsonl", ".jsonl.gz")):
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            yield from (orjson.loads(line)["text"] for line in file)
    else:
        yield from Path(path).read_text(encoding="utf-8").split("\n\n")


def show(rows: list[Row]) -> None:
    for bar, value, unit in rows:
        sys.stdout.write(f"{bar:<64} {value:>10.4g} {unit}\n")
    sys.stdout.flush()

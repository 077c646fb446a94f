"""The bars of preparation in one table: python -m benchmarks.prep VOCABULARY FILES...

Each part is a file beside this one, with ``run(texts)`` or ``run(texts, vocabulary)``; a part that fails is named, and
the others go on. No part begins after ``BENCH_SECONDS`` (default 600).
"""

from __future__ import annotations

import importlib
import inspect
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.prep.timing import show, texts_of

PARTS = ("end_to_end", "readers", "segment", "tokenize", "reads", "dedup", "processes")
MEGABYTES = 20


def main(vocabulary: Path, files: list[str]) -> int:
    """Print the rows of every part; returns how many parts failed, or have lines that differ."""
    limit, began, failed = float(os.environ.get("BENCH_SECONDS", "600")), time.monotonic(), 0
    print(f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {versions()}")
    texts = texts_of(files, MEGABYTES)
    for name in PARTS:
        if not (Path(__file__).parent / f"{name}.py").is_file():
            continue
        if time.monotonic() - began > limit:
            print(f"-- {name}: left out, {limit:g} seconds are over")
            continue
        print(f"-- {name}", flush=True)
        run = importlib.import_module(f"benchmarks.prep.{name}").run
        try:
            rows = run(texts, vocabulary) if "vocabulary" in inspect.signature(run).parameters else run(texts)
            show(rows)
            failed += any("lines that differ" in name and value for name, value, _ in rows)  # they are errors
        except Exception as error:  # the other parts are still worth having
            failed += 1
            print(f"-- {name} failed: {type(error).__name__}: {error}")
    print(f"-- {time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}")
    return failed


def versions() -> str:
    """Of Python and of the packages that the figures depend on most."""
    packages = ("numba", "numpy", "tokenizers", "jieba")
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python -m benchmarks.prep VOCABULARY FILES... (text, JSON lines)")
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))

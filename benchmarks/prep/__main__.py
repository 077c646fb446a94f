"""The bars of preparation in one table: python -m benchmarks.prep VOCABULARY FILES... [--datatrove PYTHON]

Each part is a file beside this one, with ``run(texts)``, and ``vocabulary`` or ``datatrove`` (see ``dedup.py``) if it
needs them; a part that fails is named, and the others go on. No part begins after ``BENCH_SECONDS`` (default 480). The
table comes at the end, also when SIGTERM asks for the end.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import platform
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.prep.bars import table
from benchmarks.prep.timing import Row, show, texts_of

PARTS = ("end_to_end", "readers", "segment", "tokenize", "reads", "dedup", "processes")
MEGABYTES = 20


def main(vocabulary: Path, files: list[str], datatrove: str | None = None) -> int:
    """Print the rows of every part, and the table; returns how many parts failed, or have lines that differ."""
    began, failed, rows = time.monotonic(), list[str](), list[Row]()
    print(f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {versions()}")
    given = {"vocabulary": vocabulary, "datatrove": datatrove}
    try:
        texts = texts_of(files, MEGABYTES)
        for name in PARTS:
            rows += part(name, texts, given, began, failed)
    finally:
        print(f"-- {time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}\n\n{table(rows)}", flush=True)
    return len(failed)


def part(name: str, texts: list[str], given: dict[str, object], began: float, failed: list[str]) -> list[Row]:
    """Run and show one part; its name goes to ``failed`` if it does."""
    limit = float(os.environ.get("BENCH_SECONDS", "480"))
    if time.monotonic() - began > limit:
        print(f"-- {name}: left out, {limit:g} seconds are over")
        return []
    print(f"-- {name}", flush=True)
    run = importlib.import_module(f"benchmarks.prep.{name}").run
    try:
        rows: list[Row] = run(texts, **{key: given[key] for key in inspect.signature(run).parameters if key in given})
    except Exception as error:  # the other parts are still worth having
        failed.append(name)
        print(f"-- {name} failed: {type(error).__name__}: {error}")
        return []
    show(rows)
    if any("lines that differ" in label and value for label, value, _ in rows):  # they are errors
        failed.append(name)
    return rows


def versions() -> str:
    """Of Python and of the packages that the figures depend on most."""
    packages = ("numba", "numpy", "tokenizers", "jieba")
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prep", description=__doc__)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("files", nargs="+", help="text, JSON lines")
    parser.add_argument("--datatrove", metavar="PYTHON", help="one that has it: the bar of near-duplicates")
    said = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("-- stopped"))
    sys.exit(main(said.vocabulary, said.files, said.datatrove))

"""Bars 8 and 9: two processes against one, and the memory of a worker on a large input, each in processes of its own.

python -m benchmarks.prep.processes VOCABULARY FILES...
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.prep.end_to_end import write_jsonl
from benchmarks.prep.timing import Row, show, texts_of

PAIR_MEGABYTES = int(os.environ.get("PAIR_MEGABYTES", "1000"))
"""Of the input of bar 8: what its processes do not share is a second and a half of start and end."""
PAIRS = int(os.environ.get("PAIRS", "1"))
"""How often bar 8 is measured."""
MEMORY_MEGABYTES = int(os.environ.get("MEMORY_MEGABYTES", "2000"))
"""Of the synthetic input: the texts again and again, with a number in each, so that no two are alike."""


def synthetic(path: Path, texts: list[str], megabytes: float) -> None:
    """Documents of about ``megabytes`` in all."""
    size, n = 0.0, 0
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            for text in texts:
                line = json.dumps({"text": f"第{n}篇。{text}"}, ensure_ascii=False) + "\n"
                file.write(line)
                size += len(line.encode("utf-8"))
                n += 1
                if size >= megabytes * 1e6:
                    break


def of_children() -> float:
    """Processor seconds of the processes that this one has waited for, and of those that they have waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measured(vocabulary: Path, source: Path, out: Path, workers: int) -> dict[str, float]:
    """``child.py`` in a fresh process; also its seconds by the clock and of processors, from its very start."""
    command = [sys.executable, "-m", "benchmarks.prep.child", str(vocabulary), str(source), str(out)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # as `distill prep` does
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled once
    began, before = time.monotonic(), of_children()
    done = subprocess.run([*command, str(workers)], capture_output=True, text=True, check=True, env=environment)
    used = {"seconds": time.monotonic() - began, "processor": of_children() - before}
    shutil.rmtree(out)
    return {**json.loads(done.stdout.splitlines()[-1]), **used}


def run(texts: list[str], vocabulary: Path) -> list[Row]:
    """Bars 8 and 9. By the clock, the first needs two idle cores."""
    folder = Path(tempfile.mkdtemp(prefix="prep-benchmark-"))
    try:
        write_jsonl(folder / "warm.jsonl", texts[:200])
        synthetic(folder / "pair.jsonl", texts, PAIR_MEGABYTES)
        idle = measured(vocabulary, folder / "warm.jsonl", folder / "data", 0)
        times = [
            [measured(vocabulary, folder / "pair.jsonl", folder / "data", n) for n in (1, 2)] for _ in range(PAIRS)
        ]
        clock = statistics.median(one["seconds"] / two["seconds"] for one, two in times)
        processor = statistics.median(2 * one["processor"] / two["processor"] for one, two in times)
        synthetic(folder / "large.jsonl", texts, MEMORY_MEGABYTES)
        large = measured(vocabulary, folder / "large.jsonl", folder / "data", 0)
        return [
            (f"8 two processes / one ({PAIR_MEGABYTES} MB, with their start), by the clock", clock, "x"),
            ("8 the same if both cores had been idle: by processor seconds", processor, "x"),
            ("9 peak memory of a worker, 64 MB blocks", large["mebibytes"], "MiB"),
            (f"  of an input of {MEMORY_MEGABYTES} MB, by the clock", MEMORY_MEGABYTES / large["seconds"], "MB/s"),
            ("  the same by processor seconds", MEMORY_MEGABYTES / large["processor"], "MB/s"),
            ("  before any text (200 documents)", idle["mebibytes"], "MiB"),
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    show(run(texts_of(sys.argv[2:], 12), Path(sys.argv[1])))

"""The program of one rank in test_meter_ranks.py: ``distill_core.run``, with watches of the test's own.

Usage: python meter_program.py FOLDER --only STAGE LATE READ OUT: seconds that rank 1 sleeps before each step, and that
rank 0's loader sleeps over each batch. OUT gets, for each step of rank 0, seconds in collectives and seconds of waiting
for the loader since the end of the step before.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "reduce")
COLLECTIVES += ("reduce_scatter", "reduce_scatter_tensor", "reduce_scatter_single")
spent = {"collectives": 0.0, "loader": 0.0}
inside = threading.local()


def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """``call``, timed where the main thread comes to it and not from within another one."""

    @functools.wraps(call)
    def wrapper(*given: Any, **named: Any) -> Any:
        if threading.current_thread() is not threading.main_thread() or getattr(inside, "it", False):
            return call(*given, **named)
        inside.it, began = True, time.perf_counter()
        try:
            return call(*given, **named)
        finally:
            inside.it = False
            spent[name] += time.perf_counter() - began

    return wrapper


def main() -> int:
    for name in COLLECTIVES:  # before DeepSpeed is imported, which keeps what it finds
        if hasattr(dist, name):
            setattr(dist, name, watched("collectives", getattr(dist, name)))
    concurrent.futures.Future.result = watched("loader", concurrent.futures.Future.result)  # type: ignore[method-assign]
    from distill_core import run, stage
    from distill_core.data import CorpusSource

    out, read, late = Path(sys.argv.pop()), float(sys.argv.pop()), float(sys.argv.pop())
    first, rows = os.environ["RANK"] == "0", list[list[float]]()
    begin, step, batch = stage.begin, stage.train_step, CorpusSource.batch

    def marked_begin(parts: Any) -> None:
        begin(parts)
        spent.update(collectives=0.0, loader=0.0)

    def late_step(*given: Any) -> Any:
        time.sleep(0.0 if first else late)
        taken = step(*given)
        rows.append(list(spent.values()))
        spent.update(collectives=0.0, loader=0.0)
        return taken

    def slow_batch(*given: Any) -> Any:
        time.sleep(read if first else 0.0)
        return batch(*given)

    stage.begin, stage.train_step = marked_begin, late_step
    CorpusSource.batch = slow_batch  # type: ignore[method-assign]
    status = run.main()
    if first:
        out.write_text(json.dumps(rows), encoding="utf-8")
    return status


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

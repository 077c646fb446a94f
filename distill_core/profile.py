"""Some real steps of a stage, measured and traced. The program of one rank of ``distill profile``.

``python -m distill_core.profile FOLDER STAGE RESULT [--steps N] [--trace FILE]``, started once per rank by the launcher
in a run folder aside (``launcher/profile.py``), so that nothing of the run itself is touched.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from configs.errors import OutputError, output_error
from configs.loader import load
from data_prep.corpus import Corpus
from distill_core.batch import COUNTS, Batch
from distill_core.build import build
from distill_core.clock import PARTS, Clock, Part
from distill_core.config import RunConfig
from distill_core.engine import Rank, start_ranks, stop_ranks
from distill_core.memory import freed_memory_kept
from distill_core.meter import memory_gigabytes, resident_gigabytes
from distill_core.parts import Parts, StepParts
from distill_core.precision import settle
from distill_core.run import current_stage, leave, rank_program
from distill_core.stage import begin, train_step

WARM_UP = 2
"""Steps that are taken before anything is measured: buffers, caches and kernels come into being in them."""
OPERATORS = 15
MARK = "end of part: "


class MarkedClock(Clock):
    """Also leaves its marks in the trace."""

    def mark(self, part: Part | None) -> None:
        with record_function(f"{MARK}{part}"):
            super().mark(part)


def measure(config: RunConfig, index: int, rank: Rank, steps: int, trace: Path | None) -> dict[str, Any]:
    """Take ``steps`` steps of a stage from its beginning; what was found, on rank 0. Collective.

    Raises:
        OutputError: the trace cannot be written.
    """
    libraries = resident_gigabytes("VmRSS")
    parts = build(config, {index: {}}, Corpus.open(config.data_folder, config.data.verify), rank)
    trainee = parts.trainees[0]
    parts.clock = trainee.meter.clock = MarkedClock(rank.device)
    built = resident_gigabytes("VmRSS")
    taken = take_steps(parts, steps, rank.is_first and trace is not None)
    row = trainee.meter.summary()
    for each in parts.trainees:
        each.engine.close()
    found = {
        "stage": trainee.stage.name,
        "ranks": rank.world_size,
        "device": str(rank.device.type),
        "threads": torch.get_num_threads(),
        "steps": steps,
        "step_seconds": statistics.median(taken.seconds),
        "slowest_step_seconds": max(taken.seconds),
        "step_cpu_seconds": rank_mean(rank, statistics.median(taken.cpu_seconds)),
        "micro_steps": taken.micro_steps / steps,
        "counts": dict(zip(COUNTS, (rank.sum(taken.counts.to(rank.device)) / steps).tolist(), strict=True)),
        "peak_tflops": (trainee.meter.peak or 0.0) / 1e12,
        "row": {name: value for name, value in row.items() if not name.startswith(("loss/", "weighted/"))},
        "flops": {part: dict(flops.each) for part, flops in parts.useful_flops(trainee).items()},
        "memory": {"libraries": libraries, "built": built, "peak": memory_gigabytes(rank)},
    }
    if taken.tracing is not None and trace is not None:
        found["operators"] = operators(taken.tracing, steps, rank.device)
        write_trace(taken.tracing, trace)
    return found


def rank_mean(rank: Rank, value: float) -> float:
    """Over the ranks. Collective."""
    return float(rank.sum(torch.tensor([value], dtype=torch.float64, device=rank.device))) / rank.world_size


@dataclass
class Taken:
    """The steps behind the warm-up.

    ``seconds``: of each; ``cpu_seconds``: of this rank's processor; ``counts``: float64 [COUNTS], this rank's of all;
    ``tracing``: the profiler that has watched.
    """

    tracing: profile | None
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    counts: Tensor = field(default_factory=lambda: torch.zeros(len(COUNTS), dtype=torch.float64))
    micro_steps: int = 0

    def add(self, seconds: float, cpu_seconds: float, batches: list[Batch]) -> None:
        self.seconds.append(seconds)
        self.cpu_seconds.append(cpu_seconds)
        self.micro_steps += len(batches)
        for batch in batches:
            counts = batch.counts()
            self.counts += torch.tensor([counts[name] for name in COUNTS], dtype=torch.float64)


def take_steps(parts: Parts, steps: int, traced: bool) -> Taken:
    """The warm-up, and ``steps`` more."""
    activities = [ProfilerActivity.CPU]
    if parts.rank.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    meter, taken = parts.trainees[0].meter, Taken(profile(activities=activities) if traced else None)
    begin(parts)
    with contextlib.ExitStack() as stack:
        stack.enter_context(freed_memory_kept(parts.rank.device))
        for number, (step, wait) in enumerate(parts.loader.steps(0, WARM_UP + steps)):
            if number == WARM_UP:
                meter.summary()
                parts.rank.barrier()
                if taken.tracing is not None:
                    stack.enter_context(taken.tracing)
                parts.clock.restart()
            before, cpu = sum(parts.clock.seconds().values()), time.process_time()
            with record_function(f"step {number}"):
                train_step(parts, step, wait)
                parts.clock.mark("other")
                wait_for_updates(parts)
            if number >= WARM_UP:
                taken.add(sum(parts.clock.seconds().values()) - before, time.process_time() - cpu, step.batches)
    return taken


def wait_for_updates(parts: StepParts) -> None:
    """What runs beside the stream on a GPU (reduction, update) ends before the next mark, and takes its time there."""
    for trainee in parts.trainees:
        trainee.engine.settle()
    parts.clock.mark("optimizer")


# ---------------------------------------------------------------- the trace


def operators(tracing: profile, steps: int, device: torch.device) -> list[dict[str, Any]]:
    """The operators that take most time by themselves: on the device, or on the CPU without one.

    On a device the profiler has a row for each operator, with the time of the kernels that it started, and rows for
    these kernels: only the first are taken, so that nothing counts twice.
    """
    on_device = device.type != "cpu"
    found = [
        {
            "name": event.key,
            "calls": event.count / steps,
            "seconds": (event.self_device_time_total if on_device else event.self_cpu_time_total) / 1e6 / steps,
        }
        for event in tracing.key_averages()
        if event.device_type == DeviceType.CPU and not event.key.startswith((MARK, "step ", "ProfilerStep"))
    ]
    return sorted(found, key=lambda row: -row["seconds"])[:OPERATORS]


def write_trace(tracing: profile, path: Path) -> None:
    """A Chrome trace (for ui.perfetto.dev) with a track of its own that shows the parts of each step."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tracing.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8"))
        trace["traceEvents"] += list(parts_track(trace["traceEvents"]))
        path.write_text(json.dumps(trace), encoding="utf-8")
    except OSError as error:
        raise output_error(path, error) from error
    except ValueError as error:
        raise OutputError(f"The profiler wrote a trace that is no JSON to {path}: {error}.") from error


def parts_track(events: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """From one mark of the clock to the next, as the host has passed them; a GPU gets there later."""
    marks = sorted((e for e in events if str(e.get("name", "")).startswith(MARK) and "ts" in e), key=lambda e: e["ts"])
    for before, mark in itertools.pairwise(marks):
        part = mark["name"].removeprefix(MARK)
        if part in PARTS:
            where = {"pid": mark["pid"], "tid": "parts of the step"}
            yield {
                "ph": "X",
                "cat": "part",
                "name": part,
                "ts": before["ts"],
                "dur": mark["ts"] - before["ts"],
                **where,
            }


# ---------------------------------------------------------------- the program


def main() -> int:
    """The program of one rank; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m distill_core.profile", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("stage")
    parser.add_argument("result", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--trace", type=Path)
    given = parser.parse_args()

    def work() -> None:
        config = load(given.folder / "config.yaml", [], RunConfig)
        rank = start_ranks()
        config = settle(config, given.folder, rank)
        current_stage.name, index = given.stage, config.stage_index(given.stage)
        assert index is not None
        found = measure(config, index, rank, given.steps, given.trace)
        stop_ranks()
        if rank.is_first:
            try:
                given.result.write_text(json.dumps(found, indent=1), encoding="utf-8")
            except OSError as error:
                raise output_error(given.result, error) from error

    return rank_program(given.folder, work)


if __name__ == "__main__":
    leave(main())

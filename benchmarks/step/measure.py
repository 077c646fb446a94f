"""Variants in turns, step by step: seconds, shares of the peak, memory."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from benchmarks.step.bench import Bench, Runner, Unavailable, clock_of
from benchmarks.step.flops import matrix_peak, useful_flops


@dataclass
class Found:
    """One variant of one setting, medians over rounds.

    ``speed``: real tokens a second; ``behind``: its seconds over those of the first variant; ``share``: of the matrix
    peak measured in the same round, by useful FLOPs; ``gigabytes``: peak memory, None: not measured.
    """

    setting: str
    variant: str
    speed: float
    behind: float
    share: float
    gigabytes: float | None = None


@dataclass
class Outcome:
    """A setting: its variants, what could not be run, the peak in FLOP/s, and the rounds that were made."""

    name: str
    fill: float
    found: list[Found]
    missing: list[str]
    peak: float
    rounds: int


def interleaved(
    bench: Bench, variants: Iterable[str], rounds: int, seconds: float, peak: Callable[[], float] | None = None
) -> Outcome:
    """Every variant's first step unmeasured, then in turns; no round after the third begins when time is over."""
    clock = clock_of(bench.rank.device)
    peak = peak or (lambda: matrix_peak(bench.rank.device, clock))
    runners, missing, memory = dict[str, Runner](), list[str](), dict[str, float]()
    for variant in variants:
        shared = bench.shared_bytes(variant)
        before = allocated(bench.rank.device)
        try:
            runners[variant] = bench.runner(variant)
            runners[variant].step()
        except Unavailable as error:
            missing.append(str(error))
            continue
        memory[variant] = allocated(bench.rank.device) - before + shared
    began, peaks, taken = time.monotonic(), list[float](), {name: list[float]() for name in runners}
    for number in range(1, rounds + 1):
        if number > 3 and time.monotonic() - began > seconds:
            break
        order = list(runners) if number % 2 else list(reversed(runners))
        for name in order:
            before = start_memory(bench.rank.device)
            start = clock()
            runners[name].step()
            taken[name].append(clock() - start)
            if number == 1:
                memory[name] += peak_memory(bench.rank.device) - before
        peaks.append(peak())
    for runner in runners.values():
        runner.close()
    runners.clear()
    gc.collect()  # models and loops hold one another
    on_gpu = bench.rank.device.type == "cuda"
    found = [_found(bench, name, taken, peaks, memory[name] / 1e9 if on_gpu else None) for name in taken]
    return Outcome(bench.setting.name, bench.fill, found, missing, statistics.median(peaks), len(peaks))


def _found(
    bench: Bench, name: str, taken: dict[str, list[float]], peaks: list[float], gigabytes: float | None
) -> Found:
    first, mine = next(iter(taken.values())), taken[name]
    steps = range(1, len(mine) + 1)
    work = [useful_flops(bench.setting, bench.batches[step % bench.steps], bench.vocabulary) for step in steps]
    return Found(
        bench.setting.name,
        name,
        statistics.median(bench.tokens(step) / t for step, t in zip(steps, mine, strict=True)),
        statistics.median(t / base for t, base in zip(mine, first, strict=True)),
        statistics.median(flops / t / peak for flops, t, peak in zip(work, mine, peaks, strict=True)),
        gigabytes,
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the log lines of the loops."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


# ---------------------------------------------------------------- memory


def allocated(device: torch.device) -> float:
    """Bytes on the GPU; 0 on a CPU, where a process of its own tells (:func:`memory_alone`)."""
    return float(torch.cuda.memory_allocated(device)) if device.type == "cuda" else 0.0


def start_memory(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return allocated(device)


def peak_memory(device: torch.device) -> float:
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0.0


def memory_alone(arguments: list[str], setting: str, variant: str) -> float | str:
    """Peak resident gigabytes of a process that runs one variant; or why there is none."""
    command = [sys.executable, "-m", "benchmarks.step", *arguments, "--alone", setting, variant]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
    return float(json.loads(done.stdout.strip().splitlines()[-1])["gigabytes"])

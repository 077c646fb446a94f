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
from dataclasses import dataclass, field

import torch

from benchmarks.step.bench import Bench, Runner, Unavailable, clock_of
from benchmarks.step.flops import matrix_peak, useful_flops
from configs.errors import ConfigError


@dataclass
class Found:
    """One variant of one setting, medians over rounds.

    ``speed``: real tokens a second; ``behind``: its seconds over those of the first variant; ``share``: of the matrix
    peak measured in the same round, by useful FLOPs; ``gigabytes``: peak memory, None: not measured; ``parts``: what
    share of the step each part takes, waiting for the turn left out; empty where nobody says.
    """

    setting: str
    variant: str
    speed: float
    behind: float
    share: float
    gigabytes: float | None = None
    parts: dict[str, float] = field(default_factory=dict)


@dataclass
class Outcome:
    """A setting: its variants, what could not be run, the peak in FLOP/s, the rounds that were made, what failed."""

    name: str
    fill: float
    found: list[Found]
    missing: list[str]
    peak: float
    rounds: int
    failed: list[str] = field(default_factory=list)


class Running:
    """The variants that take turns. One that raises is closed and left out from then on, with what it said kept."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.runners = dict[str, Runner]()
        self.missing, self.failed = list[str](), list[str]()
        self.memory = dict[str, float]()
        self.taken = dict[str, list[float]]()

    def start(self, variant: str) -> None:
        """Its first step, unmeasured."""
        shared, before = self.bench.shared_bytes(variant), allocated(self.bench.rank.device)
        with self._watched(variant):
            self.runners[variant] = self.bench.runner(variant)
            self.runners[variant].step()
            self.memory[variant] = allocated(self.bench.rank.device) - before + shared
            self.taken[variant] = []

    def turn(self, variant: str, clock: Callable[[], float], first: bool) -> None:
        """A measured step; memory in the ``first`` one."""
        with self._watched(variant):
            before, start = start_memory(self.bench.rank.device), clock()
            self.runners[variant].step()
            self.taken[variant].append(clock() - start)
            if first:
                self.memory[variant] += peak_memory(self.bench.rank.device) - before

    @contextlib.contextmanager
    def _watched(self, variant: str) -> Iterator[None]:
        try:
            yield
            return
        except (Unavailable, ConfigError) as error:  # what cannot be had here, or not in this way
            self.missing.append(str(error) if isinstance(error, Unavailable) else f"{variant}: {error}")
        except Exception as error:  # of whatever code: the table goes on without it
            self.failed.append(f"{variant}: {failure(error)}")
        self.taken.pop(variant, None)
        self._close(variant)
        if self.bench.rank.device.type == "cuda":
            torch.cuda.empty_cache()

    def _close(self, variant: str) -> None:
        runner = self.runners.pop(variant, None)
        if runner is not None:
            try:
                runner.close()
            except Exception as error:
                self.failed.append(f"{variant}: at its end: {failure(error)}")
        del runner
        gc.collect()  # models and loops hold one another

    def close(self) -> None:
        for variant in list(self.runners):
            self._close(variant)


def failure(error: Exception) -> str:
    """Its kind and its first line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def interleaved(
    bench: Bench, variants: Iterable[str], rounds: int, seconds: float, peak: Callable[[], float] | None = None
) -> Outcome:
    """Every variant's first step unmeasured, then in turns.

    Args:
        rounds: at most; one at least.
        seconds: by the clock, with all that is built: no other round begins that would end later.
    """
    clock, began = clock_of(bench.rank.device), time.monotonic()
    peak = peak or (lambda: matrix_peak(bench.rank.device, clock))
    running, peaks, longest = Running(bench), list[float](), 0.0
    try:
        for variant in variants:
            running.start(variant)
        for number in range(1, rounds + 1):
            start = time.monotonic()
            if not running.runners or (number > 1 and start - began + longest > seconds):
                break
            order = list(running.runners) if number % 2 else list(reversed(running.runners))
            for variant in order:
                running.turn(variant, clock, first=number == 1)
            peaks.append(peak())
            longest = max(longest, time.monotonic() - start)
    finally:
        running.close()
    on_gpu, taken = bench.rank.device.type == "cuda", running.taken
    memory = {name: size / 1e9 if on_gpu else None for name, size in running.memory.items()}
    found = [_found(bench, name, taken, peaks, memory[name]) for name in taken if peaks]
    typical = statistics.median(peaks) if peaks else 0.0
    return Outcome(bench.setting.name, bench.fill, found, running.missing, typical, len(peaks), running.failed)


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
        bench.parts(name),
    )


class Budget:
    """Seconds by the clock for work of known weights, shared out as it goes."""

    def __init__(self, seconds: float, weights: Iterable[float]) -> None:
        self._end, self._weights = time.monotonic() + seconds, list(weights)

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def next(self) -> float:
        """The next one's share of what is left."""
        weight, rest = self._weights[0], sum(self._weights)
        del self._weights[0]
        return max(0.0, self.left) * weight / rest


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

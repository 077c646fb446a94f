from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from distill_core import peak
from distill_core.clock import PARTS, Clock
from distill_core.engine import Rank

CPU = torch.device("cpu")


def test_marks_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 11.0, 13.0, 100.0, 100.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    clock = Clock(CPU)
    clock.mark("data")
    clock.mark("teacher")
    clock.restart()  # what lies between is no step's time
    clock.mark("teacher")
    assert clock.seconds() == {**dict.fromkeys(PARTS, 0.0), "data": 1.0, "teacher": 2.5}


class Stream:
    """A device that gets to its events later than the host issues them."""

    def __init__(self) -> None:
        self.issued: list[Event] = []
        self.reached = 0
        self.waits = 0


class Event:
    def __init__(self, stream: Stream) -> None:
        self.stream, self.number = stream, -1

    def record(self) -> None:
        self.number = len(self.stream.issued)
        self.stream.issued.append(self)

    def query(self) -> bool:
        return self.number < self.stream.reached

    def synchronize(self) -> None:
        self.stream.waits += 1
        self.stream.reached = max(self.stream.reached, self.number + 1)

    def elapsed_time(self, later: Event) -> float:
        assert self.query() and later.query(), "the time of an event that has not passed yet"
        return 1000.0 * (2**later.number - 2**self.number)


def test_events_are_read_when_they_have_passed() -> None:
    """Event n happens 2^n seconds after the start; nothing waits for the device before the times are asked for."""
    stream = Stream()
    clock = Clock(CPU, lambda: Event(stream))
    clock.mark("data")
    stream.reached = 2
    clock.mark("teacher")
    assert len(clock._waiting) == 1 and stream.waits == 0
    clock.mark("forward")
    clock.restart()
    clock.mark("backward")
    assert stream.waits == 0
    found = clock.seconds()
    assert stream.waits == 1
    assert found == {"data": 1.0, "teacher": 2.0, "forward": 4.0, "backward": 16.0, **dict.fromkeys(PARTS[4:], 0.0)}
    assert clock.seconds() == found and stream.waits == 1


def test_the_peak_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rank, calls = Rank(0, 0, 1, CPU), []

    def product(shape: tuple[int, int, int], *rest: object) -> float:
        calls.append(shape)
        return 5e9

    monkeypatch.setattr(peak, "product_flops", product)
    assert peak.peak_flops(tmp_path, 2.0, torch.float32, rank) == 2e12 and not calls
    assert [peak.peak_flops(tmp_path, None, torch.float32, rank) for _ in range(2)] == [5e9, 5e9]
    assert calls == [(1024, 1024, 1024)]
    peak.peak_flops(tmp_path, None, torch.bfloat16, rank)
    assert len(calls) == 2 and len(peak.read_peaks(tmp_path / "peak.json")) == 2
    (tmp_path / "peak.json").write_text("[1")
    peak.peak_flops(tmp_path, None, torch.float32, rank)
    assert len(calls) == 3


def test_a_product_is_measured_in_flops_a_second() -> None:
    """A thousandth of what any processor of today does, and a thousand times it."""
    assert 1e7 < peak.product_flops((64, 64, 64), torch.float32, CPU, 0.01) < 1e15

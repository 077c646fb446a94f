"""Time in collectives is taken apart, wherever in a step they are."""

from __future__ import annotations

import time

import pytest
import torch

from distill_core import clock as clock_module
from distill_core.clock import Clock
from distill_core.collectives import Communication


class Backend:
    """As DeepSpeed's: a collective may be made of others, or be waited for later."""

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock

    def all_reduce(self, seconds: float, async_op: bool = False) -> object:
        if async_op:
            return Later(self.clock, seconds)
        self.clock[0] += seconds
        return "done"

    def reduce(self, seconds: float) -> object:
        self.clock[0] += 1
        return self.all_reduce(seconds)


class Later:
    def __init__(self, clock: list[float], seconds: float) -> None:
        self.clock, self.seconds, self.name = clock, seconds, "later"

    def wait(self) -> str:
        self.clock[0] += self.seconds
        return "waited"


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    value = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: value[0])
    return value


def test_collectives_are_timed_once(now: list[float]) -> None:
    found, backend = Communication(), Backend(now)
    found.watch(backend)
    found.watch(backend)
    assert backend.all_reduce(2.0) == "done" and found.seconds == 2.0
    backend.reduce(3.0)
    assert found.seconds == 6.0
    work = backend.all_reduce(5.0, async_op=True)
    now[0] += 50  # the step goes on
    assert found.seconds == 6.0 and work.wait() == "waited" and work.name == "later"  # type: ignore[attr-defined]
    assert found.seconds == 11.0
    with pytest.raises(TypeError), found.timed():
        backend.all_reduce()  # type: ignore[call-arg]
    with found.timed():
        now[0] += 1
    assert found.seconds == 12.0


def test_a_mark_takes_them_out_of_its_part(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    found = Communication()
    monkeypatch.setattr(clock_module, "communication", found)
    clock = Clock(torch.device("cpu"))
    now[0] += 3
    with found.timed():
        now[0] += 2
    clock.mark("backward")
    with found.timed():
        now[0] += 4
    clock.restart()  # an evaluation's are no step's
    now[0] += 1
    clock.mark("optimizer")
    seconds = clock.seconds()
    assert (seconds["backward"], seconds["communication"], seconds["optimizer"]) == (3.0, 2.0, 1.0)
    assert sum(seconds.values()) == 6.0

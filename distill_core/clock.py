"""Where a step's time goes, part by part, without making the host wait for the device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch

from distill_core.collectives import communication

Part = Literal["data", "teacher", "forward", "backward", "optimizer", "communication", "other"]
"""Waiting for batches and moving them; the teachers; student and losses, forward and backward; the update; collectives
(on a CPU all of them, and in no other part; on a GPU that of the counts at the step's begin, where ranks wait for each
other: the rest is on a stream of its own, or in the part whose end waits for it); checks and log lines."""
PARTS: tuple[Part, ...] = get_args(Part)


class Clock:
    """Seconds by part, added up since the start.

    Work is cut by marks: what lies between two of them belongs to the part that the second one names. On a CPU a mark
    reads the time, and takes apart what was spent in collectives since the last one; on a GPU it is an event in the
    stream, which costs microseconds, and whose time is fetched when it has passed anyway, or in :meth:`seconds`.
    """

    def __init__(self, device: torch.device, event: Callable[[], Any] | None = None) -> None:
        """``event``: makes a timing event of the device's stream; None on a CPU."""
        if event is None and device.type == "cuda":
            event = _cuda_event
        self._event = event
        self._totals = dict.fromkeys(PARTS, 0.0)
        self._waiting: deque[tuple[Part | None, Any]] = deque()
        self._last: Any = None
        self._sent = 0.0
        self.restart()

    def mark(self, part: Part | None) -> None:
        """What happened since the last mark was ``part`` (None: no part of any step)."""
        if self._event is None:
            now, sent = time.perf_counter(), communication.seconds
            if part is not None:
                self._totals[part] += now - self._last - (sent - self._sent)
                self._totals["communication"] += sent - self._sent
            self._last, self._sent = now, sent
            return
        event = self._event()
        event.record()
        self._waiting.append((part, event))
        self._collect(lambda event: bool(event.query()))

    def restart(self) -> None:
        """Leave out what happened since the last mark: an evaluation, a checkpoint."""
        self.mark(None)

    def seconds(self) -> dict[Part, float]:
        """All parts since the start, up to the last mark. Waits for the device to get there."""
        if self._waiting:
            self._waiting[-1][1].synchronize()
            self._collect(lambda event: True)
        return dict(self._totals)

    def _collect(self, passed: Callable[[Any], bool]) -> None:
        while self._waiting and passed(self._waiting[0][1]):
            part, event = self._waiting.popleft()
            if part is not None:
                self._totals[part] += self._last.elapsed_time(event) / 1e3
            self._last = event


def _cuda_event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

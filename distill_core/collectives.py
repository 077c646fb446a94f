"""How long a rank on a CPU waits in collectives, its own and DeepSpeed's, wherever in a step they are.

On a GPU they run beside the host, in streams: what is counted here says nothing there, and ``clock.py`` leaves it out.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

NAMES = (
    "all_reduce",
    "all_reduce_coalesced",
    "all_gather",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "broadcast",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
)
"""Of the methods of DeepSpeed's backend, those that steps use."""


class Communication:
    """``seconds``: of this process in collectives since its start, waiting for slower ranks included."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = False
        self._watched: Any = None

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """A collective; one that is made of others counts once."""
        if self._inside:
            yield
            return
        self._inside, began = True, time.perf_counter()
        try:
            yield
        finally:
            self._inside = False
            self.seconds += time.perf_counter() - began

    def watch(self, backend: Any) -> None:
        """From now on time the collectives of ``backend`` (``deepspeed.comm.comm.cdb``), an object."""
        if backend is self._watched:
            return
        self._watched = backend
        for name in NAMES:
            if hasattr(backend, name):
                setattr(backend, name, self._timing(getattr(backend, name)))

    def _timing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapper(*given: Any, **named: Any) -> Any:
            with self.timed():
                made = call(*given, **named)
            return _Work(made, self) if hasattr(made, "wait") else made

        return wrapper


class _Work:
    """A collective that has been started; its ``wait`` is timed."""

    def __init__(self, work: Any, communication: Communication) -> None:
        self._work, self._communication = work, communication

    def wait(self, *given: Any) -> Any:
        with self._communication.timed():
            return self._work.wait(*given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


communication = Communication()
"""Of this process."""

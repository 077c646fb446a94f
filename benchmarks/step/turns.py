"""Training loops that take turns: each runs as it is, and stops where it asks for its next batch."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch


class _Over(BaseException):
    """Ends a loop from inside its data."""


class Gate:
    """Where a loop waits for its turn. A batch lies between two waits."""

    def __init__(self) -> None:
        self._go, self._waiting = threading.Semaphore(0), threading.Semaphore(0)
        self._over = False

    def wait(self) -> None:
        """By the loop: its step is done, and it wants the next batch."""
        self._waiting.release()
        self._go.acquire()
        if self._over:
            raise _Over

    def through(self, batches: Iterable[Any]) -> Iterator[Any]:
        """``batches``, each behind a wait."""
        source = iter(batches)
        while True:
            self.wait()
            try:
                yield next(source)
            except StopIteration:
                return


class Feed:
    """``batches``, again and again, each behind a wait: what loops take for a DataLoader."""

    def __init__(self, gate: Gate, batches: list[Any]) -> None:
        self._gate, self._batches = gate, batches

    def __len__(self) -> int:
        return 10**9

    def __iter__(self) -> Iterator[Any]:
        return self._gate.through(itertools.cycle(self._batches))


class Loop:
    """A training loop in a thread of its own, driven step by step from outside.

    Args:
        program: the loop; its data must come through the gate that it is given.
        at_end: what is to be released when the loop is closed.
        trained: a peer's parameters by the names that ours have.
    """

    def __init__(
        self,
        program: Callable[[Gate], None],
        at_end: Callable[[], None] = lambda: None,
        trained: Callable[[], dict[str, torch.nn.Parameter]] = dict,
    ) -> None:
        self.trained = trained
        self._gate, self._done = Gate(), False
        self._error: BaseException | None = None
        self._threads = torch.get_num_threads()
        self._program, self._at_end = program, at_end
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._until_it_waits()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # OpenMP keeps the number for each thread
        try:
            self._program(self._gate)
        except _Over:
            pass
        except BaseException as error:  # handed to the thread that drives
            self._error = error
        self._done = True
        self._gate._waiting.release()

    def _until_it_waits(self) -> None:
        self._gate._waiting.acquire()
        if self._error is not None:
            raise self._error
        if self._done:
            raise RuntimeError("the loop has ended by itself")

    def step(self) -> None:
        """One batch, until the loop asks for another."""
        self._gate._go.release()
        self._until_it_waits()

    def close(self) -> None:
        if self._thread.is_alive():
            self._gate._over = True
            self._gate._go.release()
            self._thread.join()
        self._at_end()

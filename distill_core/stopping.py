"""Being asked to stop: SIGTERM or SIGUSR1 to a rank means a checkpoint at the end of the step, then exit status 75.

A handler only sets a flag. The flags of all ranks travel with the counts of the next step, in the one small all-reduce
that there is anyway, so that all ranks stop after the same step, whichever of them got the signal.
"""

from __future__ import annotations

import contextlib
import signal
import types
from collections.abc import Iterator

import torch
from torch import Tensor

from configs.errors import Requeue


class Stopping:
    """This rank's flag."""

    def __init__(self) -> None:
        self.wanted = False
        self._in_steps = False

    def heed(self) -> None:
        """From now on, heed SIGTERM and SIGUSR1: at once while nothing is to be kept, else at the end of the step."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self.wanted = True
        if not self._in_steps:
            raise Requeue(f"Stopped by {signal.Signals(number).name}, between training steps.")

    @contextlib.contextmanager
    def in_steps(self) -> Iterator[None]:
        """Within the block, a signal waits for the end of the step."""
        self._in_steps = True
        try:
            yield
        finally:
            self._in_steps = False


class Vote:
    """The sum of all ranks' flags, read without holding the device up.

    The copy stands in the device's queue before the step's forward pass, so that it is there long before it is read.
    """

    def __init__(self, flags: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        if flags.is_cuda:
            self._flags = torch.empty((), dtype=flags.dtype, pin_memory=True)
            self._flags.copy_(flags, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        else:
            self._flags = flags

    def passed(self) -> bool:
        """Whether any rank was asked to stop before this step; the same on all ranks."""
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._flags)


stopping = Stopping()
"""Of this process."""

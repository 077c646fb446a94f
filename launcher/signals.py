"""Being stopped from outside: Ctrl-C, SIGTERM of a scheduler, a closed terminal."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import types
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Stopped(BaseException):
    """A signal asked this process to end; like KeyboardInterrupt not an ``Exception``, so that it gets through."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.exit_code = 128 + signum


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Within the block, SIGINT, SIGTERM, SIGHUP and SIGUSR1 raise :class:`Stopped` in the main thread.

    A signal that was ignored on entry stays ignored: that is how ``nohup`` works.
    """

    def stop(signum: int, frame: types.FrameType | None) -> None:
        # Workers of the preparation: its pool would wait until each has finished its block.
        for child in multiprocessing.active_children():
            child.terminate()
        raise Stopped(signum)

    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Processes that are killed at a chosen step of their work with files, or at a chosen moment."""

from __future__ import annotations

import builtins
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

STEPS = ("rename", "replace", "mkdir", "rmdir", "unlink", "fsync")
"""Functions of ``os`` that are steps by themselves; so are opening a file for writing and every write to it."""


class Saboteur:
    """Counts the steps of this process that change something on disk, and kills it at one of them.

    ``at``: the number of that step, from 0; the step is not done, a write is half done. None: only counts.
    """

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.steps = 0

    def install(self) -> None:
        """For the rest of this process's life: only for a child that was forked for it."""
        for name in STEPS:
            setattr(os, name, self._before(getattr(os, name)))
        opened = io.open
        open_of_os = os.open

        def open_file(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wax+"):
                return opened(file, mode, *args, **kwargs)
            self.step()
            return Writing(opened(file, mode, *args, **kwargs), self)

        def os_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & os.O_CREAT:
                self.step()
            return open_of_os(path, flags, *args, **kwargs)

        builtins.open = io.open = open_file  # type: ignore[assignment]
        os.open = os_open  # type: ignore[assignment]

    def step(self, half: Callable[[], object] | None = None) -> None:
        if self.steps == self.at:
            if half is not None:
                half()
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps += 1

    def _before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any, **kwargs: Any) -> Any:
            self.step()
            return function(*args, **kwargs)

        return stepping


class Writing:
    """A file whose writes are steps."""

    def __init__(self, file: Any, saboteur: Saboteur) -> None:
        self._file, self._saboteur = file, saboteur

    def write(self, content: Any) -> Any:
        def half() -> None:
            self._file.write(content[: len(content) // 2])
            self._file.flush()

        self._saboteur.step(half)
        return self._file.write(content)

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def forked(work: Callable[[], object], log: str) -> int:
    """Start ``work`` in a forked child with a process group of its own, its output in the file ``log``; its pid."""
    pid = os.fork()
    if pid:
        with suppress(OSError):  # the child was quicker
            os.setpgid(pid, pid)
        return pid
    status = 1
    try:
        os.setpgid(0, 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def end_of(pid: int) -> int:
    """Its exit status, or -9 when it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_after(seconds: float, pid: int) -> int:
    """Kill the child's whole group after ``seconds``, unless it ends before; how it ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(min(0.002, max(until - time.monotonic(), 0)))
    os.killpg(pid, signal.SIGKILL)
    ended = end_of(pid)
    while living(pid):
        time.sleep(0.002)
    return ended


def living(group: int) -> bool:
    """Whether a process of the group still runs: workers that were forked hold the folder's lock with their parent."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it ended meanwhile
            continue
        if int(its_group) == group and state not in "ZX":
            return True
    return False

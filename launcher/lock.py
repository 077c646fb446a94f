"""One writer per folder: one launcher, and one first agent, which may outlive its launcher for a while."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from configs.errors import ConfigError, LaunchError, Requeue, output_error
from data_prep.atomic import private_folder


@contextlib.contextmanager
def folder_lock(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold ``folder`` for this process; the kernel lets go when the process ends, however it ends.

    Args:
        patience: seconds to wait for another process that holds it.

    Raises:
        ConfigError: when another process holds it.
    """
    private_folder(folder)
    with _opened(folder / ".run.lock") as file:
        if not _lock(file, patience, lambda: None):
            raise ConfigError(
                f"Another distill process{_holder(file)} is at work in {folder}. Wait for it or stop it, or give this "
                "run another name with `name=...`."
            )
        yield


@contextlib.contextmanager
def agent_lock(folder: Path, patience: float, unwanted: Callable[[], str | None]) -> Iterator[None]:
    """Hold ``folder`` for the first agent of a start, whose ranks write there: agents of an earlier start, whose
    launcher was killed, go on until they have noticed and their ranks have kept their step.

    Args:
        patience: seconds to wait for those.
        unwanted: why there is nothing to wait for any more; None: go on.

    Raises:
        LaunchError: they are there after that time.
        Requeue: it was not wanted any more.
    """
    path = folder / ".agent.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    with _opened(path) as file:
        if not _lock(file, 0.0, lambda: None):
            print(f"Waiting for the agents of an earlier start{_holder(file)} to end in {folder}.", flush=True)
            if not _lock(file, patience, unwanted):
                if why := unwanted():
                    raise Requeue(f"Stopped by {why} before the ranks had started.")
                raise LaunchError(
                    f"The agents of an earlier start{_holder(file)} are still at work in {folder}, after "
                    f"{patience:.0f} s (supervision.timeouts.join). Wait for them or end them; if that machine "
                    f"is gone, remove {path}."
                )
        yield


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise output_error(path, error) from error
    try:
        yield file
    finally:
        os.close(file)


def _lock(file: int, patience: float, unwanted: Callable[[], str | None]) -> bool:
    """Whether it is ours now; then it says whose it is."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline or unwanted():
                return False
            time.sleep(0.1)
        except OSError as error:  # Lustre without `-o flock`, NFS without its lock service
            raise ConfigError(
                f"The file system of {os.path.realpath(f'/proc/self/fd/{file}')} cannot lock files ({error.strerror}). "
                "Mount it so that it can, or choose another folder with `output=...`."
            ) from None
    os.ftruncate(file, 0)
    os.pwrite(file, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return True


def _holder(file: int) -> str:
    said = os.pread(file, 300, 0).decode("ascii", errors="replace").strip()
    return f" ({said})" if said else ""

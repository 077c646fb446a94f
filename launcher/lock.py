"""One writer per folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from configs.errors import LaunchError, output_error
from data_prep.atomic import private_folder


@contextlib.contextmanager
def folder_lock(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold ``folder`` for this process; the kernel lets go when the process ends, however it ends.

    Args:
        patience: seconds to wait for another process that holds it.

    Raises:
        LaunchError: when another process holds it.
    """
    path = folder / ".run.lock"
    private_folder(folder)
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise output_error(path, error) from error
    try:
        try:
            _lock(file, patience)
        except BlockingIOError:
            holder = os.read(file, 32).decode("ascii", errors="replace").strip()
            raise LaunchError(
                f"Another distill process{f' (pid {holder})' if holder else ''} is at work in {folder}. Wait for it "
                "or stop it, or give this run another name with `name=...`."
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(file)


def _lock(file: int, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)

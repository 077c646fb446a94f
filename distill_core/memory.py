"""Freed memory of a CPU's steps stays with the process, and the next step finds it there.

glibc's malloc takes large tensors from the system one by one and gives back what is free at the heap's end, so that
each step fetches hundreds of megabytes of activations anew, page by page and zeroed: 5 to 10 % of its time in a
virtual machine. A GPU's memory has torch's own cache.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import torch

_TRIM, _MMAP = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)."""
_KEPT = {_MMAP: 2**30, _TRIM: 2**31 - 1}
_USUAL = {_MMAP: 2**25, _TRIM: 2**26}
"""Where glibc's own adjustment ends."""


def _set(settings: dict[int, int]) -> None:
    """Does nothing where the C library has no such settings."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for name, value in settings.items():
            mallopt(name, value)


@contextlib.contextmanager
def freed_memory_kept(device: torch.device, kept: bool = True) -> Iterator[None]:
    """Inside, on a CPU: what is freed is handed out again. ``kept`` False: inside another such block, not so."""
    if device.type != "cpu":
        yield
        return
    _set(_KEPT if kept else _USUAL)
    try:
        yield
    finally:
        _set(_USUAL if kept else _KEPT)

"""What collectives of torch.distributed send, counted where they are called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

ONCE = ("reduce", "broadcast", "all_gather", "all_gather_into_tensor", "all_gather_single", "_all_gather_base")
ONCE += ("reduce_scatter", "reduce_scatter_tensor", "reduce_scatter_single", "_reduce_scatter_base")
"""Of their larger buffer each of W ranks sends (W - 1) / W; of an all-reduce's twice as much."""


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


class Traffic:
    """``sent``: bytes that each of ``world_size`` ranks sends at least (the mean over the ranks).

    To be made before DeepSpeed is imported, which keeps the functions that it finds then.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.sent = 0.0
        self._inside = False
        for name in ("all_reduce", *ONCE):
            if hasattr(dist, name):
                setattr(dist, name, self._counting(name, getattr(dist, name)))

    def _counting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapper(*given: Any, **named: Any) -> Any:
            size = max(map(_bytes, [*given, *named.values()]), default=0)
            inside, self._inside = self._inside, True  # one collective may be made of another
            try:
                if not inside:
                    self.sent += (1 if name in ONCE else 2) * size * (self.world_size - 1) / self.world_size
                return call(*given, **named)
            finally:
                self._inside = inside

        return wrapper

"""Memory for batches that is used again: the system hands out and clears its pages once, and not for each batch."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALLEST = 12
"""log2 of the bytes of the smallest block."""


class Buffers:
    """Arrays whose memory comes back when neither they, nor views and tensors made of them, are there any more.

    Called like ``numpy.empty``. The step need not say that it is done with a batch: what still refers to it (a tensor,
    what autograd has kept for the backward pass) keeps it from being written over. Threads may share one.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[NDArray[np.uint8]]] = {}

    def __call__(self, shape: int, dtype: Any) -> NDArray[Any]:
        size = shape * np.dtype(dtype).itemsize
        if size == 0:
            return np.empty(0, dtype)
        free = self._free.setdefault(max(_SMALLEST, (size - 1).bit_length()), [])
        try:
            block = free.pop()
        except IndexError:
            block = np.empty(1 << max(_SMALLEST, (size - 1).bit_length()), np.uint8)
        # As its base is no array, views of this one refer to it and not to the block behind it (numpy shortens chains).
        array: NDArray[Any] = np.frombuffer(block.data, dtype, shape)
        weakref.finalize(array, free.append, block).atexit = False
        return array

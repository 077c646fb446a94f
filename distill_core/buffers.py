"""Memory for batches that is used again: the system hands out and clears its pages once, and not for each batch."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALLEST = 12
"""log2 of the bytes of the smallest block."""


class _Loan(weakref.ref[Any]):
    """An array that is in use, its block, and where that goes when the array is gone. (``weakref.finalize`` does the
    same and takes three times as long.)"""

    __slots__ = ("block", "free")
    block: NDArray[np.uint8]
    free: list[NDArray[np.uint8]]


class Buffers:
    """Arrays whose memory comes back when neither they, nor views and tensors made of them, are there any more.

    Called like ``numpy.empty``. The step need not say that it is done with a batch: what still refers to it (a tensor,
    what autograd has kept for the backward pass) keeps it from being written over. Threads may share one.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[NDArray[np.uint8]]] = {}
        self._lent: dict[int, _Loan] = {}

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
        loan = _Loan(array, self._back)
        loan.block, loan.free = block, free
        self._lent[id(loan)] = loan
        return array

    def _back(self, loan: Any) -> None:
        del self._lent[id(loan)]
        loan.free.append(loan.block)

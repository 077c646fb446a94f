"""Memory of batches that is used again, and never while something still refers to it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from distill_core.buffers import Buffers


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_memory_comes_back(dtype: type) -> None:
    buffers = Buffers()
    first = buffers(5000, dtype)
    assert first.shape == (5000,) and first.dtype == dtype and first.flags.writeable and first.flags.c_contiguous
    where = address(first)
    other = buffers(5000, dtype)
    assert address(other) != where
    del first
    assert address(buffers(4900, dtype)) == where  # the same size in powers of two


def test_views_and_tensors_keep_it() -> None:
    buffers = Buffers()
    array = buffers(6000, np.int64)
    where = address(array)
    view, tensor = array[:100][10:20], torch.from_numpy(array[3:50])
    del array
    again = buffers(6000, np.int64)
    assert address(again) != where
    del view
    assert address(buffers(6000, np.int64)) != where  # the tensor is still there
    part = tensor[5:]
    del tensor
    kept = [buffers(6000, np.int64) for _ in range(3)]
    assert where not in [address(array) for array in kept]
    del part
    assert where in [address(buffers(6000, np.int64))]


def test_what_autograd_keeps_stays() -> None:
    buffers = Buffers()
    ids = buffers(2000, np.int32)
    ids[:] = 1
    where, words = address(ids), torch.nn.Embedding(5, 3)
    out = words(torch.from_numpy(ids))
    del ids
    assert address(buffers(2000, np.int32)) != where
    out.sum().backward()
    assert words.weight.grad is not None
    assert words.weight.grad.sum(1).tolist() == [0, 6000, 0, 0, 0]
    del out
    assert address(buffers(2000, np.int32)) == where


def test_nothing_is_an_array_too() -> None:
    assert Buffers()(0, np.int32).shape == (0,)


def test_threads_share_it() -> None:
    """Each writes its number into what it gets and finds nothing else there."""
    buffers, wrong = Buffers(), list[int]()

    def work(number: int) -> None:
        for size in range(2000, 2300):
            array = buffers(size, np.int64)
            array[:] = number
            if not (array == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

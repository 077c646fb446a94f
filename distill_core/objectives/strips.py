"""Elementwise work some rows at a time.

On a CPU each pass over a tensor that does not fit the cache costs several times its arithmetic, and a tensor of some
megabytes often comes from the system anew, page by page (half a millisecond a megabyte in a virtual machine).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill_core.decoder import wide
from distill_core.kernels import few_kernels, long_pieces

ENTRIES = 2**18
"""Of a strip on a CPU: 1 MiB in fp32."""


def strips(matrix: Tensor) -> Iterator[slice]:
    """The rows of ``matrix`` [rows, width] in pieces; on a GPU, whose kernels want many rows, in one."""
    rows, width = matrix.shape
    step = max(1, rows if long_pieces(matrix.device) else ENTRIES // width)
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


@few_kernels(lambda mine, theirs, into: (mine, theirs, into))
def _apart(mine: Tensor, theirs: Tensor, into: Tensor) -> Tensor:
    """|mine - theirs|²; the difference is written to ``into``."""
    difference = wide(mine) - wide(theirs)
    into.copy_(difference)
    return difference.square_().sum()


class _SquaredDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: Tensor, theirs: Tensor) -> Tensor:
        total = wide(mine.new_zeros(()))
        apart = torch.empty_like(mine)
        for rows in strips(mine):
            total += _apart(mine[rows], theirs[rows], apart[rows])
        ctx.save_for_backward(apart)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (apart,) = ctx.saved_tensors
        return apart.mul_(2 * upstream), None  # in place: a second backward pass is refused by torch


def squared_distance(mine: Tensor, theirs: Tensor) -> Tensor:
    """|mine - theirs|², a scalar in fp32 (fp64 is kept), with its gradient with respect to ``mine`` alone.

    Kept for the backward pass is the difference, in the precision of ``mine``, in which the gradient leaves anyway.

    Args:
        mine, theirs: [rows, width].
    """
    found: Tensor = _SquaredDistance.apply(mine, theirs)  # type: ignore[no-untyped-call]
    return found

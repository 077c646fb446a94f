"""Dropout whose masks are cheap to draw on a CPU, where torch's Bernoulli draws took as long as the matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LANE = 65536
"""Values of a 16-bit lane: four decisions from each 64-bit draw, so that rates are kept to within 2^-17."""


class Draws:
    """Masks from one seed: 16-bit lanes of numpy's SFC64, twice as fast as torch's generator."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.SFC64(seed))

    def kept(self, shape: Sequence[int], p: float, one: int = 1) -> Tensor:
        """int16 of ``shape``: 0 with probability ``p`` (rounded to a multiple of 2^-16), else ``one``."""
        count = math.prod(shape)
        draws = self._generator.integers(0, 2**64, size=-(-count // 4), dtype=np.uint64)
        lanes = torch.from_numpy(draws.view(np.int16))[:count].view(*shape)
        lanes.ge_(min(round(p * LANE), LANE - 1) - LANE // 2)
        return lanes if one == 1 else lanes.mul_(one)


def new_seed() -> int:
    """Drawn from torch's own generator (``torch.manual_seed``)."""
    return int(torch.randint(2**62, ()))


@torch.library.custom_op("zhengliu::keep_mask", mutates_args=(), tags=torch.Tag.nondeterministic_seeded)
def _keep_mask(like: Tensor, p: float) -> Tensor:
    draws = Draws(new_seed())
    if like.element_size() == 2:  # the bits of 1.0: no other conversion is as fast
        one = int(torch.ones((), dtype=like.dtype).view(torch.int16))
        return draws.kept(like.shape, p, one).view(like.dtype)
    return draws.kept(like.shape, p).to(like.dtype)


@_keep_mask.register_fake
def _(like: Tensor, p: float) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def keep_mask(like: Tensor, p: float) -> Tensor:
    """0 with probability ``p``, else 1, from torch's own generator.

    An operator of its own, since torch.compile and plans (on tensors without data) know nothing of numpy.

    Args:
        like: whose shape and dtype (any floating one) the mask has; on the CPU.
        p: from 0 to below 1, rounded to a multiple of 2^-16.
    """
    mask: Tensor = _keep_mask(like.detach(), p)
    return mask


def zero_where(values: Tensor, kept: Tensor) -> Tensor:
    """``values`` [..., 2 or more bytes each] made 0 where the int16 mask ``kept`` (0, 1) is, in place."""
    if values.element_size() == 2:  # the product of a number's bits and 1 is the number
        values.view(torch.int16).mul_(kept)
        return values
    return values.mul_(kept)


class _Dropped(torch.autograd.Function):
    """dropout(x) + residual in one pass, the factor 1 / (1 - p) unrounded, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, p: float) -> Tensor:
        mask = keep_mask(x, p)
        ctx.save_for_backward(mask)
        ctx.factor = 1 / (1 - p)
        return torch.addcmul(residual, x, mask, value=ctx.factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (mask,) = ctx.saved_tensors
        residual = grad if ctx.needs_input_grad[1] else None
        return torch.addcmul(grad.new_zeros(()), grad, mask, value=ctx.factor), residual, None


class Dropout(nn.Module):
    """torch's dropout on other devices, its own masks (:func:`keep_mask`) on a CPU."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        return _dropped(x, x.new_zeros(()), self.p) if x.device.type == "cpu" else F.dropout(x, self.p)

    def added(self, x: Tensor, residual: Tensor) -> Tensor:
        """dropout(x) + residual, on a CPU in one pass."""
        if self.training and self.p and x.device.type == "cpu":
            return _dropped(x, residual, self.p)
        return self(x) + residual  # type: ignore[no-any-return]


def _dropped(x: Tensor, residual: Tensor, p: float) -> Tensor:
    found: Tensor = _Dropped.apply(x, residual, p)  # type: ignore[no-untyped-call]
    return found

"""Dropout whose masks are cheap to draw on a CPU, where torch's Bernoulli draws took as long as the matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LANE = 65536
"""Values of a 16-bit lane: four decisions from each 64-bit draw, so that rates are kept to within 2^-17."""


def keep_mask(like: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
    """What to multiply with: 0 with probability ``p``, else 1 / (1 - p).

    Args:
        like: whose shape and dtype (any floating one) the mask has; on the CPU.
        p: from 0 to below 1, rounded to a multiple of 2^-16.
        generator: default: torch's own (``torch.manual_seed``).
    """
    count = like.numel()
    draws = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    lanes = draws.view(torch.int16)[:count].view(like.shape)
    mask = torch.empty_like(like, memory_format=torch.contiguous_format, requires_grad=False)
    torch.ge(lanes, min(round(p * LANE), LANE - 1) - LANE // 2, out=mask)
    return mask.mul_(1 / (1 - p))


class Dropout(nn.Module):
    """torch's dropout on other devices, its own masks (:func:`keep_mask`) on a CPU."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        return x * keep_mask(x, self.p) if x.device.type == "cpu" else F.dropout(x, self.p)

    def added(self, x: Tensor, residual: Tensor) -> Tensor:
        """dropout(x) + residual, on a CPU in one pass."""
        if self.training and self.p and x.device.type == "cpu":
            return torch.addcmul(residual, x, keep_mask(x, self.p))
        return self(x) + residual  # type: ignore[no-any-return]

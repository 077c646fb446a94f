"""What is done to logits before they are compared: temperatures by row, corrections of the teacher's, softmax."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

TemperatureRule = Literal["constant", "flsw", "cwsm"]
FLOOR = 0.1
"""Of a row's temperature, as a share of the base: below 0 a rule would turn the distribution round."""


def softmax_and_norms(z: Tensor) -> tuple[Tensor, Tensor]:
    """softmax of each row [rows, V], and log sum_v exp(z_v) [rows, 1], from one pass of exponentials.

    The norm is read off the largest entry, where the softmax is at least 1 / V. On a CPU ``exp`` alone takes longer
    than all that ``softmax`` does.
    """
    q = F.softmax(z, dim=-1)
    return q, z.amax(-1, keepdim=True) - q.amax(-1, keepdim=True).log()


def flsw(mine: Tensor, theirs: Tensor, gamma: float) -> Tensor:
    """(1 - cos(z_S, z_T))^gamma of each row. Source: arXiv 1911.07471 as in TextBrewer (1e-4 added to the norms)."""
    a, b = (z / (torch.linalg.vector_norm(z, dim=-1, keepdim=True) + 1e-4) for z in (mine, theirs))
    distance: Tensor = 1 - (a * b).sum(-1)
    return distance.clamp(min=0).pow(gamma)


def cwsm(mine: Tensor) -> Tensor:
    """1 / (max_v softmax(z_S)_v + 1e-3) of each row. Source: as above."""
    return 1 / (F.softmax(mine, dim=-1).amax(-1) + 1e-3)


def row_temperatures(weights: Tensor, group: Tensor, groups: int, base: float, beta: float) -> Tensor:
    """base + beta (mean(w) - w), the mean over the rows of the same group; at least ``FLOOR`` times the base.

    A group is a sequence. TextBrewer takes one for the whole batch, so that a row's temperature there depends on what
    else is in the batch (and on the rank); it has no floor.

    Args:
        weights: [rows], w.
        group: int64 [rows], the number of each row's group, ascending.
        groups: how many there are.
    """
    counts = group.new_zeros(groups).index_add_(0, group, torch.ones_like(group))  # a GPU is waited for by bincount,
    # and by segment_reduce unless it need not check the counts; unlike index_add_, that adds in a fixed order
    sums = torch.segment_reduce(weights, "sum", lengths=counts, unsafe=True)
    mean = (sums / counts.clamp(min=1))[group]
    return (base + beta * (mean - weights)).clamp(min=FLOOR * base)


def shifted(theirs: Tensor, gold: Tensor) -> Tensor:
    """The teacher's logits with the highest and the gold label's exchanged, so that the gold label has the highest.

    Args:
        theirs: [rows, V], left as it is.
        gold: int64 [rows]; a row with a negative label keeps its logits.
    """
    top = theirs.argmax(-1, keepdim=True)
    label = torch.where(gold[:, None] < 0, top, gold[:, None])
    exchanged = theirs.scatter(-1, top, theirs.gather(-1, label))
    return exchanged.scatter_(-1, label, theirs.gather(-1, top))


def made_fair(theirs: Tensor, pairs: Tensor) -> Tensor:
    """The teacher's logits [rows, V] with those of both tokens of each pair (int64 [P, 2]) replaced by their mean."""
    mean = theirs[:, pairs].mean(-1)  # [rows, P]
    return theirs.index_copy(1, pairs.flatten(), mean.repeat_interleave(2, dim=1))

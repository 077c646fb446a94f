"""Earth mover's distance between the layers of the two models (BERT-EMD): each student layer learns from those teacher
layers that it is cheapest to make it like."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from distill_core.batch import Batch
from distill_core.decoder import wide
from distill_core.features import FeatureRequest, Features
from distill_core.flops import Flops
from distill_core.models.attention import AttentionLayout
from distill_core.models.config import EncoderConfig
from distill_core.objectives.base import OBJECTIVES, Needs, Term, TermConfig, taught
from distill_core.objectives.projection import ProjectionName, Projections


class EmdConfig(TermConfig):
    kind: Literal["emd"]
    projection: ProjectionName = "auto"
    """On the student's side; ``auto``: linear where the widths differ."""
    shared_projection: bool = False
    """One map for all student layers instead of one for each."""

    def pairs(self, teacher_layers: int, student_layers: int) -> list[tuple[int, int]]:
        return [(t, s) for s in range(1, student_layers + 1) for t in range(1, teacher_layers + 1)]


@OBJECTIVES.add("emd")
class Emd(Term):
    """Mean over tokens of sum_st F_st |W_s h_S[s] + b_s - h_T[t]|² / H_T, F the cheapest transport between the layers.

    F >= 0 has sum_t F_st = 1 / N_S and sum_s F_st = 1 / N_T (uniform layer weights; embeddings are left out and can be
    matched by ``hidden_mse``), and is found without gradient. Source: BERT-EMD (arXiv 2010.06133), hidden states, as
    in TextBrewer's example. That solves the transport once for a whole batch on its mean costs; here it is solved for
    each sequence on its own costs, so that the grouping of sequences into batches and ranks changes nothing.

    The costs are fetched from the device once a batch.

    Raises:
        ConfigError: ``projection: none`` between different widths.
    """

    Config = EmdConfig
    count = "tokens"

    def __init__(self, config: EmdConfig, student: EncoderConfig, teacher: EncoderConfig | None) -> None:
        super().__init__(config, student, teacher)
        teacher = taught(config.kind, teacher)
        self.students = range(1, student.num_hidden_layers + 1)
        self.teachers = range(1, teacher.num_hidden_layers + 1)
        widths = (student.hidden_size, teacher.hidden_size)
        layers = len(self.students)
        self.project = Projections(config.projection, config.shared_projection, layers, *widths, config.kind)

    def needs(self) -> Needs:
        return Needs(FeatureRequest(hidden=frozenset(self.students)), FeatureRequest(hidden=frozenset(self.teachers)))

    def flops(self) -> Flops:
        return self.project.flops("tokens")

    def forward(self, student: Features, teacher: Features, batch: Batch, progress: float) -> dict[str, Tensor]:
        mine = [wide(self.project(i, student.hidden[s])) for i, s in enumerate(self.students)]
        theirs = [wide(teacher.hidden[t]) for t in self.teachers]
        flows = transport(layer_costs(mine, theirs, batch.layout).cpu().numpy())
        total = mine[0].new_zeros(())
        for s, projected in enumerate(mine):
            target, spread = centre(flows[:, s] * len(mine), theirs, batch.layout.sequence)
            total = total + (projected - target).square().sum() + spread
        return {"emd": total / (len(mine) * theirs[0].shape[-1])}


@torch.no_grad()
def centre(shares: NDArray[np.float64], theirs: list[Tensor], sequence: Tensor) -> tuple[Tensor, Tensor]:
    """What one student layer is drawn to, and what that leaves out.

    With m = sum_t w_t h_t and weights that sum to 1, sum_t w_t |p - h_t|² = |p - m|² + sum_t w_t |h_t - m|²: one
    difference is kept for the backward pass instead of one for each teacher layer.

    Args:
        shares: [B, N_T], the weights w of each sequence.
        theirs: N_T times [N, H].
        sequence: int64 [N].

    Returns:
        m, [N, H], and the last sum over all tokens, a scalar.
    """
    used = [
        (torch.from_numpy(shares[:, t]).to(h.device, h.dtype)[sequence], h)
        for t, h in enumerate(theirs)
        if shares[:, t].any()
    ]
    mean = torch.zeros_like(theirs[0])
    for weight, h in used:
        mean.addcmul_(weight[:, None], h)
    spread = torch.stack([weight @ (h - mean).square().sum(-1) for weight, h in used]).sum()
    return mean, spread


@torch.no_grad()
def layer_costs(mine: list[Tensor], theirs: list[Tensor], where: AttentionLayout) -> Tensor:
    """|p_s - h_t|², summed over the tokens of each sequence: [B, N_S, N_T], in fp64."""
    tokens = [(p - h).square().sum(-1, dtype=torch.float64) for p in mine for h in theirs]
    costs = torch.segment_reduce(torch.stack(tokens, dim=1), "sum", lengths=where.sizes)
    return costs.view(-1, len(mine), len(theirs))


def transport(costs: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cheapest transport between uniform weights, exactly.

    With n = lcm(N_S, N_T), each student layer cut into n / N_S parts and each teacher layer into n / N_T, all parts
    weigh 1 / n: an assignment problem, at a vertex of whose solutions parts are moved whole (Birkhoff).

    Args:
        costs: [B, N_S, N_T].

    Returns:
        [B, N_S, N_T], rows that sum to 1 / N_S and columns that sum to 1 / N_T.
    """
    flows = np.zeros_like(costs)
    students, teachers = costs.shape[1:]
    n = math.lcm(students, teachers)
    for flow, cost in zip(flows, costs, strict=True):
        parts = np.repeat(np.repeat(cost, n // students, 0), n // teachers, 1)
        rows, columns = linear_sum_assignment(parts)
        np.add.at(flow, (rows // (n // students), columns // (n // teachers)), 1 / n)
    return flows

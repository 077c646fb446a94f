"""Losses between hidden states of pairs of layers, token by token. All in fp32 (fp64 is kept)."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from distill_core.batch import Batch
from distill_core.decoder import wide
from distill_core.features import FeatureRequest, Features
from distill_core.flops import Flops
from distill_core.models.attention import AttentionLayout
from distill_core.models.config import EncoderConfig
from distill_core.objectives.base import OBJECTIVES, Needs, Term, TermConfig, taught
from distill_core.objectives.layers import LayerMap, layer_pairs
from distill_core.objectives.projection import ProjectionName, Projections
from distill_core.objectives.strips import squared_distance


class MatchConfig(TermConfig):
    """A loss between hidden states of pairs of layers."""

    embeddings: ClassVar[bool] = True
    """Whether layer 0 can be matched, and is by the named maps."""

    layers: LayerMap
    """(teacher, student) pairs, 0 = the embedding output, i = the output of layer i; or the name of a map."""
    projection: ProjectionName = "auto"
    """On the student's side; ``auto``: linear where the widths differ."""
    shared_projection: bool = False
    """One map for all pairs, as in TinyBERT's code, instead of one for each."""

    def pairs(self, teacher_layers: int, student_layers: int) -> list[tuple[int, int]]:
        return layer_pairs(self.layers, teacher_layers, student_layers, self.kind, self.embeddings)


class HiddenMatch(Term):
    """What the losses between hidden states have in common: the pairs, the projections, the requests.

    Raises:
        ConfigError: a layer is out of range, or ``projection: none`` between different widths.
    """

    def __init__(self, config: MatchConfig, student: EncoderConfig, teacher: EncoderConfig | None) -> None:
        super().__init__(config, student, teacher)
        teacher = taught(config.kind, teacher)
        self.pairs = config.pairs(teacher.num_hidden_layers, student.num_hidden_layers)
        self.project = Projections(
            config.projection,
            config.shared_projection,
            len(self.pairs),
            student.hidden_size,
            teacher.hidden_size,
            config.kind,
        )

    def needs(self) -> Needs:
        return Needs(
            FeatureRequest(hidden=frozenset(s for _, s in self.pairs)),
            FeatureRequest(hidden=frozenset(t for t, _ in self.pairs)),
        )

    def flops(self) -> Flops:
        return self.project.flops(self.count)

    def names(self) -> list[str]:
        return [f"{self.kind}/{t}-{s}" for t, s in self.pairs]

    def rows(self, where: AttentionLayout) -> Tensor | None:
        """int64, the rows of a stream that are compared; None: all of them."""
        return None

    def forward(self, student: Features, teacher: Features, batch: Batch, progress: float) -> dict[str, Tensor]:
        rows, their_rows, sums = self.rows(batch.layout), self.rows(teacher.where(batch)), {}
        for match, (name, (t, s)) in enumerate(zip(self.names(), self.pairs, strict=True)):
            mine, theirs = student.hidden[s], teacher.hidden[t]
            if rows is not None and their_rows is not None:
                mine, theirs = mine[rows], theirs[their_rows]
            sums[name] = self.compare(self.project(match, mine), theirs)
        return sums

    @abstractmethod
    def compare(self, mine: Tensor, theirs: Tensor) -> Tensor:
        """The sum over rows of the projected student [rows, H_T] against the teacher [rows, H_T]: a scalar in fp32."""


class HiddenMseConfig(MatchConfig):
    kind: Literal["hidden_mse"]


@OBJECTIVES.add("hidden_mse")
class HiddenMse(HiddenMatch):
    """For each pair (t, s): mean over real tokens and teacher width of (W h_S[s] + b - h_T[t])².

    Source: TextBrewer ``hid_mse_loss`` with independent linear projections (weights N(0, 0.02), bias 0) on
    the student, as MiniRBT uses it (arXiv 2304.00717); on real tokens, of which a token stream has no others.
    TinyBERT's (arXiv 1909.10351, eq. 8-9) with ``projection: linear`` and ``shared_projection: true``.
    """

    Config = HiddenMseConfig
    count = "tokens"

    def compare(self, mine: Tensor, theirs: Tensor) -> Tensor:
        return squared_distance(mine, theirs) / theirs.shape[-1]


def direction_distance(mine: Tensor, theirs: Tensor) -> Tensor:
    """The sum over rows of |u - v|² = 2 (1 - cos), u and v the rows at length 1: exactly 0 for equal rows."""
    return (F.normalize(wide(mine), dim=-1) - F.normalize(wide(theirs), dim=-1)).square().sum()


class HiddenCosineConfig(MatchConfig):
    kind: Literal["hidden_cosine"]
    layers: LayerMap = "last"


@OBJECTIVES.add("hidden_cosine")
class HiddenCosine(HiddenMatch):
    """For each pair (t, s): mean over real tokens of 1 - cos(h_S[s], h_T[t]).

    Source: DistilBERT (arXiv 1910.01108), its cosine embedding loss on the last hidden states; the projection for
    students of another width is TextBrewer's. Computed as half the squared distance of the normalised vectors.
    """

    Config = HiddenCosineConfig
    count = "tokens"

    def compare(self, mine: Tensor, theirs: Tensor) -> Tensor:
        return direction_distance(mine, theirs) / 2


class PkdConfig(MatchConfig):
    embeddings: ClassVar[bool] = False

    kind: Literal["pkd"]
    layers: LayerMap
    """The paper leaves the last layers out. For 12 and 6: PKD-Skip [[2, 1], [4, 2], [6, 3], [8, 4], [10, 5]],
    PKD-Last [[7, 1], [8, 2], [9, 3], [10, 4], [11, 5]]."""


@OBJECTIVES.add("pkd")
class Pkd(HiddenMatch):
    """For each pair (t, s): mean over sequences of |h_S / |h_S| - h_T / |h_T||², h the first token's hidden state.

    Source: Patient knowledge distillation (arXiv 1908.09355), eq. 7; TextBrewer ``pkd_loss``.
    """

    Config = PkdConfig
    count = "sequences"
    aligned = "sequences"

    def rows(self, where: AttentionLayout) -> Tensor:
        return where.starts

    def compare(self, mine: Tensor, theirs: Tensor) -> Tensor:
        return direction_distance(mine, theirs)

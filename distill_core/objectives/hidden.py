"""Losses on hidden states."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from distill_core.batch import Batch
from distill_core.features import FeatureRequest, Features
from distill_core.models.config import EncoderConfig
from distill_core.objectives.base import OBJECTIVES, Needs, Term, TermConfig
from distill_core.objectives.layers import LayerMap, layer_pairs
from distill_core.objectives.projection import ProjectionName, Projections


class MatchConfig(TermConfig):
    """A loss between hidden states of pairs of layers."""

    layers: LayerMap
    """(teacher, student) pairs, 0 = the embedding output, i = the output of layer i; or the name of a map."""
    projection: ProjectionName = "auto"
    """On the student's side; ``auto``: linear where the widths differ."""
    shared_projection: bool = False
    """One map for all pairs, as in TinyBERT's code, instead of one for each."""

    def pairs(self, teacher_layers: int, student_layers: int) -> list[tuple[int, int]]:
        return layer_pairs(self.layers, teacher_layers, student_layers, self.kind, embeddings=True)


class HiddenMatch(Term):
    """What the losses between hidden states have in common: the pairs, the projections, the requests."""

    def __init__(self, config: MatchConfig, student: EncoderConfig, teacher: EncoderConfig | None) -> None:
        super().__init__(config, student, teacher)
        assert teacher is not None
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

    def names(self) -> list[str]:
        return [f"{self.kind}/{t}-{s}" for t, s in self.pairs]

    def matched(self, student: Features, teacher: Features) -> list[tuple[str, Tensor, Tensor]]:
        """(name, projected student [N, H_T], teacher [N, H_T]) of each pair, in fp32."""
        return [
            (name, self.project(match, student.hidden[s]).float(), teacher.hidden[t].float())
            for match, (name, (t, s)) in enumerate(zip(self.names(), self.pairs, strict=True))
        ]


class HiddenMseConfig(MatchConfig):
    kind: Literal["hidden_mse"]


@OBJECTIVES.add("hidden_mse")
class HiddenMse(HiddenMatch):
    """For each pair (t, s): mean over real tokens and teacher width of (W h_S[s] + b - h_T[t])², in fp32.

    Source: TextBrewer ``hid_mse_loss`` with independent linear projections (weights N(0, 0.02), bias 0) on
    the student, as MiniRBT uses it (arXiv 2304.00717); on real tokens, of which a token stream has no others.
    """

    Config = HiddenMseConfig
    count = "tokens"

    def forward(self, student: Features, teacher: Features, batch: Batch, progress: float) -> dict[str, Tensor]:
        return {
            name: (mine - theirs).square().sum() / theirs.shape[-1]
            for name, mine, theirs in self.matched(student, teacher)
        }

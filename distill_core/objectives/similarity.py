"""Losses between products of hidden states of two layers: tokens with tokens (``nst``), widths with widths (``fsp``).

A match is two layers of each model, [[t1, t2], [s1, s2]]; often the same one twice.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distill_core.batch import Batch
from distill_core.features import FeatureRequest, Features
from distill_core.flops import Flops, gram_flops, matrix_flops
from distill_core.models.config import EncoderConfig
from distill_core.objectives.attention import score_distance
from distill_core.objectives.base import OBJECTIVES, Needs, Term, TermConfig, taught
from distill_core.objectives.layers import MapName, check_listed, layer_pairs
from distill_core.objectives.projection import ProjectionName, Projections
from distill_core.objectives.tiles import Factors, tiles

Two = tuple[tuple[int, int], tuple[int, int]]
"""((teacher layer, teacher layer), (student layer, student layer))."""


class SimilarityConfig(TermConfig):
    layers: MapName | list[tuple[int, int] | Two]
    """[[teacher, teacher], [student, student]] for each match; [teacher, student] and the named maps take the same
    layer twice. 0 = the embedding output, i = the output of layer i."""

    def matches(self, teacher_layers: int, student_layers: int) -> list[Two]:
        """All matches in the long form.

        Raises:
            ConfigError: when the two depths do not allow the map.
        """

        def checked(layers: MapName | list[tuple[int, int]]) -> list[tuple[int, int]]:
            return layer_pairs(layers, teacher_layers, student_layers, self.kind, embeddings=True)

        if isinstance(self.layers, str):
            return [((t, t), (s, s)) for t, s in checked(self.layers)]
        found: list[Two] = []
        for a, b in self.layers:
            two = ((a, a), (b, b)) if isinstance(a, int) else (a, b)
            for pair in zip(*two, strict=True):  # one by one: the same layer twice is one of the forms
                checked([pair])
            found.append(two)  # type: ignore[arg-type]
        check_listed(found, self.kind)
        return found

    def pairs(self, teacher_layers: int, student_layers: int) -> list[tuple[int, int]]:
        every = [pair for two in self.matches(teacher_layers, student_layers) for pair in zip(*two, strict=True)]
        return list(dict.fromkeys(every))


class Similarity(Term):
    """What ``nst`` and ``fsp`` have in common: the matches, their names and the requests."""

    def __init__(self, config: SimilarityConfig, student: EncoderConfig, teacher: EncoderConfig | None) -> None:
        super().__init__(config, student, teacher)
        teacher = taught(config.kind, teacher)
        self.matches = config.matches(teacher.num_hidden_layers, student.num_hidden_layers)

    def needs(self) -> Needs:
        return Needs(
            FeatureRequest(hidden=frozenset(layer for _, layers in self.matches for layer in layers)),
            FeatureRequest(hidden=frozenset(layer for layers, _ in self.matches for layer in layers)),
        )

    def names(self) -> list[str]:
        """``kind/T-S``, or ``kind/T1xT2-S1xS2`` for different layers."""

        def called(layers: tuple[int, int]) -> str:
            return f"{layers[0]}" if layers[0] == layers[1] else f"{layers[0]}x{layers[1]}"

        return [f"{self.kind}/{called(t)}-{called(s)}" for t, s in self.matches]


class NstConfig(SimilarityConfig):
    kind: Literal["nst"]
    form: Literal["auto", "gram", "direct"] = "auto"
    """How it is computed: from H x H products or from all L x L; ``auto``: whichever is less work at a length."""


@OBJECTIVES.add("nst")
class Nst(Similarity):
    """For each match: mean over pairs of tokens of a sequence of (h_i h_jᵀ / H_S - h_i' h_j'ᵀ / H_T)², in fp32.

    The widths may differ; there is no projection. Source: neuron selectivity transfer (arXiv 1707.01219) as in
    TextBrewer's ``mmd_loss`` (``nst``, ``mmd``). With a mask that code divides by the padded length instead of the
    width, so that its value depends on the padding; here it is the width, as in its own definition without a mask.

    The ``gram`` form is exact; near the teacher and at different widths it loses digits (``gram.py``). A bounded
    number of entries of the L x L matrices exists at a time (``tiles.py``).
    """

    Config = NstConfig
    count = "pairs"

    def __init__(self, config: NstConfig, student: EncoderConfig, teacher: EncoderConfig | None) -> None:
        super().__init__(config, student, teacher)
        self.form = config.form
        self.widths = (student.hidden_size, taught(config.kind, teacher).hidden_size)

    def flops(self) -> Flops:
        """As for long sequences, which take the ``gram`` form, unless the run file wants the other."""
        each = matrix_flops(*self.widths, matrices=1) if self.form == "direct" else gram_flops(*self.widths, heads=1)
        return each * len(self.matches)

    def forward(self, student: Features, teacher: Features, batch: Batch, progress: float) -> dict[str, Tensor]:
        return {
            name: score_distance(_products(student, s), _products(teacher, t), batch.layout, self.form)
            for name, (t, s) in zip(self.names(), self.matches, strict=True)
        }


def _products(features: Features, layers: tuple[int, int]) -> Factors:
    """As one head of the full width."""
    left, right = (features.hidden[layer].unsqueeze(1) for layer in layers)
    return Factors(left, right, 1 / right.shape[-1])


class FspConfig(SimilarityConfig):
    kind: Literal["fsp"]
    projection: ProjectionName = "auto"
    """On the student's side, one for both layers of a match; ``auto``: linear where the widths differ."""
    shared_projection: bool = False
    """One map for all matches instead of one for each."""


@OBJECTIVES.add("fsp")
class Fsp(Similarity):
    """For each match: mean over sequences and H² entries of (h_iᵀ h_j / L - h_i'ᵀ h_j' / L)², L the length, in fp32.

    Source: flow of the solution procedure (Yim et al., CVPR 2017), eq. 1-2, as in TextBrewer's ``fsp_loss`` (``fsp``,
    ``gram``): the student's hidden states are projected to the teacher's width first.

    Raises:
        ConfigError: ``projection: none`` between different widths.
    """

    Config = FspConfig
    count = "sequences"

    def __init__(self, config: FspConfig, student: EncoderConfig, teacher: EncoderConfig | None) -> None:
        super().__init__(config, student, teacher)
        teacher = taught(config.kind, teacher)
        shapes = (student.hidden_size, teacher.hidden_size)
        self.project = Projections(config.projection, config.shared_projection, len(self.matches), *shapes, config.kind)

    def flops(self) -> Flops:
        width = self.project.sizes[1]
        return self.project.flops("tokens") + Flops({"tokens": 8.0 * width**2 * len(self.matches)})

    def forward(self, student: Features, teacher: Features, batch: Batch, progress: float) -> dict[str, Tensor]:
        sums = {}
        for match, (name, (t, s)) in enumerate(zip(self.names(), self.matches, strict=True)):
            projected = {layer: self.project(match, student.hidden[layer]) for layer in set(s)}
            sums[name] = flow_distance([projected[i] for i in s], [teacher.hidden[i] for i in t], batch)
        return sums


def flow_distance(mine: list[Tensor], theirs: list[Tensor], batch: Batch) -> Tensor:
    """The sum over sequences of the mean squared difference of aᵀ b / L: of some sequences at a time, a scalar.

    Args:
        mine, theirs: a and b, each [N, H].
    """
    where, width = batch.layout, theirs[0].shape[-1]
    streams = [t.unsqueeze(1) for t in (*mine, *theirs)]
    cut = list(tiles(where, lambda length: width * max(width, length)))

    def value(number: int, *streams: Tensor) -> Tensor:
        tile = cut[number]
        a, b, c, d = (tile.spread(t, where).squeeze(1) for t in streams)
        lengths = where.sizes[tile.first : tile.last, None, None]
        return ((a.mT @ b - c.mT @ d) / lengths).square().sum() / width**2

    if len(cut) == 1 or not torch.is_grad_enabled():
        return torch.stack([value(number, *streams) for number in range(len(cut))]).sum()
    parts = [
        checkpoint(value, number, *streams, use_reentrant=False, preserve_rng_state=False) for number in range(len(cut))
    ]
    return torch.stack(parts).sum()

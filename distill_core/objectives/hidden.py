"""Losses on hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import Tensor, nn

from configs.errors import ConfigError
from distill_core.features import FeatureRequest, Features
from distill_core.models.config import EncoderConfig
from distill_core.objectives.base import OBJECTIVES, Needs, Term, TermConfig

if TYPE_CHECKING:
    from distill_core.data import Batch


class HiddenMseConfig(TermConfig):
    kind: Literal["hidden_mse"]
    layers: list[tuple[int, int]] = Field(min_length=1)
    """(teacher, student) pairs; 0 is the embedding output, i the output of layer i."""
    projection: Literal["auto", "linear", "none"] = "auto"
    """On the student's side, one per pair; ``auto``: linear where the widths differ."""

    def pairs(self) -> list[tuple[int, int]]:
        return [(t, s) for t, s in self.layers]


@OBJECTIVES.add("hidden_mse")
class HiddenMse(Term):
    """For each pair (t, s): mean over real tokens and teacher width of (W h_S[s] + b - h_T[t])², in fp32.

    Source: TextBrewer ``hid_mse_loss`` with independent linear projections (weights N(0, 0.02), bias 0) on
    the student, as MiniRBT uses it (arXiv 2304.00717); on real tokens, of which a token stream has no others.
    """

    Config = HiddenMseConfig
    count = "tokens"

    def __init__(self, config: HiddenMseConfig, student: EncoderConfig, teacher: EncoderConfig | None) -> None:
        super().__init__(config, student, teacher)
        assert teacher is not None
        self.pairs = config.pairs()
        for t, s in self.pairs:
            _check_layer("teacher", t, teacher)
            _check_layer("student", s, student)
        widths_differ = student.hidden_size != teacher.hidden_size
        if widths_differ and config.projection == "none":
            raise ConfigError(
                f"hidden_mse with projection: none needs equal widths, but the student has {student.hidden_size} "
                f"and the teacher {teacher.hidden_size}; use projection: linear."
            )
        project = config.projection == "linear" or (config.projection == "auto" and widths_differ)
        self.projections = nn.ModuleList(
            _projection(student.hidden_size, teacher.hidden_size) if project else nn.Identity() for _ in self.pairs
        )

    def needs(self) -> Needs:
        return Needs(
            FeatureRequest(hidden=frozenset(s for _, s in self.pairs)),
            FeatureRequest(hidden=frozenset(t for t, _ in self.pairs)),
        )

    def names(self) -> list[str]:
        return [f"hidden_mse/{t}-{s}" for t, s in self.pairs]

    def forward(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        sums = {}
        for (t, s), project in zip(self.pairs, self.projections, strict=True):
            target = teacher.hidden[t].float()
            difference = project(student.hidden[s]).float() - target
            sums[f"hidden_mse/{t}-{s}"] = difference.square().sum() / target.shape[-1]
        return sums


def _projection(student_width: int, teacher_width: int) -> nn.Linear:
    linear = nn.Linear(student_width, teacher_width)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear


def _check_layer(who: str, layer: int, model: EncoderConfig) -> None:
    if not 0 <= layer <= model.num_hidden_layers:
        raise ConfigError(
            f"hidden_mse names {who} layer {layer}, but the {who} has layers 0 (embeddings) to "
            f"{model.num_hidden_layers}."
        )

"""Maps from the student's width to the teacher's: trained with the student, never exported."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from configs.errors import ConfigError
from distill_core.batch import Count
from distill_core.flops import NO_FLOPS, Flops

ProjectionName = Literal["auto", "none", "linear", "relu", "tanh"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"linear": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh}


class Projections(nn.Module):
    """One map for each match, or one that all matches share.

    ``linear``: W h + b; ``relu``, ``tanh``: the same under that function; W ~ N(0, 0.02), b = 0, on the student's
    side (TextBrewer's projections). ``auto``: ``linear`` where the widths differ, else none. ``shared``: TinyBERT's
    code has one ``fit_dense`` for all layers and applies it also between equal widths (take ``linear`` for that).

    Raises:
        ConfigError: ``none`` between different widths, or ``shared`` where there is nothing to share.
    """

    def __init__(self, kind: ProjectionName, shared: bool, matches: int, student: int, teacher: int, who: str) -> None:
        super().__init__()
        if kind == "none" and student != teacher:
            raise ConfigError(
                f"{who} with projection: none needs equal widths, but the student has {student} and the teacher "
                f"{teacher}; use projection: linear."
            )
        if shared and (kind == "none" or (kind == "auto" and student == teacher)):
            raise ConfigError(
                f"{who} has shared_projection: true, but projection: {kind} makes none between equal widths "
                f"({student}); use projection: linear, or remove shared_projection."
            )
        if kind == "auto":
            kind = "none" if student == teacher else "linear"
        self.matches = matches
        maps = 0 if kind == "none" else 1 if shared else matches
        self.sizes = (student, teacher)
        self.maps = nn.ModuleList(_map(kind, student, teacher) for _ in range(maps))

    def flops(self, count: Count) -> Flops:
        """Forward and backward of all matches, each at the rows that ``count`` counts."""
        student, teacher = self.sizes
        return Flops({count: 6.0 * student * teacher * self.matches}) if self.maps else NO_FLOPS

    def forward(self, match: int, hidden: Tensor) -> Tensor:
        """The student's ``hidden`` [..., H_S] as [..., H_T] for match number ``match``."""
        if not self.maps:
            return hidden
        projected: Tensor = self.maps[match if len(self.maps) == self.matches else 0](hidden)
        return projected


def _map(kind: str, student: int, teacher: int) -> nn.Module:
    linear = nn.Linear(student, teacher)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, ACTIVATIONS[kind]())

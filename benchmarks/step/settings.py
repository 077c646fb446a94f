"""What is compared: the shapes, the losses, the text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

Recipe = Literal["minirbt", "distilbert", "distilbert-masked", "tinybert"]
Text = str
"""KIND-LENGTH. ``packed``: all tokens in a row, cut (MiniRBT). ``lines``: one paragraph a sequence. ``documents``:
paragraphs of one document together, as many as fit."""


@dataclass(frozen=True)
class Shape:
    """Of a BERT."""

    layers: int
    width: int
    heads: int
    intermediate: int

    def fields(self, dropout: float = 0.0, attention_dropout: float = 0.0) -> dict[str, Any]:
        """By the names of Hugging Face and of ``student.model``."""
        return {
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": attention_dropout,
        }


LARGE = Shape(24, 1024, 16, 4096)
BASE = Shape(12, 768, 12, 3072)
RBT6 = Shape(6, 768, 12, 3072)
H256 = Shape(6, 256, 8, 1024)
H288 = Shape(6, 288, 12, 1152)
"""12 heads, as in MiniRBT's file: TinyBERT's code compares scores head with head."""

OBJECTIVES: dict[Recipe, list[dict[str, Any]]] = {
    "minirbt": [
        {"kind": "kd_ce", "temperature": 8},
        {"kind": "hidden_mse", "layers": "uniform"},
    ],
    "distilbert": [
        {"kind": "kd_kl", "weight": 5, "temperature": 2, "temperature_squared": True, "positions": "all"},
        {"kind": "mlm", "weight": 2},
    ],
    "distilbert-masked": [
        {"kind": "kd_kl", "weight": 5, "temperature": 2, "temperature_squared": True},
        {"kind": "mlm", "weight": 2},
    ],
    "tinybert": [
        {"kind": "attention_scores", "layers": "uniform"},
        {"kind": "hidden_mse", "layers": "uniform", "projection": "linear", "shared_projection": True},
    ],
}
"""``distilbert``: its loss on the last hidden state needs equal widths, so it is left out on both sides (alpha_cos 0).
``distilbert-masked``: its option ``restrict_ce_to_mask``."""


@dataclass(frozen=True)
class Setting:
    """One comparison: the same models, losses and text for everyone."""

    name: str
    teacher: Shape
    student: Shape
    recipe: Recipe
    text: Text
    sequences: int
    """In a step: one micro-batch."""
    dropout: float = 0.1
    """On the student's hidden states."""
    attention_dropout: float = 0.1
    """On its attention probabilities; both as published."""

    @property
    def length(self) -> int:
        return int(self.text.rsplit("-", 1)[1])

    @property
    def packed(self) -> bool:
        """Whether every sequence is full."""
        return self.text.startswith("packed")

    @property
    def objective(self) -> list[dict[str, Any]]:
        return OBJECTIVES[self.recipe]

    @property
    def student_fields(self) -> dict[str, Any]:
        return self.student.fields(self.dropout, self.attention_dropout)

    def without_dropout(self) -> Setting:
        return replace(self, dropout=0.0, attention_dropout=0.0)

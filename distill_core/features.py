"""What an objective asks of a model, and what the model gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class FeatureRequest:
    """What is to be computed; nothing else is.

    ``hidden``: hidden states by Hugging Face's numbering (0 = embedding output after LayerNorm, i = output of
    layer i). ``logits``: vocabulary logits, at the masked rows only.
    """

    hidden: frozenset[int] = frozenset()
    logits: bool = False

    def __or__(self, other: FeatureRequest) -> FeatureRequest:
        return FeatureRequest(self.hidden | other.hidden, self.logits or other.logits)

    def deepest(self, layers: int) -> int:
        """How many of ``layers`` have to be run."""
        return layers if self.logits else max(self.hidden, default=0)


@dataclass
class Features:
    """``hidden[i]``: [N, H]; ``logits``: [M, V] at the batch's masked rows, in the batch's order."""

    hidden: dict[int, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None

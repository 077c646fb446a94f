"""What an objective asks of a model, and what the model gives back.

Layers carry Hugging Face's numbers for hidden states everywhere: 0 is the embedding output, i the output of
layer i; the attention of layer i (1-based) is what layer i computes from hidden state i - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from distill_core.decoder import LogitsOnDemand, Rows, Undecoded
from distill_core.models.attention import AttentionLayout

if TYPE_CHECKING:
    from distill_core.batch import Batch


class Heads(NamedTuple):
    """One layer's query, key and value: each [N, heads, head size], before the scaling by 1/sqrt(head size).

    Attention scores, probabilities and relations are functions of these three, so that the model itself can run
    its fastest kernel and no [L, L] matrix exists unless a loss makes one.
    """

    query: Tensor
    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class FeatureRequest:
    """What is to be computed; nothing else is.

    ``hidden``: hidden states, 0 = embedding output after LayerNorm. ``heads``: layers (1-based) whose query, key
    and value are kept. ``logits``: the rows at which vocabulary logits are wanted. ``pooled``: the pooler's output.
    ``task``: the task head's output.
    """

    hidden: frozenset[int] = frozenset()
    heads: frozenset[int] = frozenset()
    logits: frozenset[Rows] = frozenset()
    pooled: bool = False
    task: bool = False

    def __or__(self, other: FeatureRequest) -> FeatureRequest:
        return FeatureRequest(
            self.hidden | other.hidden,
            self.heads | other.heads,
            self.logits | other.logits,
            self.pooled or other.pooled,
            self.task or other.task,
        )

    def __bool__(self) -> bool:
        return self != FeatureRequest()

    def deepest(self, layers: int) -> int:
        """How many of ``layers`` have to be run."""
        if self.logits or self.pooled or self.task:
            return layers
        return max(self.hidden | self.heads, default=0)


MASKED_LOGITS = FeatureRequest(logits=frozenset({"masked"}))


@dataclass
class Features:
    """What was asked for.

    ``hidden[i]``: [N, H]; ``heads[i]``: three times [N, A, H / A]; ``logits[rows]``: [M, V] in the stream's order, of a
    model multiplied out when looked up, so that losses take :meth:`undecoded`; ``pooled``: [B, H]; ``task``: [B, C] for
    labels of sequences, [N, C] for labels of tokens. ``layout``: of a teacher that read its own tokens: where the
    batch's sequences lie in its stream, of another N.
    """

    hidden: dict[int, Tensor] = field(default_factory=dict)
    heads: dict[int, Heads] = field(default_factory=dict)
    logits: Mapping[Rows, Tensor] = field(default_factory=dict)
    pooled: Tensor | None = None
    task: Tensor | None = None
    layout: AttentionLayout | None = None

    def where(self, batch: Batch) -> AttentionLayout:
        """Where the sequences of ``batch`` lie in the stream that these are features of."""
        return batch.layout if self.layout is None else self.layout

    def moved(self, move: Callable[[Tensor], Tensor]) -> Features:
        """Every tensor that a model gave, moved; of logits that are not multiplied out, their vectors."""
        logits = self.logits
        return Features(
            {layer: move(values) for layer, values in self.hidden.items()},
            {layer: Heads(*map(move, heads)) for layer, heads in self.heads.items()},
            logits.moved(move) if isinstance(logits, LogitsOnDemand) else {r: move(v) for r, v in logits.items()},
            None if self.pooled is None else move(self.pooled),
            None if self.task is None else move(self.task),
            self.layout,
        )

    def undecoded(self, rows: Rows) -> Undecoded:
        """The factors of ``logits[rows]``."""
        if isinstance(self.logits, LogitsOnDemand):
            return self.logits.undecoded[rows]
        return Undecoded(self.logits[rows], None)

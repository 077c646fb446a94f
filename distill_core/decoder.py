"""Vocabulary logits that are not multiplied out: the vectors that enter the decoder, and the decoder.

A matrix of [tokens, vocabulary] numbers is the largest thing in a step (346 MB in fp32 at 4,096 tokens, several times
over), and losses need a few rows of it at a time. So models put out the vectors; ``objectives/fused.py`` multiplies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from distill_core.kernels import long_pieces

Rows = Literal["masked", "all", "sampled"]
"""Which rows of the stream: the masked ones, every one, or a keyed sample of them (data.py)."""


class Weights(NamedTuple):
    """A decoder's parameters: ``words``: [V, E], the word embeddings; ``bias``: [V]; ``extra``: [P - E, V], of
    decoders whose vectors are wider than the embeddings (MobileBERT), else None."""

    words: Tensor
    bias: Tensor
    extra: Tensor | None

    def logits(self, vectors: Tensor) -> Tensor:
        """[M, P] -> [M, V] in the weights' precision."""
        if self.extra is None:
            return F.linear(vectors, self.words, self.bias)
        first, rest = self.split(vectors)
        return F.linear(first, self.words, self.bias) + rest.matmul(self.extra)

    def products(self, vectors: Tensor, out: Tensor | None = None) -> Tensor:
        """[M, P] -> [M, V], the bias not added; ``out``: where to.

        In fp32 where the device has it (see :func:`product`): rounded to 16 bits, logits of a student that is near its
        teacher cancel.
        """
        if self.extra is None:
            return product(vectors, self.words.t(), out)
        first, rest = self.split(vectors)
        return product(first, self.words.t(), out).add_(product(rest, self.extra))

    def split(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """What the word embeddings are multiplied with, and what ``extra`` is: [M, E], [M, P - E]."""
        border = self.words.shape[1]
        return vectors[:, :border], vectors[:, border:]


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a b; of 16-bit numbers in fp32, as they were added up, on a GPU.

    oneDNN has no such product on CPUs without AMX, where the sum is rounded (to bf16: by 2^-9).
    """
    if long_pieces(a.device) and a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)


def wide(t: Tensor) -> Tensor:
    """fp32; fp64 is kept."""
    return t if t.dtype == torch.float64 else t.float()


class Decoder(Protocol):
    """Calls ``use`` with the vectors [M, P] and the weights, which exist (ZeRO 3) only until it returns."""

    def __call__(self, vectors: Tensor, use: Callable[[Tensor, Weights], Any]) -> Any: ...


@dataclass(frozen=True)
class Undecoded:
    """Logits [M, V] as their factors. ``decoder`` None: ``vectors`` are the logits themselves."""

    vectors: Tensor
    decoder: Decoder | None

    def decoded(self) -> Tensor:
        """All of them at once, with gradient: for evaluations, which look at few rows."""
        if self.decoder is None:
            return self.vectors
        logits: Tensor = self.decoder(self.vectors, lambda vectors, weights: weights.logits(vectors))
        return logits


class LogitsOnDemand(Mapping[Rows, Tensor]):
    """By rows: logits [M, V], multiplied out each time they are looked up."""

    def __init__(self, vectors: dict[Rows, Tensor], decoder: Decoder) -> None:
        self.undecoded = {rows: Undecoded(values, decoder) for rows, values in vectors.items()}
        self._decoder = decoder

    def moved(self, move: Callable[[Tensor], Tensor]) -> LogitsOnDemand:
        """With the vectors moved, and the decoder as it is."""
        return LogitsOnDemand({rows: move(one.vectors) for rows, one in self.undecoded.items()}, self._decoder)

    def __getitem__(self, rows: Rows) -> Tensor:
        return self.undecoded[rows].decoded()

    def __iter__(self) -> Iterator[Rows]:
        return iter(self.undecoded)

    def __len__(self) -> int:
        return len(self.undecoded)

"""Losses on vocabulary logits with never more than some rows of logits in memory.

Chunk by chunk: the student's logits, each teacher's, every loss that looks at them, and at once the gradient with
respect to the student's vectors and its decoder; then the chunk is dropped. Nothing is left for the backward pass but
to multiply that gradient by what comes from above (the idea of Liger's fused losses, arXiv 2410.10989, section 3.2).
Doing all again in the backward pass instead would multiply with both decoders twice.

That asks for the losses' weights before the backward pass: a loss enters here with what its sum is multiplied by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill_core.decoder import Undecoded, Weights, wide

CUDA_CHUNKS = 16
"""Chunks of a GPU are so many times as large: its kernels are as short as a CPU's caches are small."""

Data = tuple[Tensor | None, ...]
"""What a loss knows about each row, [M, ...]."""


@dataclass
class Decoding:
    """Vectors [M, P] and their decoder while its weights are there; ``weights`` None: the vectors are the logits."""

    vectors: Tensor
    weights: Weights | None
    whole: Tensor | None = None
    """The logits of all rows, once they have been asked for in one chunk: a rule's first pass is then no second one."""

    @torch.no_grad()
    def logits(self, first: int, last: int) -> Tensor:
        """[last - first, V] in fp32 (fp64 is kept); not to be written into."""
        if last - first < len(self.vectors):
            return self._made(self.vectors[first:last])
        if self.whole is None:
            self.whole = self._made(self.vectors)
        return self.whole

    def _made(self, rows: Tensor) -> Tensor:
        return wide(rows) if self.weights is None else self.weights.wide_logits(rows)


class LogitsLoss(Protocol):
    def sum_and_slopes(self, mine: Tensor, theirs: Tensor | None, data: Data) -> tuple[Tensor, Tensor]:
        """The sum over some rows, and its gradient with respect to ``mine``, [rows, V], which is the caller's.

        Args:
            mine, theirs: logits of student and teacher [rows, V], which other losses see too: left as they are.
            data: the same rows of what the loss knows.
        """
        ...


@dataclass(frozen=True)
class Part:
    """A loss in a sum of losses on the same rows."""

    loss: LogitsLoss
    teacher: int | None
    """Its place among the teachers."""
    factor: Tensor
    """What its sum is multiplied by (a scalar)."""
    data: Data


def opened(logits: Sequence[Undecoded], use: Callable[[list[Decoding]], Any]) -> Any:
    """``use`` of all of them, while the weights of all decoders are there."""

    def open_next(done: list[Decoding]) -> Any:
        if len(done) == len(logits):
            return use(done)
        one = logits[len(done)]
        if one.decoder is None:
            return open_next([*done, Decoding(one.vectors, None)])
        return one.decoder(one.vectors, lambda vectors, weights: open_next([*done, Decoding(vectors, weights)]))

    return open_next([])


def chunks(rows: int, size: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """(first, last) of chunks of about equal length."""
    size *= CUDA_CHUNKS if device.type == "cuda" else 1
    step = -(-rows // -(-rows // size)) if rows else 1
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


def fused(parts: Sequence[Part], mine: Decoding, theirs: Sequence[Decoding], size: int) -> tuple[Tensor, Tensor]:
    """Sums of losses, ``size`` rows at a time.

    Returns:
        The sum of factor times sum, a scalar with gradient; and the sums, [parts], without.
    """
    given = (mine.vectors, *((None, None, None) if mine.weights is None else mine.weights))
    total, sums = _Fused.apply(parts, mine, theirs, size, *given)  # type: ignore[no-untyped-call]
    return total, sums


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        parts: Sequence[Part],
        mine: Decoding,
        theirs: Sequence[Decoding],
        size: int,
        vectors: Tensor,
        *weights: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """``vectors``, ``weights``: of ``mine``, here for autograd to know of them."""
        gradient = _Gradient(vectors, mine.weights, ctx.needs_input_grad[4:])
        scalar = wide(vectors.new_zeros(()))
        # In units of the largest factor, so that products in 16 bits do not underflow.
        unit = torch.stack([part.factor.abs() for part in parts]).amax().clamp(min=1e-30)
        sums = [scalar] * len(parts)
        for first, last in chunks(len(vectors), size, vectors.device):
            logits, slopes = mine.logits(first, last), None
            for teacher in dict.fromkeys(part.teacher for part in parts):
                targets = None if teacher is None else theirs[teacher].logits(first, last)
                for place, part in enumerate(parts):
                    if part.teacher == teacher:
                        data = tuple(None if values is None else values[first:last] for values in part.data)
                        value, one = part.loss.sum_and_slopes(logits, targets, data)
                        sums[place] = sums[place] + value
                        share = (part.factor / unit).to(one.dtype)
                        slopes = one.mul_(share) if slopes is None else slopes.addcmul_(one, share)
            assert slopes is not None
            gradient.add(first, last, slopes)
        ctx.unit = unit
        ctx.dtypes, found = gradient.found()
        ctx.save_for_backward(*found)
        stacked = torch.stack(sums)
        ctx.mark_non_differentiable(stacked)
        factors = torch.stack([part.factor for part in parts])
        return (factors * stacked).sum().to(stacked.dtype), stacked

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _sums: Tensor) -> tuple[Any, ...]:
        scale, left = upstream * ctx.unit, iter(ctx.saved_tensors)

        def scaled(dtype: torch.dtype) -> Tensor:
            # In place: these are the largest tensors that wait, and a second backward pass is refused by torch.
            one: Tensor = next(left)
            return one.mul_(scale.to(one.dtype)).to(dtype)

        return None, None, None, None, *(None if dtype is None else scaled(dtype) for dtype in ctx.dtypes)


class _Gradient:
    """The sum over all chunks of the gradients with respect to vectors, words, bias and extra, in fp32."""

    def __init__(self, vectors: Tensor, weights: Weights | None, needed: Sequence[bool]) -> None:
        self.vectors, self.weights = vectors, weights
        self.of = (vectors, *((None, None, None) if weights is None else weights))
        self.needed = needed
        rows = torch.empty_like(vectors) if needed[0] else None
        self.rows = rows if rows is None or weights is None else wide(rows)
        self.words: Tensor | None = None
        self.bias: Tensor | None = None
        self.extra: Tensor | None = None

    def add(self, first: int, last: int, slopes: Tensor) -> None:
        """``slopes``: with respect to the logits of some rows, [last - first, V]."""
        rows = None if self.rows is None else self.rows[first:last]
        if self.weights is None:
            if rows is not None:
                rows.copy_(slopes)
            return
        _, for_words, for_bias, for_extra = self.needed
        if for_bias:
            self.bias = slopes.sum(0) if self.bias is None else self.bias.add_(slopes.sum(0))
        slopes = slopes.to(self.vectors.dtype)
        here, rest = self.weights.split(self.vectors[first:last])
        if rows is not None:
            into, into_rest = self.weights.split(rows)
            into.copy_(_product(slopes, self.weights.words))
            if self.weights.extra is not None:
                into_rest.copy_(_product(slopes, self.weights.extra.t()))
        if for_words:
            self.words = _plus(self.words, slopes.t(), here)
        if for_extra:
            self.extra = _plus(self.extra, rest.t(), slopes)

    def found(self) -> tuple[list[torch.dtype | None], list[Tensor]]:
        """The precision of each parameter that has a gradient (None: it has none), and the gradients."""
        sums = (self.rows, self.words, self.bias, self.extra)
        both = [
            (None, None) if of is None or not need else (of.dtype, torch.zeros_like(of) if sum is None else sum)
            for of, need, sum in zip(self.of, self.needed, sums, strict=True)
        ]
        return [dtype for dtype, _ in both], [sum for _, sum in both if sum is not None]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b; of 16-bit numbers in fp32 where the device has it."""
    if a.is_cuda and a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b


def _plus(sum: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """sum + a b, added up in fp32; a product that stands alone stays as it is."""
    if sum is None:
        return _product(a, b)
    sum = wide(sum)
    return sum.addmm_(a, b) if sum.dtype == a.dtype else sum.add_(_product(a, b))

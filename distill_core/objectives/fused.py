"""Losses on vocabulary logits with never more than some rows of logits in memory.

Chunk by chunk: the student's logits, each teacher's, every loss that looks at them, and at once the gradient with
respect to the student's vectors and its decoder; then the chunk is dropped. Products want many rows at a time and what
is done to each logit wants few (``strips.py``). Nothing is left for the backward pass but
to multiply that gradient by what comes from above (the idea of Liger's fused losses, arXiv 2410.10989, section 3.2).
Doing all again in the backward pass instead would multiply with both decoders twice.

That asks for the losses' weights before the backward pass: a loss enters here with what its sum is multiplied by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill_core.decoder import Undecoded, Weights, product, wide
from distill_core.kernels import few_kernels, long_pieces
from distill_core.objectives.strips import strips

GPU_CHUNKS = 16
"""Chunks of a GPU are so many times as large: its kernels are as short as a CPU's caches are small."""

Data = tuple[Tensor | None, ...]
"""What a loss knows about each row, [M, ...]."""


@dataclass(frozen=True)
class Logits:
    """Of some rows, as the device multiplies: ``products``: [rows, V]; ``bias``: [V], not added yet."""

    products: Tensor
    bias: Tensor | None

    def at(self, rows: slice) -> Logits:
        return Logits(self.products[rows], self.bias)

    def wide(self) -> Tensor:
        """[rows, V] in fp32 (fp64 is kept); not to be written into."""
        found = wide(self.products)
        if self.bias is None:
            return found
        return found + self.bias if found.dtype == self.products.dtype else found.add_(self.bias)


@dataclass
class Decoding:
    """Vectors [M, P] and their decoder while its weights are there; ``weights`` None: the vectors are the logits."""

    vectors: Tensor
    weights: Weights | None
    whole: Logits | None = None
    """Those of all rows, once they have been asked for in one chunk: a rule's first pass is then no second one."""
    room: Tensor | None = None
    """On a CPU: where one chunk after the other lies."""

    @torch.no_grad()
    def logits(self, first: int, last: int) -> Logits:
        """Of the rows [first, last), until the next are asked for."""
        if self.weights is None:
            return Logits(self.vectors[first:last], None)
        if last - first == len(self.vectors):
            self.whole = self.whole or Logits(self.weights.products(self.vectors), self.weights.bias)
            return self.whole
        return Logits(self.weights.products(self.vectors[first:last], self._room(last - first)), self.weights.bias)

    def _room(self, rows: int) -> Tensor | None:
        assert self.weights is not None
        if long_pieces(self.vectors.device):
            return None
        if self.room is None or len(self.room) < rows:
            self.room = self.vectors.new_empty(rows, len(self.weights.words))
        return self.room[:rows]


class LogitsLoss(Protocol):
    def sum_and_slopes(self, mine: Tensor, theirs: Tensor | None, data: Data, factor: Tensor) -> tuple[Tensor, Tensor]:
        """The sum over some rows, and ``factor`` times its gradient with respect to ``mine``: [rows, V], the caller's.

        Args:
            mine, theirs: logits of student and teacher [rows, V], which other losses see too: left as they are.
            data: the same rows of what the loss knows.
            factor: a scalar.
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

    def at(self, first: int, last: int) -> Part:
        """Of the rows [first, last)."""
        return replace(self, data=tuple(None if d is None else d[first:last] for d in self.data))


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
    size *= GPU_CHUNKS if long_pieces(device) else 1
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
        # In units of the largest factor, so that products in 16 bits do not underflow.
        unit = torch.stack([part.factor.abs() for part in parts]).amax().clamp(min=1e-30)
        sums = [wide(vectors.new_zeros(()))] * len(parts)
        asked = [part.teacher for part in parts if part.teacher is not None]
        for first, last in chunks(len(vectors), size, vectors.device):
            logits, targets = mine.logits(first, last), {n: theirs[n].logits(first, last) for n in dict.fromkeys(asked)}
            gradient.open(logits.products)
            for rows in strips(logits.products):
                here = [part.at(first + rows.start, first + rows.stop) for part in parts]
                their_rows = {number: target.at(rows) for number, target in targets.items()}
                values, bias = _of_strip(logits.at(rows), their_rows, here, unit, gradient.room(rows), gradient.of_bias)
                sums = [before + value for before, value in zip(sums, values, strict=True)]
                gradient.take(bias)
            gradient.add(first, last)
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


def _by_rows(mine: Logits, theirs: Mapping[int, Logits], parts: Sequence[Part], *rest: Any) -> list[Tensor]:
    known = [tensor for part in parts for tensor in part.data if tensor is not None]
    return [mine.products, *(one.products for one in theirs.values()), *known, rest[1]]


@few_kernels(_by_rows)
def _of_strip(
    mine: Logits, theirs: Mapping[int, Logits], parts: Sequence[Part], unit: Tensor, into: Tensor, of_bias: bool
) -> tuple[list[Tensor], Tensor | None]:
    """The losses' sums over the rows of ``mine``, and of the weighted sum's gradient the sum over rows, [V], if wanted.

    That gradient, in units of ``unit``, is written to ``into`` [rows, V].
    """
    logits, slopes, sums = mine.wide(), None, []
    targets = {number: one.wide() for number, one in theirs.items()}
    for part in parts:
        target = None if part.teacher is None else targets[part.teacher]
        value, one = part.loss.sum_and_slopes(logits, target, part.data, (part.factor / unit).to(logits.dtype))
        sums.append(value)
        slopes = one if slopes is None else slopes.add_(one)
    assert slopes is not None
    into.copy_(slopes)
    return sums, slopes.sum(0) if of_bias else None


class _Gradient:
    """The sum over all chunks of the gradients with respect to vectors, words, bias and extra, in fp32."""

    def __init__(self, vectors: Tensor, weights: Weights | None, needed: Sequence[bool]) -> None:
        self.vectors, self.weights = vectors, weights
        self.of = (vectors, *((None, None, None) if weights is None else weights))
        self.needed = needed
        self.of_bias = weights is not None and needed[2]
        rows = torch.empty_like(vectors) if needed[0] else None
        self.rows = rows if rows is None or weights is None else wide(rows)
        self.slopes: Tensor | None = None
        self.words: Tensor | None = None
        self.bias: Tensor | None = None
        self.extra: Tensor | None = None

    def open(self, logits: Tensor) -> None:
        """Begin a chunk of so many rows; slopes are with respect to its ``logits``."""
        if self.slopes is None or len(self.slopes) < len(logits):
            self.slopes = torch.empty_like(logits, dtype=self.vectors.dtype)

    def room(self, rows: slice) -> Tensor:
        """Where the slopes of some rows of the chunk are to be written, [rows, V]."""
        assert self.slopes is not None
        return self.slopes[rows]

    def take(self, bias: Tensor | None) -> None:
        """The sum of some rows' slopes, [V]; given where it is ``of_bias``."""
        if bias is not None:
            self.bias = bias if self.bias is None else self.bias.add_(bias)

    def add(self, first: int, last: int) -> None:
        """End the chunk, of the rows [first, last)."""
        assert self.slopes is not None
        rows, slopes = None if self.rows is None else self.rows[first:last], self.slopes[: last - first]
        if self.weights is None:
            if rows is not None:
                rows.copy_(slopes)
            return
        _, for_words, _, for_extra = self.needed
        here, rest = self.weights.split(self.vectors[first:last])
        if rows is not None:
            into, into_rest = self.weights.split(rows)
            into.copy_(product(slopes, self.weights.words))
            if self.weights.extra is not None:
                into_rest.copy_(product(slopes, self.weights.extra.t()))
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


def _plus(sum: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """sum + a b, added up in fp32; a product that stands alone stays as it is."""
    if sum is None:
        return product(a, b)
    sum = wide(sum)
    return sum.addmm_(a, b) if sum.dtype == a.dtype else sum.add_(product(a, b))

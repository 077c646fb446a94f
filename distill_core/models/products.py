"""Attention of 16-bit tensors on a CPU by batched matrix products, some sequences and heads at a time.

torch's flash kernel for CPUs reaches a third of the rate of its matrix products in bf16, and less in the backward pass
(docs/performance.md). Here scores exist for as many sequences and heads as fit the cache, forward and, once more,
backward: no [L, L] matrix is kept. Scores are accumulated in fp32 and rounded to the tensors' dtype, as in eager
attention of ``transformers``; the softmax is computed in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill_core.models.dropout import Draws, new_seed, zero_where

SCORES = 2**20
"""Scores that exist at a time (2 MiB in bf16); one head of one sequence at least."""
SPARED = 512
"""Scores that cost as much as a group of its own: sequences share a group when they waste fewer each."""


@dataclass(frozen=True)
class Group:
    """Consecutive sequences that are computed together, padded to ``length``."""

    start: int
    """Its first token in the stream."""
    stop: int
    count: int
    """Sequences."""
    length: int
    slots: Tensor | None
    """int64 [stop - start], the place of each token in the padded [count * length]; None: there is no padding."""
    bias: Tensor | None
    """fp32 [count, 1, length], added to the scores: minus infinity at padding; None: there is no padding."""


def groups_of(lengths: tuple[int, ...]) -> tuple[Group, ...]:
    """Sequences in their order, together where padding them costs less than computing them apart."""
    groups: list[Group] = []
    start = first = 0
    while first < len(lengths):
        longest, stop = lengths[first], first + 1
        while stop < len(lengths) and 0 <= longest**2 - lengths[stop] ** 2 <= SPARED:
            stop += 1
        sizes = lengths[first:stop]
        slots = bias = None
        if min(sizes) < longest:
            real = torch.arange(longest) < torch.tensor(sizes)[:, None]
            slots = real.flatten().nonzero().squeeze(1)
            bias = torch.zeros(len(sizes), 1, longest).masked_fill_(~real[:, None], float("-inf"))
        groups.append(Group(start, start + sum(sizes), len(sizes), longest, slots, bias))
        start, first = start + sum(sizes), stop
    return tuple(groups)


def _product(a: Tensor, b: Tensor, factor: float) -> Tensor:
    """factor a b, rounded once; a power of two, which changes no bit but the exponent, goes to the smaller one."""
    if factor == 1:
        return torch.bmm(a, b)
    if math.frexp(factor)[0] == 0.5:
        return torch.bmm(a * factor, b) if a.numel() <= b.numel() else torch.bmm(a, b * factor)
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=factor)


class _Part:
    """Some sequences and heads of a group, and how they are cut from streams [N, heads, d] and put back."""

    def __init__(self, group: Group, sequences: slice, heads: slice) -> None:
        self.group, self.sequences, self.heads = group, sequences, heads

    def cut(self, spread: Tensor) -> Tensor:
        """[count, length, heads, d] -> [sequences * heads, length, d]."""
        return spread[self.sequences, :, self.heads].transpose(1, 2).flatten(0, 1).contiguous()

    def put(self, values: Tensor, spread: Tensor) -> None:
        place = spread[self.sequences, :, self.heads]
        place.copy_(values.view(place.shape[0], place.shape[2], *values.shape[1:]).transpose(1, 2))

    def probabilities(self, q: Tensor, k: Tensor) -> Tensor:
        """softmax(q kᵀ / sqrt(d)), padding left out: [sequences * heads, length, length]."""
        scale = q.shape[-1] ** -0.5
        if self.group.bias is None:
            return torch.softmax(_product(q, k.transpose(1, 2), scale), -1)
        bias = self.group.bias[self.sequences].to(q.dtype)
        bias = bias.repeat_interleave(len(q) // len(bias), dim=0)
        return torch.softmax(torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale), -1)


def _parts(group: Group, heads: int) -> Iterator[_Part]:
    pairs = max(1, SCORES // group.length**2)
    some = max(1, pairs // heads)  # sequences at a time
    step = heads if pairs >= heads else pairs
    for first in range(0, group.count, some):
        for head in range(0, heads, step):
            yield _Part(group, slice(first, first + some), slice(head, head + step))


def _spread(group: Group, stream: Tensor) -> Tensor:
    """[N, heads, d] -> [count, length, heads, d], zeros at padding (a view where there is none)."""
    own = stream[group.start : group.stop]
    if group.slots is not None:
        own = stream.new_zeros(group.count * group.length, *stream.shape[1:]).index_copy_(0, group.slots, own)
    return own.reshape(group.count, group.length, *stream.shape[1:])


def _room(group: Group, stream: Tensor) -> Tensor:
    """Where results of the group are written: [count, length, heads, d]."""
    if group.slots is None:
        return stream[group.start : group.stop].view(group.count, group.length, *stream.shape[1:])
    return stream.new_empty(group.count, group.length, *stream.shape[1:])


def _gather(group: Group, room: Tensor, stream: Tensor) -> None:
    """Results from their room to the stream."""
    if group.slots is not None:
        torch.index_select(room.flatten(0, 1), 0, group.slots, out=stream[group.start : group.stop])


class _Attention(torch.autograd.Function):
    """Keeps q, k, v; the probabilities, and what was dropped of them, are made again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, groups: tuple[Group, ...], dropout: float, seed: int
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.settings = groups, dropout, seed
        draws, kept = Draws(seed), 1 / (1 - dropout)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for group in groups:
            inputs, room = [_spread(group, t) for t in (q, k, v)], _room(group, out)
            for part in _parts(group, q.shape[1]):
                pq, pk, pv = (part.cut(t) for t in inputs)
                p = part.probabilities(pq, pk)
                if dropout:
                    zero_where(p, draws.kept(p.shape, dropout))
                part.put(_product(p, pv, kept), room)
            _gather(group, room, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        groups, dropout, seed = ctx.settings
        draws, kept = Draws(seed), 1 / (1 - dropout)
        grads = [torch.empty_like(q, memory_format=torch.contiguous_format) for _ in range(3)]
        scale = q.shape[-1] ** -0.5
        for group in groups:
            inputs, rooms = [_spread(group, t) for t in (q, k, v, grad)], [_room(group, g) for g in grads]
            for part in _parts(group, q.shape[1]):
                pq, pk, pv, po = (part.cut(t) for t in inputs)
                p = part.probabilities(pq, pk)
                dp = torch.bmm(po, pv.transpose(1, 2))
                dropped = p
                if dropout:
                    mask = draws.kept(p.shape, dropout)
                    zero_where(dp, mask)
                    dropped = zero_where(p.clone(), mask)
                part.put(_product(dropped.transpose(1, 2), po, kept), rooms[2])
                ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)
                part.put(_product(ds, pk, kept * scale), rooms[0])
                part.put(_product(ds.transpose(1, 2), pq, kept * scale), rooms[1])
            for room, stream in zip(rooms, grads, strict=True):
                _gather(group, room, stream)
        return (*grads, None, None, None)


def attend_by_products(q: Tensor, k: Tensor, v: Tensor, groups: tuple[Group, ...], dropout: float = 0.0) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v within each sequence.

    Args:
        q, k, v: [N, heads, d] on the CPU.
        groups: :func:`groups_of` the lengths of the N tokens' sequences.
        dropout: on the probabilities; drawn from a generator that is seeded from torch's own.

    Returns:
        [N, heads, d], contiguous.
    """
    seed = new_seed() if dropout else 0
    found: Tensor = _Attention.apply(q, k, v, groups, dropout, seed)  # type: ignore[no-untyped-call]
    return found

"""Sums over the [length, length] matrices of a token stream, a bounded number of entries at a time.

Attention scores and relations have an entry for each pair of tokens of a sequence and each head: too many to keep
for a whole batch. They are made for a few sequences at a time (a tile), reduced to a number and dropped; for the
backward pass they are made again (``torch.utils.checkpoint``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distill_core.decoder import wide
from distill_core.features import Heads
from distill_core.kernels import long_pieces
from distill_core.models.attention import AttentionLayout

ENTRIES = 2**22
"""Entries of one model's matrices that are made at a time: 16 MiB in fp32. A loss holds a handful of such tensors.
From 32 MiB on, glibc's malloc takes each anew from the system, page by page: MiniLM's loss at 512 took twice as long.
"""
ALIKE = 0.9
"""Neighbours whose lengths are this near one another share a tile, the shorter ones filled up: few, large kernels."""
CUDA_ENTRIES = 16
"""Tiles of a GPU have so many times as many entries, 256 MiB in fp32. Not measured."""
CUDA_ALIKE = 0.75
"""``ALIKE`` on a GPU. Not measured."""

Compare = Callable[[Tensor, Tensor], Tensor]
"""Student's [sequences, A_S, queries, keys] and teacher's -> a value for each query, [sequences, ..., queries]."""


@dataclass(frozen=True)
class Factors:
    """What the matrices are products of: scale · left rightᵀ for each sequence and head; both [N, A, d]."""

    left: Tensor
    right: Tensor
    scale: float

    @property
    def heads(self) -> int:
        return self.left.shape[1]


def attention_factors(heads: Heads) -> Factors:
    """Attention scores of each head: q kᵀ / sqrt(d)."""
    return Factors(heads.query, heads.key, heads.query.shape[-1] ** -0.5)


def joined_factors(heads: Heads, mean: bool) -> Factors:
    """The mean (or sum) over the heads of their attention scores.

    sum_h q_h k_hᵀ is the product of all heads side by side: one head of the full width.
    """
    query, key = (t.flatten(1).unsqueeze(1) for t in (heads.query, heads.key))
    scale: float = heads.query.shape[-1] ** -0.5
    return Factors(query, key, scale / heads.query.shape[1] if mean else scale)


def relation_factors(stream: Tensor, relation_heads: int) -> Factors:
    """x xᵀ / sqrt(d_r) with the heads of ``stream`` [N, A, d] side by side and cut anew into ``relation_heads``."""
    x = stream.reshape(len(stream), relation_heads, -1)
    return Factors(x, x, x.shape[-1] ** -0.5)


@dataclass(frozen=True)
class Tile:
    """Sequences ``first`` up to ``last`` of the stream, whose tokens begin at row ``start``."""

    first: int
    last: int
    start: int
    shortest: int
    longest: int

    @property
    def sequences(self) -> int:
        return self.last - self.first

    def real(self, where: AttentionLayout) -> Tensor | None:
        """bool [sequences, longest], where a token stands; None: everywhere."""
        if self.shortest == self.longest:
            return None
        sizes = where.sizes[self.first : self.last]
        return torch.arange(self.longest, device=sizes.device) < sizes[:, None]

    def spread(self, stream: Tensor, where: AttentionLayout) -> Tensor:
        """[N, A, d] -> [sequences, A, longest, d] in fp32 (or fp64, if it is); 0 behind the end of a sequence."""
        real = self.real(where)
        if real is None:
            rows = stream[self.start : self.start + self.sequences * self.longest]
            spread = rows.view(self.sequences, self.longest, *stream.shape[1:])
        else:
            index = where.starts[self.first : self.last, None] + torch.arange(self.longest, device=real.device)
            spread = stream[index.clamp(max=len(stream) - 1)].masked_fill(~real[:, :, None, None], 0)
        return wide(spread).transpose(1, 2)


def every(length: int) -> bool:
    return True


def limits(device: torch.device) -> tuple[int, float]:
    """(entries at a time, how near the lengths of a tile are one another)."""
    return (CUDA_ENTRIES * ENTRIES, CUDA_ALIKE) if long_pieces(device) else (ENTRIES, ALIKE)


def tiles(
    where: AttentionLayout, entries: Callable[[int], int], wanted: Callable[[int], bool] = every
) -> Iterator[Tile]:
    """Cuts a stream into tiles of at least one sequence each.

    Args:
        where: the sequences.
        entries: what a sequence of a length costs; the sequences of a tile together cost up to :func:`limits`.
        wanted: of which lengths; the other sequences are left out.
    """
    lengths, (most, alike) = where.lengths, limits(where.sizes.device)
    first = start = 0
    while first < len(lengths):
        shortest = longest = lengths[first]
        last, size = first + 1, lengths[first]
        while last < len(lengths) and wanted(lengths[last]) == wanted(longest):
            low, high = min(shortest, lengths[last]), max(longest, lengths[last])
            if low < alike * high or (last + 1 - first) * entries(high) > most:
                break
            shortest, longest = low, high
            size += lengths[last]
            last += 1
        if wanted(shortest):
            yield Tile(first, last, start, shortest, longest)
        first, start = last, start + size


def summed(
    mine: Factors,
    theirs: Factors,
    where: AttentionLayout,
    compare: Compare,
    wanted: Callable[[int], bool] = every,
) -> Tensor:
    """The sum of ``compare`` over all queries of all sequences of ``wanted`` lengths: a scalar, fp32 (fp64 for fp64).

    ``compare`` gets the matrices of some sequences, and of long ones some queries at a time, in fp32. Behind the
    last key of a shorter sequence they hold a huge negative number: alike in both, and 0 after a softmax.
    """
    heads, (most, _) = max(mine.heads, theirs.heads), limits(where.sizes.device)
    blocks = [
        (tile, begin, min(begin + step, tile.longest))
        for tile in tiles(where, lambda length: heads * length**2, wanted)
        for step in (max(1, most // (tile.sequences * heads * tile.longest)),)
        for begin in range(0, tile.longest, step)
    ]

    def value(tile: Tile, begin: int, end: int, *streams: Tensor) -> Tensor:
        left, right, left_t, right_t = (tile.spread(stream, where) for stream in streams)
        real = tile.real(where)
        ours = products(left[:, :, begin:end], right, mine.scale, real)
        values = compare(ours, products(left_t[:, :, begin:end], right_t, theirs.scale, real))
        if real is not None:
            queries = real[:, begin:end].reshape(len(real), *[1] * (values.dim() - 2), end - begin)
            values = values.masked_fill(~queries, 0)
        return values.sum()

    streams = (mine.left, mine.right, theirs.left, theirs.right)
    if len(blocks) == 1 or not torch.is_grad_enabled():
        sums = [value(*block, *streams) for block in blocks]
    else:
        sums = [checkpoint(value, *block, *streams, use_reentrant=False, preserve_rng_state=False) for block in blocks]
    return torch.stack(sums).sum() if sums else wide(mine.left.new_zeros(()))


def products(left: Tensor, right: Tensor, scale: float, real: Tensor | None) -> Tensor:
    matrices = (left * scale) @ right.transpose(-1, -2)
    if real is None:
        return matrices
    return matrices.masked_fill(~real[:, None, None, :], torch.finfo(matrices.dtype).min / 2)

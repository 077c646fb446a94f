"""Bidirectional self-attention on a token stream: no token sees another sequence, and there is no padding.

Three ways to the same numbers (a test compares them):

- ``runs``: scaled_dot_product_attention over runs of sequences of equal length (the CPU's default; batches
  hold sequences sorted by length, so runs are long), in bf16 batched matrix products (``products.py``);
- ``padded``: one call over a padded copy of q, k, v with a key mask. Where all sequences are of one length there is
  nothing to pad and no mask, so that a GPU takes its flash kernels, which have dropout;
- ``varlen``: ``torch.nn.attention.varlen``: flash kernels for sequences of any lengths, of 16 bits, without dropout.

``mixed`` (the default of newer GPUs where not all calls can be ``varlen``) leaves it to each call: ``varlen`` in 16
bits without dropout, else ``padded``. So a teacher has the flash kernels beside a student that drops probabilities.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distill_core.models.products import Group, attend_by_products, groups_of

Kernel = Literal["runs", "padded", "varlen", "mixed"]
SIXTEEN_BITS = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class AttentionLayout:
    """Where the sequences lie in the stream, prepared once per batch and shared by all layers and models."""

    kernel: Kernel
    lengths: tuple[int, ...]
    runs: tuple[tuple[int, int, int], ...]
    """(first token, sequences, length) of each run of equal lengths."""
    starts: Tensor
    """int64 [B], the first row of each sequence."""
    sizes: Tensor
    """int64 [B], its tokens."""
    slots: Tensor | None
    """``padded``, ``mixed``: int64 [N], the place of each token in the padded [B * longest] layout; None where all
    sequences are of one length."""
    key_mask: Tensor | None
    """``padded``, ``mixed``: bool [B, 1, 1, longest]; None where all sequences are of one length."""
    bounds: Tensor | None
    """``varlen``, ``mixed``: int32 [B + 1]."""
    groups: tuple[Group, ...]
    """``runs``: the sequences that are computed together in bf16."""

    @property
    def sequence(self) -> Tensor:
        """int64 [N], the number of each token's sequence."""
        numbers = torch.arange(len(self.lengths), device=self.sizes.device)
        return numbers.repeat_interleave(self.sizes, output_size=sum(self.lengths))

    def blocks(self, *streams: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """For each run of sequences of equal length, the streams [N, ...] as [sequences, length, ...] (views)."""
        for start, count, length in self.runs:
            stop = start + count * length
            yield tuple(t[start:stop].view(count, length, *t.shape[1:]) for t in streams)


def layout(lengths: list[int], kernel: Kernel) -> AttentionLayout:
    """The layout of sequences of ``lengths`` that follow one another in a stream."""
    size = torch.tensor(lengths, dtype=torch.int64)
    ends = size.cumsum(0)
    slots = key_mask = bounds = None
    runs, groups = _runs(lengths), groups_of(tuple(lengths)) if kernel == "runs" else ()
    if kernel in ("padded", "mixed") and len(runs) > 1:
        key_mask = torch.arange(max(lengths)) < size[:, None]
        slots = key_mask.flatten().nonzero().squeeze(1)
        key_mask = key_mask[:, None, None, :]
    if kernel in ("varlen", "mixed"):
        bounds = F.pad(ends, (1, 0)).to(torch.int32)
    return AttentionLayout(kernel, tuple(lengths), runs, ends - size, size, slots, key_mask, bounds, groups)


def _runs(lengths: list[int]) -> tuple[tuple[int, int, int], ...]:
    runs: list[tuple[int, int, int]] = []
    start = 0
    for length in lengths:
        if runs and runs[-1][2] == length:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, length)
        else:
            runs.append((start, 1, length))
        start += length
    return tuple(runs)


def choose_kernel(wanted: str, device: torch.device, flash: bool = False) -> Kernel:
    """``auto`` -> the device's default; ``flash``: whether all models run in 16 bits and drop no attention."""
    if wanted == "auto":
        if device.type == "cpu":
            return "runs"
        if not has_varlen(device):
            return "padded"
        return "varlen" if flash else "mixed"
    return wanted  # type: ignore[return-value]


def has_varlen(device: torch.device) -> bool:
    """Whether this torch has the kernels (2.10) and the GPU can run them (Ampere)."""
    if device.type != "cuda" or importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def attend(q: Tensor, k: Tensor, v: Tensor, where: AttentionLayout, dropout: float = 0.0) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v within each sequence.

    Args:
        q, k, v: [N, heads, d], the tokens of all sequences one after another.
        where: the layout of the same N tokens.
        dropout: on the attention probabilities (0 with ``varlen``, whose kernels have none).

    Returns:
        [N, heads, d].
    """
    kernel = where.kernel
    if kernel == "runs":
        if q.dtype == torch.bfloat16 and q.device.type == "cpu":
            return attend_by_products(q, k, v, where.groups, dropout)
        return _attend_runs(q, k, v, where, dropout)
    if kernel == "mixed":
        kernel = "varlen" if dropout == 0 and q.dtype in SIXTEEN_BITS else "padded"
    if kernel == "padded":
        return _attend_padded(q, k, v, where, dropout)
    return _attend_varlen(q, k, v, where)


def _attend_runs(q: Tensor, k: Tensor, v: Tensor, where: AttentionLayout, dropout: float) -> Tensor:
    out = []
    for start, count, length in where.runs:
        stop = start + count * length
        rq, rk, rv = (t[start:stop].reshape(count, length, *t.shape[1:]).transpose(1, 2) for t in (q, k, v))
        run = F.scaled_dot_product_attention(rq, rk, rv, dropout_p=dropout)
        out.append(run.transpose(1, 2).flatten(0, 1))
    return out[0] if len(out) == 1 else torch.cat(out)


def _attend_varlen(q: Tensor, k: Tensor, v: Tensor, where: AttentionLayout) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    assert where.bounds is not None
    size, longest = q.shape[-1], max(where.lengths)
    if size % 8:  # the kernels take multiples of 8; zeros add nothing to the products
        q, k, v = (F.pad(t, (0, -size % 8)) for t in (q, k, v))
    out = varlen_attn(q, k, v, where.bounds, where.bounds, longest, longest, scale=size**-0.5)
    assert isinstance(out, Tensor)
    return out[..., :size]


def _attend_padded(q: Tensor, k: Tensor, v: Tensor, where: AttentionLayout, dropout: float) -> Tensor:
    if where.slots is None or where.key_mask is None:  # one run
        return _attend_runs(q, k, v, where, dropout)
    batch, longest = where.key_mask.shape[0], where.key_mask.shape[-1]
    slots = where.slots

    def spread(t: Tensor) -> Tensor:
        full = t.new_zeros(batch * longest, *t.shape[1:]).index_copy(0, slots, t)
        return full.reshape(batch, longest, *t.shape[1:]).transpose(1, 2)

    out = F.scaled_dot_product_attention(spread(q), spread(k), spread(v), attn_mask=where.key_mask, dropout_p=dropout)
    return out.transpose(1, 2).flatten(0, 1)[slots]

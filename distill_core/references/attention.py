"""Attention of each sequence to its own tokens and to those of its reference, on the token stream."""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from distill_core.batch import Batch
from distill_core.features import Heads
from distill_core.references.reference import References


def attend_to_both(
    own: Heads, keys: Tensor, values: Tensor, batch: Batch, dropout: float = 0.0, only_reference: bool = False
) -> Tensor:
    """softmax(q [k; keys]ᵀ / sqrt(d)) [v; values] within each sequence and its reference.

    A sequence without a reference attends to itself alone, as in a plain layer.

    Args:
        own: query, key and value of the sequences' tokens, each [N, heads, d].
        keys, values: [R, heads, d], of the references' tokens.
        batch: with its ``references``.
        dropout: on the attention probabilities.
        only_reference: a sequence that has a reference does not attend to itself.

    Returns:
        [N, heads, d].
    """
    references, where = batch.references, batch.layout
    assert references is not None
    if where.kernel != "runs":
        # one call, all sequences padded to the longest, whatever the kernel: only one layer does this
        sizes = (where.sizes, where.lengths)
        return _block(own, keys, values, batch.positions, references, *sizes, dropout, only_reference)
    out = []
    ends = [0, *accumulate(references.lengths)]
    sequence = 0
    for start, count, length in where.runs:
        tokens = slice(start, start + count * length)
        places = slice(ends[sequence], ends[sequence + count])
        part = References(
            ids=references.ids[places],
            positions=references.positions[places],
            sizes=references.sizes[sequence : sequence + count],
            vectors=references.vectors[places],
            lengths=references.lengths[sequence : sequence + count],
        )
        mine = Heads(*(t[tokens] for t in own))
        lengths = (length,) * count
        positions = batch.positions[tokens]
        sizes = (where.sizes[sequence : sequence + count], lengths)
        out.append(_block(mine, keys[places], values[places], positions, part, *sizes, dropout, only_reference))
        sequence += count
    return out[0] if len(out) == 1 else torch.cat(out)


def _block(
    own: Heads,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    references: References,
    sizes: Tensor,
    lengths: tuple[int, ...],
    dropout: float,
    only_reference: bool,
) -> Tensor:
    """Some sequences with one call, padded where lengths differ: [tokens, heads, d].

    ``sizes``: the ``lengths``, on the device.
    """
    order = torch.arange(len(lengths), device=positions.device)
    rows = order.repeat_interleave(sizes, output_size=sum(lengths))
    longest, most = max(lengths), max(references.lengths)
    query, key, value = (_padded(t, rows, positions, len(lengths), longest) for t in own)
    itself = _filled(sizes, longest)
    if only_reference:
        itself = itself & (references.sizes == 0)[:, None]
    other = _filled(references.sizes, most)
    left_out = only_reference and min(references.lengths) > 0  # nobody looks at its own tokens
    if most:
        places = (references.sequence, references.positions)
        rk, rv = (_padded(t, *places, len(lengths), most) for t in (keys, values))
        key, value = (rk, rv) if left_out else (torch.cat([key, rk], 2), torch.cat([value, rv], 2))
    seen = other if left_out else torch.cat([itself, other], 1)
    whole = min(lengths) == longest and min(references.lengths) == most and (left_out or not only_reference)
    mask = None if whole else seen[:, None, None, :]
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    context = found.transpose(1, 2)[rows, positions]
    # Without a single reference in these sequences keys and values still take part, so that their gradients are zeros
    # and not missing (ranks must agree on which parameters have gradients).
    return context if most else context + 0.0 * (keys.sum() + values.sum())


def _padded(t: Tensor, rows: Tensor, places: Tensor, count: int, longest: int) -> Tensor:
    """[tokens, heads, d] -> [count, heads, longest, d], zeros where there is no token."""
    full = t.new_zeros(count * longest, *t.shape[1:]).index_copy(0, rows * longest + places, t)
    return full.view(count, longest, *t.shape[1:]).transpose(1, 2)


def _filled(sizes: Tensor, longest: int) -> Tensor:
    """bool [count, longest]: whether there is a token."""
    return torch.arange(longest, device=sizes.device) < sizes[:, None]

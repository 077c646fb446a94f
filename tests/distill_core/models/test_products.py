"""Attention by matrix products against the softmax written out in fp64, sequence by sequence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill_core.models import products
from distill_core.models.attention import attend, layout
from distill_core.models.products import attend_by_products, groups_of


def streams(tokens: int, heads: int = 3, size: int = 8, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(tokens, heads, size, dtype=torch.float64, generator=generator).to(dtype) for _ in range(4)]


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def written_out(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    found = []
    for mq, mk, mv in zip(*(torch.split(t, lengths) for t in (q, k, v)), strict=True):
        scores = torch.einsum("qhd,khd->hqk", mq, mk) / q.shape[-1] ** 0.5
        found.append(torch.einsum("hqk,khd->qhd", scores.exp() / scores.exp().sum(-1, keepdim=True), mv))
    return torch.cat(found)


def with_gradients(attention: Attention, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in inputs]
    out = attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.sampled_from([1, 50, 400, 2**20]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_lengths_in_any_order(lengths: list[int], scores: int, longest_first: bool) -> None:
    lengths = sorted(lengths, reverse=True) if longest_first else lengths
    *inputs, grad = streams(sum(lengths))
    before, products.SCORES = products.SCORES, scores
    try:
        found = with_gradients(lambda q, k, v: attend_by_products(q, k, v, groups_of(tuple(lengths))), inputs, grad)
    finally:
        products.SCORES = before
    expected = with_gradients(lambda q, k, v: written_out(q, k, v, lengths), inputs, grad)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_groups_hold_each_sequence_once_and_waste_little(lengths: list[int]) -> None:
    groups = groups_of(tuple(lengths))
    assert sum(group.count for group in groups) == len(lengths)
    assert [group.start for group in groups[1:]] == [group.stop for group in groups[:-1]]
    assert groups[0].start == 0 and groups[-1].stop == sum(lengths)
    first = 0
    for group in groups:
        own = lengths[first : first + group.count]
        first += group.count
        assert group.length == max(own) and group.stop - group.start == sum(own)
        assert all(group.length**2 - length**2 <= products.SPARED for length in own)
        assert (group.slots is None) == (group.bias is None) == (len(set(own)) == 1)


def test_equal_lengths_are_one_group() -> None:
    (group,) = groups_of((128,) * 5)
    assert (group.start, group.stop, group.count, group.length, group.slots) == (0, 640, 5, 128, None)


@pytest.mark.parametrize("lengths", [[64, 64], [40, 39, 12, 3, 1]])
def test_bf16_streams_take_it_and_stay_close(lengths: list[int]) -> None:
    *inputs, grad = streams(sum(lengths), dtype=torch.bfloat16)
    found = with_gradients(lambda q, k, v: attend(q, k, v, layout(lengths, "runs")), inputs, grad)
    expected = with_gradients(
        lambda q, k, v: written_out(q, k, v, lengths), [t.double() for t in inputs], grad.double()
    )
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.double() - b).norm() < 0.01 * b.norm()
    q, k, v = inputs
    where = layout(lengths, "runs")
    assert torch.equal(found[0], attend_by_products(q, k, v, where.groups))


def test_what_is_dropped_forward_is_dropped_backward() -> None:
    """The derivative of the dropped attention by finite differences, as the masks are those of one seed."""
    lengths, p = [5, 4, 2], 0.5
    groups = groups_of(tuple(lengths))
    q, k, v, _ = (t.requires_grad_() for t in streams(sum(lengths)))

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(7)
        return attend_by_products(q, k, v, groups, p)

    assert torch.autograd.gradcheck(attention, (q, k, v))
    assert not torch.allclose(attention(q, k, v), attend_by_products(q, k, v, groups))


def test_dropout_keeps_the_mean() -> None:
    lengths, draws = [6, 3], 4000
    q, k, v, _ = streams(sum(lengths))
    groups = groups_of(tuple(lengths))
    torch.manual_seed(0)
    mean = torch.stack([attend_by_products(q, k, v, groups, 0.2) for _ in range(draws)]).mean(0)
    torch.testing.assert_close(mean, attend_by_products(q, k, v, groups), atol=0.06, rtol=0)


def test_only_the_inputs_are_kept_for_the_backward_pass() -> None:
    kept: list[tuple[int, ...]] = []
    q, k, v, _ = (t.requires_grad_() for t in streams(200))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)), lambda t: t):
        attend_by_products(q, k, v, groups_of((200,)))
    assert kept == [(200, 3, 8)] * 3

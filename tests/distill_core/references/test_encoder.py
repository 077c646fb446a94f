"""The first layer's attention to references: against a slow loop, and down to the plain student without them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill_core.batch import Batch
from distill_core.features import FeatureRequest
from distill_core.models.attention import Kernel, layout
from distill_core.references.encoder import ReferencedEncoder, referenced
from distill_core.references.reference import References
from distill_core.references.weights import split_state
from distill_core.tasks.model import TaskModel
from tests.distill_core.references.helpers import TEACHER_WIDTH, VARIANTS, VOCABULARY, batch, student

KERNELS: list[Kernel] = ["runs", "padded"]
ALL = FeatureRequest(hidden=frozenset({0, 1, 2}), heads=frozenset({1, 2}), logits=frozenset({"all"}))
LENGTHS, SIZES = [9, 7, 7, 7, 3, 1], [4, 0, 6, 2, 6, 1]


def slow_first_layer(model: ReferencedEncoder, ids: Tensor, r_ids: Tensor, vectors: Tensor) -> Tensor:
    """Hidden state 1 of one sequence, head by head and token by token, from methods 8.1's formulas."""
    e, layer = model.bert.embeddings, model.bert.encoder.layer[0]

    def embed(tokens: Tensor) -> Tensor:
        places = e.position_embeddings.weight[: len(tokens)]
        x = e.word_embeddings.weight[tokens] + places + e.token_type_embeddings.weight[0]
        return F.layer_norm(x, x.shape[-1:], e.LayerNorm.weight, e.LayerNorm.bias, e.LayerNorm.eps)

    def linear(x: Tensor, part: Any) -> Tensor:
        return x @ part.weight.T + part.bias

    x, own = embed(ids), layer.attention.self
    mapped = linear(vectors, model.references.dense)
    norm = model.references.LayerNorm
    mapped = F.layer_norm(mapped, mapped.shape[-1:], norm.weight, norm.bias, norm.eps)
    variant = model.settings.variant
    r_keys = mapped if variant == "C" else embed(r_ids) if len(r_ids) else mapped
    query, heads = linear(x, own.query), own.heads
    d = query.shape[1] // heads

    def attended(keys: Tensor, values: Tensor) -> Tensor:
        k, v = linear(keys, own.key), linear(values, own.value)
        out = torch.zeros(len(x), heads, d)
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            for i in range(len(x)):
                weights = torch.stack([query[i, part] @ k[j, part] for j in range(len(k))]) / math.sqrt(d)
                out[i, h] = weights.softmax(0) @ v[:, part]
        return out

    if not len(r_ids):
        context = attended(x, x)
    elif model.references.gate is not None:
        g = torch.sigmoid(model.references.gate.bias)[None, :, None]
        context = (1 - g) * attended(x, x) + g * attended(r_keys, mapped)
    elif variant == "B":
        context = attended(r_keys, mapped)
    else:
        context = attended(torch.cat([x, r_keys]), torch.cat([x, mapped]))
    dense = layer.attention.output
    y = linear(context.flatten(1), dense.dense) + x
    y = F.layer_norm(y, y.shape[-1:], dense.LayerNorm.weight, dense.LayerNorm.bias, dense.LayerNorm.eps)
    z = linear(F.gelu(linear(y, layer.intermediate.dense)), layer.output.dense) + y
    return F.layer_norm(z, z.shape[-1:], layer.output.LayerNorm.weight, layer.output.LayerNorm.bias, 1e-12)


# The first layer takes SDPA also where the others take CUDA's varlen kernels; a gate's own attention is such another.
CASES = [
    (name, kernel) for name in VARIANTS for kernel in (*KERNELS, "varlen") if "gate" not in name or kernel in KERNELS
]


@pytest.mark.parametrize(("name", "kernel"), CASES)
def test_against_a_slow_loop(name: str, kernel: Kernel) -> None:
    _, model = student(VARIANTS[name])
    made = batch(LENGTHS, SIZES, kernel)
    with torch.no_grad():
        found = model(made, FeatureRequest(hidden=frozenset({1}))).hidden[1]
        at = r_at = 0
        for length, size in zip(LENGTHS, SIZES, strict=True):
            r = slice(r_at, r_at + size)
            assert made.references is not None
            expected = slow_first_layer(
                model, made.ids[at : at + length], made.references.ids[r], made.references.vectors[r]
            )
            torch.testing.assert_close(found[at : at + length], expected, atol=2e-5, rtol=0)
            at, r_at = at + length, r_at + size


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", VARIANTS)
def test_without_references_it_is_the_plain_student(name: str, kernel: Kernel) -> None:
    """No references: the same bits. Empty ones, alone or beside others: to 1e-6 (another grouping of the same sums)."""
    plain, model = student(VARIANTS[name])
    with torch.no_grad():
        expected = plain(batch(LENGTHS, None, kernel), ALL)
        bare = model(batch(LENGTHS, None, kernel), ALL)
        empty = model(batch(LENGTHS, [0] * len(LENGTHS), kernel), ALL)
        mixed = model(batch(LENGTHS, SIZES, kernel), ALL)
    assert torch.equal(bare.logits["all"], expected.logits["all"])
    for layer in (0, 1, 2):
        assert torch.equal(bare.hidden[layer], expected.hidden[layer])
        torch.testing.assert_close(empty.hidden[layer], expected.hidden[layer], atol=1e-6, rtol=0)
    without = slice(9, 16)  # sequence 1
    torch.testing.assert_close(mixed.logits["all"][without], expected.logits["all"][without], atol=1e-5, rtol=0)
    assert (mixed.hidden[1][:9] - expected.hidden[1][:9]).abs().max() > 1e-2


@pytest.mark.parametrize("name", VARIANTS)
def test_no_gradient_is_missing_where_no_sequence_has_a_reference(name: str) -> None:
    """Ranks with and without references in a step must agree on which parameters have gradients."""
    _, model = student(VARIANTS[name])
    model.train()(batch([5, 3], [0, 0]), FeatureRequest(hidden=frozenset({2}))).hidden[2].square().sum().backward()
    for parameter in model.references.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
    model.zero_grad()
    model(batch([5, 3], [2, 0]), FeatureRequest(hidden=frozenset({2}))).hidden[2].square().sum().backward()
    for name_, parameter in model.references.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name_


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 6)), min_size=1, max_size=5), st.sampled_from(list(VARIANTS))
)
def test_neither_grouping_nor_kernel_matters(shapes: list[tuple[int, int]], name: str) -> None:
    _, model = student(VARIANTS[name])
    shapes = sorted(shapes, reverse=True)
    lengths, sizes = [n for n, _ in shapes], [n for _, n in shapes]
    request = FeatureRequest(hidden=frozenset({2}))
    with torch.no_grad():
        together = model(batch(lengths, sizes), request).hidden[2]
        padded = model(batch(lengths, sizes, "padded"), request).hidden[2]
        torch.testing.assert_close(padded, together, atol=2e-5, rtol=0)
        at = 0
        for number, (length, _) in enumerate(shapes):
            alone = only(batch(lengths, sizes), number)
            found = model(alone, request).hidden[2]
            torch.testing.assert_close(found, together[at : at + length], atol=2e-5, rtol=0)
            at += length


def only(made: Batch, number: int) -> Batch:
    """One sequence of a batch, with its reference."""
    at, length = int(made.layout.starts[number]), made.layout.lengths[number]
    references = made.references
    assert references is not None
    r_at, size = sum(references.lengths[:number]), references.lengths[number]
    part = slice(r_at, r_at + size)
    return replace(
        made,
        ids=made.ids[at : at + length],
        positions=made.positions[at : at + length],
        layout=layout([length], "runs"),
        references=References(
            references.ids[part],
            references.positions[part],
            references.sizes[number : number + 1],
            references.vectors[part],
            (size,),
        ),
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_a_reference_changes_its_own_sequence_only(name: str) -> None:
    _, model = student(VARIANTS[name])
    made = batch(LENGTHS, SIZES)
    assert made.references is not None
    vectors, ids = made.references.vectors.clone(), made.references.ids.clone()
    vectors[4:10] += 1.0  # of sequence 2
    ids[4:10] = (ids[4:10] + 1) % VOCABULARY
    other = replace(made, references=replace(made.references, vectors=vectors, ids=ids))
    request = FeatureRequest(logits=frozenset({"all"}))
    with torch.no_grad():
        changed = (model(made, request).logits["all"] - model(other, request).logits["all"]).abs().amax(1) > 1e-6
    assert changed[16:23].all() and not changed[:16].any() and not changed[23:].any()


def test_heads_of_the_first_layer_are_the_sequences_own() -> None:
    plain, model = student()
    with torch.no_grad():
        expected = plain(batch(LENGTHS, None), ALL).heads[1]
        found = model(batch(LENGTHS, SIZES), ALL).heads[1]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_only_the_map_and_the_gate_are_more() -> None:
    """Section 8's size check: one 768 -> 312 map beside TinyBERT4."""
    plain, model = student({"gate": True})
    extra = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == TEACHER_WIDTH * 12 + 12 + 2 * 12 + 3
    state, more = split_state(model.state_dict())
    assert set(state) == set(plain.state_dict())
    assert set(more) == {"dense.weight", "dense.bias", "LayerNorm.weight", "LayerNorm.bias", "gate.bias"}


def test_a_task_model_reads_references_through_its_encoder() -> None:
    _, model = student()
    task = TaskModel(model, "classification", ["a", "b", "c"]).eval()
    assert referenced(task) is model
    request = FeatureRequest(task=True)
    with torch.no_grad():
        a, b = (task(batch(LENGTHS, sizes), request).task for sizes in (SIZES, None))
    assert a.shape == (6, 3) and (a[0] - b[0]).abs().max() > 1e-4
    torch.testing.assert_close(a[1], b[1], atol=1e-6, rtol=0)
    state, more = split_state(task.state_dict())
    assert "encoder.bert.embeddings.word_embeddings.weight" in state and "dense.weight" in more

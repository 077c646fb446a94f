"""Random token streams and features for the tests of the losses, and the comparison with a reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distill_core.batch import Batch
from distill_core.features import Features
from distill_core.models.attention import Kernel
from distill_core.models.config import EncoderConfig
from distill_core.objectives import OBJECTIVES
from distill_core.objectives.base import Term
from tests.distill_core.objectives import reference

FEW = settings(max_examples=30, deadline=None)
lengths_of = st.lists(st.sampled_from([1, 2, 3, 3, 4, 5]), min_size=1, max_size=4)
kernels: st.SearchStrategy[Kernel] = st.sampled_from(["runs", "padded"])


def shape(hidden: int, layers: int = 3, vocab: int = 19, pooler: bool = False) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=1,
        intermediate_size=8,
        pooler=pooler,
    )


def build(kind: str, student: EncoderConfig, teacher: EncoderConfig | None, **fields: object) -> Term:
    """The term in fp64 with parameters that are not tiny."""
    term = OBJECTIVES[kind](OBJECTIVES[kind].Config(**{"kind": kind, **fields}), student, teacher)
    torch.manual_seed(0)
    for parameter in term.parameters():
        nn.init.normal_(parameter, std=0.5)
    return term.double()


def draw(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hidden(seed: int, layers: int, tokens: int, width: int) -> dict[int, Tensor]:
    return {i: draw(1000 * seed + i, tokens, width) for i in range(layers + 1)}


def stream(lengths: list[int], kernel: Kernel = "runs") -> Batch:
    return Batch.of([[0] * length for length in lengths], kernel)


def masked_stream(lengths: list[int], vocab: int, seed: int = 0, kernel: Kernel = "runs") -> Batch:
    """About a third of the rows masked, about a half of them sampled; sometimes none."""
    batch, generator = stream(lengths, kernel), torch.Generator().manual_seed(seed)
    batch.rows = (torch.rand(batch.n_tokens, generator=generator) < 0.35).nonzero().squeeze(1)
    batch.labels = torch.randint(vocab, (batch.n_masked,), generator=generator)
    batch.sampled = (torch.rand(batch.n_tokens, generator=generator) < 0.5).nonzero().squeeze(1)
    return batch


def maps(term: Term, function: str = "linear") -> list[reference.Map]:
    """Copies of the term's projections."""
    linear = [module for module in term.modules() if isinstance(module, nn.Linear)]
    return [(m.weight.detach().clone(), m.bias.detach().clone(), function) for m in linear]


def expect(
    term: Term,
    student: dict[int, Tensor],
    teacher: dict[int, Tensor],
    batch: Batch,
    formula: Callable[[dict[int, Tensor], list[reference.Map]], dict[str, Tensor]],
    function: str = "linear",
) -> None:
    """Values to 1e-6 and all gradients to 1e-5 of the formula's, both relative; the teacher is left as it is."""
    leaves = {i: h.clone().requires_grad_() for i, h in student.items()}
    given = {i: h.clone() for i, h in teacher.items()}
    sums = term(Features(hidden=dict(leaves)), Features(hidden=given), batch, 0.0)
    assert list(sums) == term.names()
    means = {name: value / batch.counts()[term.count] for name, value in sums.items()}
    torch.stack(list(means.values())).sum().backward()
    assert all(torch.equal(given[i], teacher[i]) for i in teacher)

    wanted_leaves = {i: h.clone().requires_grad_() for i, h in student.items()}
    copies = maps(term, function)
    parameters = [p.requires_grad_() for weight, bias, _ in copies for p in (weight, bias)]
    wanted = formula(wanted_leaves, copies)
    torch.stack(list(wanted.values())).sum().backward()
    assert list(means) == list(wanted)
    for name, value in wanted.items():
        assert means[name].item() == pytest.approx(value.item(), rel=1e-6, abs=1e-12), name
    pairs = [
        *zip(leaves.values(), wanted_leaves.values(), strict=True),
        *zip(term.parameters(), parameters, strict=True),
    ]
    for found, right in pairs:
        same_gradient(found.grad, right.grad)


def same_gradient(found: Tensor | None, right: Tensor | None) -> None:
    assert (found is None or not found.any()) if right is None else found is not None
    if found is not None and right is not None:
        assert (found - right).norm() <= 1e-5 * right.norm() + 1e-12

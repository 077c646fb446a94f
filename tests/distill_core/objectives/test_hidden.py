"""Losses between hidden states against loops from the formulas, and their laws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from configs.errors import ConfigError
from distill_core.features import Features
from distill_core.models.attention import Kernel
from distill_core.objectives import OBJECTIVES
from tests.distill_core.objectives import reference
from tests.distill_core.objectives.streams import FEW, build, draw, expect, hidden, kernels, lengths_of, shape, stream

KINDS = ["hidden_mse", "hidden_cosine", "pkd"]
PAIRS = [(1, 1), (3, 2), (3, 1)]


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(
    lengths=lengths_of,
    widths=st.sampled_from([(3, 3), (2, 4), (4, 3)]),
    projection=st.sampled_from(["auto", "linear", "relu", "tanh"]),
    shared=st.booleans(),
    kernel=kernels,
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_the_formula(
    kind: str, lengths: list[int], widths: tuple[int, int], projection: str, shared: bool, kernel: Kernel, seed: int
) -> None:
    assume(not shared or projection != "auto" or widths[0] != widths[1])
    fields = {"layers": PAIRS, "projection": projection, "shared_projection": shared}
    term = build(kind, shape(widths[0], 2), shape(widths[1], 3), **fields)
    assert len(list(term.parameters())) == (
        0 if projection == "auto" and widths[0] == widths[1] else 2 if shared else 6
    )
    for parameter in term.parameters():  # so that ReLU lets something through, and no vector is 0
        if parameter.dim() == 1:
            torch.nn.init.constant_(parameter, 3.0)
    student, teacher = hidden(seed, 2, sum(lengths), widths[0]), hidden(seed + 100, 3, sum(lengths), widths[1])

    def formula(mine, maps):  # type: ignore[no-untyped-def]
        how = (maps * 3 if shared else maps) or [None] * 3
        return {
            f"{kind}/{t}-{s}": getattr(reference, kind)(reference.project(mine[s], m), teacher[t], lengths)
            for (t, s), m in zip(PAIRS, how, strict=True)
        }

    function = "linear" if projection == "auto" else projection
    expect(term, student, teacher, stream(lengths, kernel), formula, function)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_like_its_teacher_loses_nothing(kind: str) -> None:
    term = build(kind, shape(8, 2), shape(8, 2), layers=[(1, 1), (2, 2)])
    same = {i: draw(i, 12, 8).float() for i in range(3)}
    sums = term(Features(hidden=same), Features(hidden=same), stream([5, 4, 3]), 0.0)
    assert [value.item() for value in sums.values()] == [0.0, 0.0]


@pytest.mark.parametrize("kind", ["hidden_cosine", "pkd"])
def test_the_length_of_vectors_does_not_matter(kind: str) -> None:
    term = build(kind, shape(4, 1), shape(4, 1), layers=[(1, 1)])
    mine, theirs = draw(0, 6, 4), draw(1, 6, 4)
    one, two = (
        term(Features(hidden={1: mine * a}), Features(hidden={1: theirs * b}), stream([3, 3]), 0.0)[f"{kind}/1-1"]
        for a, b in ((1, 1), (100, 0.01))
    )
    assert one.item() == pytest.approx(two.item(), rel=1e-12)
    against = term(Features(hidden={1: mine}), Features(hidden={1: -mine}), stream([3, 3]), 0.0)[f"{kind}/1-1"]
    assert against.item() == pytest.approx(12 if kind == "hidden_cosine" else 8)  # 6 tokens x 2; 2 sequences x 4


def test_pkd_sees_the_first_tokens_alone() -> None:
    term = build("pkd", shape(4, 2), shape(4, 3), layers=[(2, 1)])
    leaf = draw(0, 9, 4).requires_grad_()
    term(Features(hidden={1: leaf}), Features(hidden={2: draw(1, 9, 4)}), stream([4, 3, 2]), 0.0)["pkd/2-1"].backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().sum(1).nonzero().squeeze(1).tolist() == [0, 4, 7]


def test_default_layers_and_those_that_are_refused() -> None:
    assert build("hidden_cosine", shape(4, 2), shape(4, 6)).names() == ["hidden_cosine/6-2"]
    named = build("pkd", shape(4, 2), shape(4, 6), layers="uniform")
    assert named.names() == ["pkd/3-1", "pkd/6-2"]  # a first token's embedding is the same everywhere
    with pytest.raises(ConfigError, match=r"pkd names teacher layer 0.*embedding output, which pkd does not compare"):
        build("pkd", shape(4, 2), shape(4, 6), layers=[(0, 0)])
    with pytest.raises(ConfigError, match=r"hidden_cosine names student layer 3, but the student has layers 0"):
        build("hidden_cosine", shape(4, 2), shape(4, 6), layers=[(6, 3)])
    with pytest.raises(ConfigError, match="the student has 4 and the teacher 5; use projection: linear"):
        build("pkd", shape(4), shape(5), layers=[(1, 1)], projection="none")
    assert OBJECTIVES["pkd"].count == "sequences"


@pytest.mark.parametrize("kind", [*KINDS, "emd", "fsp"])
def test_sharing_what_is_not_there_is_refused(kind: str) -> None:
    layers = {} if kind == "emd" else {"layers": [(1, 1)]}
    for projection in ("auto", "none"):
        with pytest.raises(ConfigError, match=rf"{kind} has shared_projection.*projection: {projection} makes none"):
            build(kind, shape(4), shape(4), **layers, projection=projection, shared_projection=True)
    for projection, width in (("auto", 5), ("linear", 4)):
        term = build(kind, shape(4), shape(width), **layers, projection=projection, shared_projection=True)
        assert sum(parameter.numel() for parameter in term.parameters()) == 4 * width + width


@pytest.mark.parametrize("kind", [*KINDS, "nst", "fsp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_of_the_models_precision_are_compared_in_fp32(kind: str, dtype: torch.dtype) -> None:
    term = build(kind, shape(16, 1), shape(16, 1), layers=[(1, 1)])
    mine, theirs = (draw(seed, 60, 16).to(dtype) for seed in (0, 1))
    found, exact = (
        term(Features(hidden={1: a}), Features(hidden={1: b}), stream([30, 20, 10]), 0.0)[f"{kind}/1-1"]
        for a, b in ((mine, theirs), (mine.double(), theirs.double()))
    )
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-6)

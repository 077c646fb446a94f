"""``emd`` against the transport as a linear program, and its laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from distill_core.features import Features
from distill_core.models.attention import Kernel
from distill_core.objectives.emd import transport
from tests.distill_core.objectives import reference
from tests.distill_core.objectives.streams import FEW, build, draw, expect, hidden, kernels, lengths_of, shape, stream


@FEW
@given(
    lengths=lengths_of,
    layers=st.sampled_from([(2, 4), (2, 3), (3, 2), (1, 3), (3, 3)]),
    widths=st.sampled_from([(3, 3), (2, 3)]),
    shared=st.booleans(),
    kernel=kernels,
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_the_formula(
    lengths: list[int], layers: tuple[int, int], widths: tuple[int, int], shared: bool, kernel: Kernel, seed: int
) -> None:
    assume(not shared or widths[0] != widths[1])
    term = build("emd", shape(widths[0], layers[0]), shape(widths[1], layers[1]), shared_projection=shared)
    student = hidden(seed, layers[0], sum(lengths), widths[0])
    teacher = hidden(seed + 100, layers[1], sum(lengths), widths[1])

    def formula(mine, maps):  # type: ignore[no-untyped-def]
        how = (maps * layers[0] if shared else maps) or [None] * layers[0]
        projected = [reference.project(mine[i + 1], m) for i, m in enumerate(how)]
        return {"emd": reference.emd(projected, [teacher[t + 1] for t in range(layers[1])], lengths)}

    expect(term, student, teacher, stream(lengths, kernel), formula)
    needs = term.needs()
    assert needs.student.hidden == set(range(1, layers[0] + 1)) and needs.teacher.hidden == set(range(1, layers[1] + 1))


@pytest.mark.parametrize("layers", [(6, 12), (4, 12), (5, 12), (4, 6), (12, 12), (1, 7)])
def test_the_transport_is_feasible_and_the_cheapest(layers: tuple[int, int]) -> None:
    costs = np.random.default_rng(0).random((4, *layers))
    flows = transport(costs)
    assert (flows >= 0).all()
    np.testing.assert_allclose(flows.sum(2), 1 / layers[0], rtol=1e-12)
    np.testing.assert_allclose(flows.sum(1), 1 / layers[1], rtol=1e-12)
    for flow, cost in zip(flows, costs, strict=True):
        best = np.array(reference.cheapest(cost.tolist()))
        assert (flow * cost).sum() == pytest.approx((best * cost).sum(), rel=1e-9)


def test_each_sequence_has_its_own_transport() -> None:
    """Two sequences whose layers stand the other way round: a common transport could not be 0."""
    term = build("emd", shape(3, 2), shape(3, 2))
    a, b = draw(0, 5, 3), draw(1, 5, 3)
    crossed = [torch.cat([x[:2], y[2:]]) for x, y in ((b, a), (a, b))]
    loss = term(Features(hidden={1: a, 2: b}), Features(hidden=dict(enumerate(crossed, 1))), stream([2, 3]), 0.0)
    assert loss["emd"].item() == 0


def test_half_precision_states_are_compared_in_fp32() -> None:
    term = build("emd", shape(4, 2), shape(4, 4))
    states = [{i: draw(10 * n + i, 6, 4).bfloat16() for i in range(1, 5 - 2 * n)} for n in (1, 0)]
    found = term(*(Features(hidden=h) for h in states), stream([4, 2]), 0.0)["emd"]
    exact = term(*(Features(hidden={i: t.double() for i, t in h.items()}) for h in states), stream([4, 2]), 0.0)["emd"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-6)

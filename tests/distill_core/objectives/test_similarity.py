"""``nst`` and ``fsp`` against loops from the formulas, and their laws."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from configs.errors import ConfigError
from distill_core.features import Features
from distill_core.models.attention import Kernel
from distill_core.objectives import OBJECTIVES, tiles
from distill_core.objectives.similarity import FspConfig, NstConfig
from tests.distill_core.objectives import reference
from tests.distill_core.objectives.streams import FEW, build, draw, expect, hidden, kernels, lengths_of, shape, stream

LAYERS = [((1, 3), (0, 2)), (2, 1), ((0, 1), (2, 2))]
NAMES = ["1x3-0x2", "2-1", "0x1-2"]
LONG = [((1, 3), (0, 2)), ((2, 2), (1, 1)), ((0, 1), (2, 2))]


@FEW
@given(
    lengths=lengths_of,
    widths=st.sampled_from([(3, 3), (1, 2), (4, 3)]),
    form=st.sampled_from(["auto", "gram", "direct"]),
    kernel=kernels,
    entries=st.sampled_from([1, 7, 40, 10**6]),
    seed=st.integers(0, 99),
)
def test_nst_is_its_formula(
    lengths: list[int], widths: tuple[int, int], form: str, kernel: Kernel, entries: int, seed: int
) -> None:
    student, teacher = hidden(seed, 2, sum(lengths), widths[0]), hidden(seed + 100, 3, sum(lengths), widths[1])

    def formula(mine, _):  # type: ignore[no-untyped-def]
        return {
            f"nst/{name}": reference.nst((mine[s[0]], mine[s[1]]), (teacher[t[0]], teacher[t[1]]), lengths)
            for name, (t, s) in zip(NAMES, LONG, strict=True)
        }

    with patch.object(tiles, "ENTRIES", entries):
        term = build("nst", shape(widths[0], 2), shape(widths[1], 3), layers=LAYERS, form=form)
        assert not list(term.parameters())
        expect(term, student, teacher, stream(lengths, kernel), formula)


@FEW
@given(
    lengths=lengths_of,
    widths=st.sampled_from([(3, 3), (2, 3), (3, 2)]),
    projection=st.sampled_from(["auto", "tanh"]),
    shared=st.booleans(),
    kernel=kernels,
    entries=st.sampled_from([1, 40, 10**6]),
    seed=st.integers(0, 99),
)
def test_fsp_is_its_formula(
    lengths: list[int], widths: tuple[int, int], projection: str, shared: bool, kernel: Kernel, entries: int, seed: int
) -> None:
    assume(not shared or projection != "auto" or widths[0] != widths[1])
    student, teacher = hidden(seed, 2, sum(lengths), widths[0]), hidden(seed + 100, 3, sum(lengths), widths[1])

    def formula(mine, maps):  # type: ignore[no-untyped-def]
        how = (maps * 3 if shared else maps) or [None] * 3
        return {
            f"fsp/{name}": reference.fsp(
                (reference.project(mine[s[0]], m), reference.project(mine[s[1]], m)),
                (teacher[t[0]], teacher[t[1]]),
                lengths,
            )
            for name, (t, s), m in zip(NAMES, LONG, how, strict=True)
        }

    fields = {"layers": LAYERS, "projection": projection, "shared_projection": shared}
    with patch.object(tiles, "ENTRIES", entries):
        term = build("fsp", shape(widths[0], 2), shape(widths[1], 3), **fields)
        function = "linear" if projection == "auto" else projection
        expect(term, student, teacher, stream(lengths, kernel), formula, function)


@pytest.mark.parametrize("kind", ["nst", "fsp"])
def test_a_student_like_its_teacher_loses_nothing(kind: str) -> None:
    term = build(kind, shape(8, 2), shape(8, 2), layers=[((1, 2), (1, 2))])
    same = {i: draw(i, 12, 8).float() for i in range(3)}
    assert term(Features(hidden=same), Features(hidden=same), stream([5, 4, 3]), 0.0)[f"{kind}/1x2-1x2"].item() == 0


def test_the_gram_form_of_nst_in_fp32_is_the_direct_one() -> None:
    lengths = [70, 64, 9]
    student, teacher = draw(0, sum(lengths), 6).float(), draw(1, sum(lengths), 10).float()
    found: dict[str, tuple[float, Tensor]] = {}
    for form in ("gram", "direct"):
        leaf = student.clone().requires_grad_()
        term = build("nst", shape(6, 1), shape(10, 1), layers=[(1, 1)], form=form)
        value = term(Features(hidden={1: leaf}), Features(hidden={1: teacher}), stream(lengths), 0.0)["nst/1-1"]
        value.backward()
        assert leaf.grad is not None and value.dtype == torch.float32
        found[form] = (value.item(), leaf.grad)
    assert found["gram"][0] == pytest.approx(found["direct"][0], rel=1e-6)
    assert (found["gram"][1] - found["direct"][1]).norm() <= 1e-5 * found["direct"][1].norm()


@pytest.mark.parametrize("kind", ["nst", "fsp"])
def test_a_bounded_number_of_entries_is_kept_for_the_backward_pass(kind: str) -> None:
    lengths, largest = [24] * 6 + [23] * 3, 0
    states = {1: draw(0, sum(lengths), 3).requires_grad_()}
    teacher = {1: draw(1, sum(lengths), 3)}

    def pack(t: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, t.numel())
        return t

    fields = {"form": "direct"} if kind == "nst" else {}
    term = build(kind, shape(3, 1), shape(3, 1), layers=[(1, 1)], **fields)
    with patch.object(tiles, "ENTRIES", 600), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        term(Features(hidden=dict(states)), Features(hidden=teacher), stream(lengths), 0.0)
    assert largest <= sum(lengths) * 3  # the stream itself, and no product of it


def test_layers_in_all_forms() -> None:
    config = NstConfig(kind="nst", layers=[[[2, 4], [1, 2]], [3, 1]])  # type: ignore[list-item]
    assert config.matches(4, 2) == [((2, 4), (1, 2)), ((3, 3), (1, 1))]
    assert config.pairs(4, 2) == [(2, 1), (4, 2), (3, 1)]
    assert NstConfig(kind="nst", layers="uniform").matches(4, 2) == [
        ((0, 0), (0, 0)),
        ((2, 2), (1, 1)),
        ((4, 4), (2, 2)),
    ]
    term = OBJECTIVES["nst"](config, shape(4, 2), shape(4, 4))
    assert term.names() == ["nst/2x4-1x2", "nst/3-1"]
    assert (term.needs().student.hidden, term.needs().teacher.hidden) == ({1, 2}, {2, 3, 4})
    with pytest.raises(ConfigError, match="fsp names teacher layer 5, but the teacher has layers 0"):
        FspConfig(kind="fsp", layers=[((1, 5), (1, 1))]).matches(4, 2)
    with pytest.raises(ValidationError):
        NstConfig(kind="nst", layers=[[[1, 2, 3], [1, 2]]])  # type: ignore[list-item]


def test_fsp_needs_equal_widths_or_a_projection() -> None:
    with pytest.raises(ConfigError, match="fsp with projection: none needs equal widths"):
        build("fsp", shape(4), shape(6), layers=[(1, 1)], projection="none")

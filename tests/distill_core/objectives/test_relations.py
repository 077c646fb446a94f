"""MiniLM and MiniLMv2: against loops from the formulas, and their laws."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.errors import ConfigError
from distill_core.features import Heads
from distill_core.models.attention import Kernel
from distill_core.models.config import BottleneckConfig
from distill_core.objectives import OBJECTIVES, tiles
from tests.distill_core.objectives import reference_attention as reference
from tests.distill_core.objectives.test_attention import (
    FEW,
    config_of,
    expect,
    heads_of,
    kernels,
    lengths_of,
    run,
    shape,
    stream,
    term,
)


@FEW
@given(
    lengths=lengths_of,
    heads=st.integers(1, 3),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel=kernels,
    entries=st.sampled_from([1, 7, 40, 10**6]),
    alike=st.sampled_from([0.1, 0.9, 1.0]),
    seed=st.integers(0, 99),
)
def test_minilm_is_its_formula(
    lengths: list[int], heads: int, sizes: tuple[int, int], kernel: Kernel, entries: int, alike: float, seed: int
) -> None:
    mine, theirs = (heads_of(seed + 100 * i, sum(lengths), heads, size) for i, size in enumerate(sizes))
    with patch.object(tiles, "ENTRIES", entries), patch.object(tiles, "ALIKE", alike):
        loss = term("minilm", mine, theirs)
        expect(loss, mine, theirs, stream(lengths, kernel), lambda s, t: reference.minilm(s, t, lengths))


@FEW
@given(
    lengths=lengths_of,
    # (student's heads, size), (teacher's heads, size), relation heads
    shapes=st.sampled_from(
        [((2, 3), (3, 4), 6), ((2, 3), (3, 4), 3), ((1, 4), (4, 2), 2), ((3, 2), (2, 3), 1), ((2, 2), (1, 8), 4)]
    ),
    kernel=kernels,
    entries=st.sampled_from([1, 7, 40, 10**6]),
    seed=st.integers(0, 99),
)
def test_minilmv2_is_its_formula(lengths: list[int], shapes: Any, kernel: Kernel, entries: int, seed: int) -> None:
    mine, theirs = (heads_of(seed + 100 * i, sum(lengths), *size) for i, size in enumerate(shapes[:2]))
    relation_heads = shapes[2]
    with patch.object(tiles, "ENTRIES", entries):
        loss = term("minilmv2", mine, theirs, relation_heads=relation_heads)
        batch = stream(lengths, kernel)
        expect(loss, mine, theirs, batch, lambda s, t: reference.minilmv2(s, t, lengths, relation_heads))


VARIANTS: list[tuple[str, dict[str, Any]]] = [("minilm", {}), ("minilmv2", {"relation_heads": 4})]


@pytest.mark.parametrize(("kind", "fields"), VARIANTS)
def test_student_equal_to_teacher_is_0_and_stays_there(kind: str, fields: dict[str, Any]) -> None:
    lengths = [40, 40, 38, 3]
    same = heads_of(3, sum(lengths), 2, 6, torch.float32)
    found, gradients = run(term(kind, same, same, **fields), same, same, stream(lengths))
    for value in found.values():
        assert value.dtype == torch.float32 and value.item() == 0
    for gradient in gradients:
        assert gradient is not None and gradient.abs().max() < 1e-7


@pytest.mark.parametrize(("kind", "fields"), VARIANTS)
def test_order_and_grouping_of_sequences_change_nothing(kind: str, fields: dict[str, Any]) -> None:
    lengths = [7, 7, 5, 4, 4, 1]
    mine, theirs = heads_of(0, 28, 2, 4), heads_of(1, 28, 2, 6)
    loss = term(kind, mine, theirs, **fields)
    whole, gradients = run(loss, mine, theirs, stream(lengths))
    ends = torch.tensor(lengths).cumsum(0).tolist()
    total = dict.fromkeys(whole, 0.0)
    for group in ([5, 2], [0], [4, 1, 3]):
        rows = torch.cat([torch.arange(ends[i] - lengths[i], ends[i]) for i in group])
        part = [Heads(*(t[rows] for t in heads)) for heads in (mine, theirs)]
        means, part_gradients = run(loss, *part, stream([lengths[i] for i in group], "padded"))
        share = len(rows) / sum(lengths)
        total = {name: total[name] + share * value.item() for name, value in means.items()}
        for gradient, expected in zip(part_gradients, gradients, strict=True):
            torch.testing.assert_close(gradient * share, expected[rows])  # type: ignore[operator,index]
    for name, value in whole.items():
        assert total[name] == pytest.approx(value.item(), rel=1e-12)


def test_minilm_is_unchanged_when_the_heads_of_both_are_permuted() -> None:
    order = [2, 0, 3, 1]
    mine, theirs = heads_of(0, 9, 4, 3), heads_of(1, 9, 4, 5)
    turned = [Heads(*(t[:, order] for t in heads)) for heads in (mine, theirs)]
    found, again = (run(term("minilm", *both), *both, stream([5, 4]))[0] for both in ((mine, theirs), turned))
    for name, value in found.items():
        assert again[name].item() == pytest.approx(value.item(), rel=1e-12)


def test_minilmv2_is_unchanged_when_heads_move_within_relation_heads_or_with_them() -> None:
    """6 heads of the student make 3 relation heads of 2 heads each; the teacher's 3 heads are the relation heads."""
    mine, theirs = heads_of(0, 9, 6, 2), heads_of(1, 9, 3, 5)

    def value(student: list[int], teacher: list[int]) -> dict[str, float]:
        turned = [Heads(*(t[:, order] for t in heads)) for heads, order in ((mine, student), (theirs, teacher))]
        found, _ = run(term("minilmv2", *turned, relation_heads=3), *turned, stream([5, 4]))
        return {name: mean.item() for name, mean in found.items()}

    straight = value([0, 1, 2, 3, 4, 5], [0, 1, 2])
    within = value([1, 0, 2, 3, 5, 4], [0, 1, 2])
    with_them = value([4, 5, 0, 1, 2, 3], [2, 0, 1])
    across = value([2, 1, 0, 3, 4, 5], [0, 1, 2])
    assert within == pytest.approx(straight, rel=1e-12) == with_them
    assert across != pytest.approx(straight, rel=1e-3)


def test_the_parts_have_their_weights_and_a_part_without_weight_is_not_computed() -> None:
    mine, theirs = heads_of(0, 9, 2, 4), heads_of(1, 9, 2, 6)
    batch = stream([5, 4])
    whole, _ = run(term("minilmv2", mine, theirs, relation_heads=2), mine, theirs, batch)
    loss = term("minilmv2", mine, theirs, relation_heads=2, query=0.5, key=0.0)
    assert loss.names() == ["minilmv2/2-2/query", "minilmv2/2-2/value"]
    found, gradients = run(loss, mine, theirs, batch)
    assert found["query"].item() == pytest.approx(0.5 * whole["query"].item())
    assert found["value"].item() == pytest.approx(whole["value"].item())
    assert gradients[1] is None
    loss = term("minilm", mine, theirs, values=0.0)
    assert loss.names() == ["minilm/2-2/attention"]
    for kind, parts in (("minilm", ("attention", "values")), ("minilmv2", ("query", "key", "value"))):
        fields: dict[str, Any] = dict.fromkeys(parts, 0.0) | ({"relation_heads": 2} if kind == "minilmv2" else {})
        with pytest.raises(ValidationError, match="compares nothing"):
            term(kind, mine, theirs, **fields)


def test_the_last_layers_unless_pairs_are_given() -> None:
    config = OBJECTIVES["minilm"].Config(kind="minilm")
    loss = OBJECTIVES["minilm"](config, shape(2, 4, 3), shape(2, 8, 12))
    assert loss.names() == ["minilm/12-3/attention", "minilm/12-3/values"]
    config = OBJECTIVES["minilmv2"].Config(kind="minilmv2", relation_heads=8, layers=[(21, 12)])
    loss = OBJECTIVES["minilmv2"](config, shape(2, 4, 12), shape(4, 8, 24))
    assert loss.names() == [f"minilmv2/21-12/{part}" for part in ("query", "key", "value")]
    assert loss.needs().teacher.heads == {21} and loss.needs().student.heads == {12}


def test_shapes_that_do_not_fit_are_refused_with_advice() -> None:
    mine, theirs = heads_of(0, 1, 8, 2), heads_of(0, 1, 12, 2)
    with pytest.raises(ConfigError, match=r"the student has 8 attention heads and the teacher 12. Use minilmv2"):
        OBJECTIVES["minilm"](OBJECTIVES["minilm"].Config(kind="minilm"), config_of(mine), config_of(theirs))
    config = OBJECTIVES["minilmv2"].Config(kind="minilmv2", relation_heads=48)
    with pytest.raises(
        ConfigError, match=r"48 does not divide 256 \(.* Take one of 1, 2, 4, 8, 16, 32, 64, 128, 256\."
    ):
        OBJECTIVES["minilmv2"](config, shape(8, 32), shape(12, 64))
    OBJECTIVES["minilmv2"](config, shape(8, 36), shape(12, 64))  # H288
    narrow = shape(4, 128).model_copy(update={"bottleneck": BottleneckConfig(intra_size=128)})
    with pytest.raises(ConfigError, match=r"48 does not divide 128 \(.* 1, 2, 4, 8, 16, 32, 64, 128\."):
        OBJECTIVES["minilmv2"](config, narrow, shape(12, 64))
    with pytest.raises(ValidationError, match="relation_heads"):
        OBJECTIVES["minilmv2"].Config(kind="minilmv2")


@pytest.mark.parametrize(("kind", "fields"), VARIANTS)
def test_half_precision_features_are_compared_in_fp32(kind: str, fields: dict[str, Any]) -> None:
    lengths = [9, 9, 4]
    mine, theirs = heads_of(0, 22, 2, 8, torch.bfloat16), heads_of(1, 22, 2, 8, torch.bfloat16)
    exact = [Heads(*(t.double() for t in heads)) for heads in (mine, theirs)]
    found, gradients = run(term(kind, mine, theirs, **fields), mine, theirs, stream(lengths))
    wanted, _ = run(term(kind, *exact, **fields), *exact, stream(lengths))
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(wanted[name].item(), rel=2e-6)
    assert all(gradient is None or gradient.dtype == torch.bfloat16 for gradient in gradients)


@pytest.mark.parametrize(("kind", "fields"), VARIANTS)
def test_scores_of_any_size_stay_finite(kind: str, fields: dict[str, Any]) -> None:
    lengths = [40, 39, 3]
    mine, theirs = (Heads(*(t * 100 for t in heads_of(seed, sum(lengths), 2, 8, torch.bfloat16))) for seed in (0, 1))
    found, gradients = run(term(kind, mine, theirs, **fields), mine, theirs, stream(lengths))
    assert all(value.isfinite() for value in found.values())
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


def test_nothing_of_a_sequence_reaches_another_that_shares_its_tile() -> None:
    lengths = [4, 5]
    mine, theirs = heads_of(0, 9, 2, 4), heads_of(1, 9, 2, 4)
    alone, gradients = run(
        term("minilm", mine, theirs), *(Heads(*(t[:4] for t in h)) for h in (mine, theirs)), stream([4])
    )
    for t in mine:
        t[4:] = float("nan")
    with patch.object(tiles, "ALIKE", 0.1):
        both, poisoned = run(term("minilm", mine, theirs), mine, theirs, stream(lengths))
    assert all(value.isnan() for value in both.values()) and all(value.isfinite() for value in alone.values())
    for gradient, expected in zip(poisoned, gradients, strict=True):
        torch.testing.assert_close(gradient[:4] * 9 / 4, expected)  # type: ignore[index]

"""Schedules, weights, and how the objective adds its terms up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.errors import ConfigError
from distill_core.features import Features
from distill_core.objective import LossTerms, Objective
from distill_core.objectives.base import Schedule, value_at
from distill_core.objectives.hidden import HiddenMseConfig
from distill_core.objectives.logits import KdCeConfig, MlmConfig
from tests.distill_core.objectives.streams import build, draw, masked_stream, shape


@given(x=st.floats(0, 1))
def test_textbrewers_linear_growth_and_decay(x: float) -> None:
    assert value_at(Schedule(start=0, end=1), x) == pytest.approx(x)
    assert value_at(Schedule(start=1, end=0), x) == pytest.approx(1 - x)


def test_a_schedule_stands_still_outside_of_its_stretch() -> None:
    schedule = Schedule(start=4, end=1, begin=0.2, finish=0.8)
    values = [schedule.at(x) for x in (0, 0.2, 0.4, 0.5, 0.8, 1)]
    assert values == pytest.approx([4, 4, 3, 2.5, 1, 1])
    assert value_at(0.3, 0.9) == 0.3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"start": 0, "end": 1, "begin": 0.5, "finish": 0.5}, r"finish \(0.5\) must come after its begin \(0.5\)"),
        ({"start": -1, "end": 1}, "greater than or equal to 0"),
        ({"start": 0, "end": 1, "finish": 1.5}, "less than or equal to 1"),
    ],
)
def test_impossible_schedules_are_refused(fields: dict[str, float], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Schedule(**fields)


def test_negative_weights_are_refused() -> None:
    with pytest.raises(ValidationError, match="weight -1 is negative"):
        MlmConfig(kind="mlm", weight=-1)


def losses_at(progress: float, terms: list[Any]) -> LossTerms:
    batch = masked_stream([8, 4], 19, seed=1)
    student = Features({0: draw(0, 12, 4), 1: draw(1, 12, 4)}, logits={"masked": draw(2, batch.n_masked, 19)})
    teacher = Features({0: draw(3, 12, 4), 2: draw(4, 12, 4)}, logits={"masked": draw(5, batch.n_masked, 19)})
    counts = {name: torch.tensor(value) for name, value in batch.counts().items()}
    found: LossTerms = Objective(terms, shape(4), shape(4))(student, teacher, batch, counts, progress)
    return found


def test_weights_follow_their_schedules_through_the_objective() -> None:
    terms = [
        KdCeConfig(kind="kd_ce", weight=Schedule(start=1, end=0)),
        MlmConfig(kind="mlm", weight=Schedule(start=0, end=1)),
        HiddenMseConfig(kind="hidden_mse", layers=[(0, 0), (2, 1)], weight=3.0),
    ]
    for progress in (0.0, 0.25, 1.0):
        losses = losses_at(progress, terms)
        weights = {"kd_ce": 1 - progress, "mlm": progress, "hidden_mse/0-0": 3.0, "hidden_mse/2-1": 3.0}
        assert {name: weight for name, (_, weight) in losses.parts.items()} == weights
        shares = {name: share.item() for name, (share, _) in losses.parts.items()}
        assert losses.total.item() == pytest.approx(sum(weights[name] * shares[name] for name in shares), rel=1e-12)
        unweighted = {name: share.item() for name, (share, _) in losses_at(0.0, terms).parts.items()}
        assert shares == unweighted and min(shares.values()) > 0


def test_a_term_that_stands_twice_has_two_names() -> None:
    terms = [KdCeConfig(kind="kd_ce", temperature=1), KdCeConfig(kind="kd_ce", temperature=8), MlmConfig(kind="mlm")]
    assert list(losses_at(0.0, terms).parts) == ["kd_ce.0", "kd_ce.1", "mlm"]
    assert Objective(terms, shape(4), shape(4)).names() == ["kd_ce.0", "kd_ce.1", "mlm"]


@pytest.mark.parametrize("kind", ["hidden_mse", "nst", "fsp", "emd", "kd_ce", "kd_kl", "kd_mse"])
def test_a_stage_without_a_teacher_is_told_so(kind: str) -> None:
    fields = {"layers": [(1, 1)]} if kind in ("hidden_mse", "nst", "fsp") else {}
    with pytest.raises(ConfigError, match=f"{kind} compares the student with a teacher, but this stage has none"):
        build(kind, shape(4), None, **fields)

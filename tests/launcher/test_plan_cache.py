"""Live or cached teachers: the arithmetic by hand, and the figures of a published shape."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distill_core.batch import Count
from distill_core.features import MASKED_LOGITS, FeatureRequest
from distill_core.flops import forward_flops
from distill_core.models.config import EncoderConfig, ModelConfig
from launcher import plan_time, plan_view
from launcher.plan import StagePlan, make_plan
from launcher.plan_cache import CachePlan, TeacherCost, speed_up, teacher_cost
from launcher.plan_view import Wanted
from launcher.runfile import open_run

BASE = ModelConfig(preset="roberta-wwm-ext").resolve()
TINY = EncoderConfig(vocab_size=100, hidden_size=4, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
LONG: dict[Count, float] = {"tokens": 1, "pairs": 512, "masked": 0.15}
SHORT: dict[Count, float] = {"tokens": 1, "pairs": 10, "masked": 0.5}


# ---------------------------------------------------------------- one teacher


def test_bytes_of_a_token() -> None:
    """768 numbers of 2 bytes at 15 % of the tokens; seven hidden states at all of them."""
    vectors = teacher_cost(BASE, MASKED_LOGITS, LONG, word=2)
    assert vectors.bytes == pytest.approx(230.4)
    seven = FeatureRequest(hidden=frozenset({0, 2, 4, 6, 8, 10, 12}))
    assert teacher_cost(BASE, seven, LONG, word=2).bytes == 10752
    assert teacher_cost(BASE, seven | MASKED_LOGITS, LONG, word=4).bytes == pytest.approx(2 * (10752 + 230.4))


def test_flops_by_hand() -> None:
    # a layer: 2 x (4 x 16 + 2 x 64) and 4 x 4 x 10; the head at half of the tokens: transform 2 x 16, decoder 2 x 400
    both = teacher_cost(TINY, MASKED_LOGITS, SHORT, word=2)
    assert (both.write, both.cached, both.live) == (2 * 544 + 16, 400, 2 * 544 + 416)
    assert both.live == forward_flops(TINY, MASKED_LOGITS).of(SHORT)
    first = teacher_cost(TINY, FeatureRequest(hidden=frozenset({0, 1})), SHORT, word=4)
    assert (first.write, first.cached, first.live, first.bytes) == (544, 0, 544, 32)
    narrow = TINY.model_copy(update={"family": "electra", "embedding_size": 2})
    assert teacher_cost(narrow, MASKED_LOGITS, SHORT, 2).bytes == 0.5 * 2 * 2
    assert teacher_cost(TINY, FeatureRequest(), SHORT, 2) == TeacherCost(0, 0, 0, 0)


def test_the_figures_of_a_published_pair() -> None:
    """RoBERTa-wwm-ext -> MiniRBT-H256 on 5.4 G tokens of length 512, read 39 times; shares of the peak on paper."""
    cost = teacher_cost(BASE, MASKED_LOGITS, LONG, word=2)
    assert cost.live == pytest.approx(189e6 + 5.0e6, rel=0.002)
    student = 3 * forward_flops(ModelConfig(preset="minirbt-h256").resolve(), MASKED_LOGITS).of(LONG)
    assert student == pytest.approx(39e6 + 4.9e6, rel=0.04)
    found = CachePlan(False, None, cost, student, tokens=5.4e9, epochs=39, views=4)
    assert found.view_bytes == pytest.approx(1.24e12, rel=0.005)
    assert found.step_live == pytest.approx(238e6, rel=0.01)
    assert found.step_cached == pytest.approx(49e6, rel=0.04)
    assert speed_up(found.step_live, found.step_cached, 0.52, 0.37) == pytest.approx(3.5, abs=0.1)
    assert speed_up(238, 49, 0.52, 0.37) == pytest.approx(3.456, abs=1e-3)
    assert found.read_rate(0.37 * 788e12 / found.step_cached) == pytest.approx(1.4e9, rel=0.03)
    assert (found.break_even, found.pays_from) == (pytest.approx(1.0), 2)
    assert found.reuse == 9.75


# ---------------------------------------------------------------- a stage


def cost(**values: Any) -> CachePlan:
    given = {"chosen": True, "refused": None, "cost": TeacherCost(100, 80, 20, 3), "student": 50}
    return CachePlan(**{**given, "tokens": 1000, "epochs": 6.0, "views": 3, **values})


def test_a_stage_by_hand() -> None:
    found = cost()
    assert (found.step_live, found.step_cached, found.reuse) == (150, 70, 2)
    # six passes over 1000 tokens against six cheap ones and three that write
    assert found.stage_cached * 6000 == 6 * 1000 * 70 + 3 * 1000 * 80
    assert found.stage_flops == found.stage_cached == 110
    assert cost(chosen=False).stage_flops == 150
    assert (found.view_bytes, found.all_bytes) == (3000, 9000)
    assert found.read_rate(10) == 30


def test_one_reading_is_no_gain() -> None:
    assert cost(epochs=3.0).stage_cached == cost(epochs=3.0).step_live
    assert cost(epochs=4.0).stage_cached < cost(epochs=4.0).step_live


def test_what_is_not_known() -> None:
    found = cost(tokens=None, epochs=None)
    assert (found.view_bytes, found.all_bytes, found.reuse, found.stage_cached) == (None, None, None, 70)
    nothing = cost(cost=TeacherCost(0, 0, 0, 0))
    assert math.isinf(nothing.break_even) and nothing.pays_from is None


# ---------------------------------------------------------------- a run


def stage(prepared: Path, *words: str) -> StagePlan:
    return make_plan(open_run(str(prepared), words), 1).stages[1]


def test_stages_of_a_run(prepared: Path) -> None:
    live = stage(prepared, "stages.student.training.steps=200")
    cached = stage(prepared, "stages.student.training.steps=200", "stages.student.teacher_cache={}")
    assert live.cache is not None and cached.cache is not None and live.teacher is not None
    assert (live.cache.chosen, cached.cache.chosen, live.cache.views) == (False, True, 2)
    assert live.cache.cost.bytes == pytest.approx(4 * (0.15 * 32 + 2 * 32))  # fp32; hidden states 0 and 2
    assert live.flops_per_token == live.cache.step_live
    assert cached.flops_per_token == cached.cache.stage_cached < live.flops_per_token
    assert make_plan(open_run(str(prepared)), 1).stages[0].cache is None  # pretraining
    halved = stage(prepared, "stages.student.teacher_cache={precision: bf16}")
    assert halved.cache is not None and halved.cache.cost.bytes == live.cache.cost.bytes / 2
    assert halved.cache.views == 1  # two steps meet one view only


def shown(prepared: Path, *words: str, probe: bool = False) -> str:
    out = io.StringIO()
    plan_view.show(open_run(str(prepared), words), Wanted(probe), Console(file=out, width=80))
    assert max(len(line) for line in out.getvalue().splitlines()) <= 80
    return " ".join(out.getvalue().split())


def test_the_table(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_time, "PROBE_SECONDS", 0.02)
    text = shown(prepared, "stages.student.training.steps=200", probe=True)
    assert "student: teacher live cached" in text
    assert "275B/token" in text and "2 mask views" in text and "(pays from 2)" in text
    assert "this run: live (teacher_cache: {} caches)" in text
    assert "B/s at" in text and "teacher outputs" not in text
    text = shown(prepared, "stages.student.teacher_cache={}")
    assert "this run: cached" in text and "teacher outputs" in text and "reading from disk" not in text


def test_why_it_cannot_be_cached(prepared: Path) -> None:
    attention = "stages.student.objective=[{kind: attention_scores, layers: [[2, 1]]}]"
    text = shown(prepared, attention)
    assert "student: the teacher cannot be cached: attention_scores asks for the teacher's queries" in text
    text = shown(prepared, "name=elsewhere", "data.masks={mode: dynamic}")
    assert "cannot be cached: data.masks.mode: dynamic masks every epoch anew" in text
    unknown = shown(prepared, "name=elsewhere", "data.sources.0.path=/no/corpus")
    assert "? a view" in unknown and "? (pays from 2)" in unknown

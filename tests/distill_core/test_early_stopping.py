from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.loader import load
from distill_core.config import FinetuneStage, RunConfig
from distill_core.early_stopping import (
    LOWER_IS_BETTER,
    PERPLEXITIES,
    EarlyStopping,
    EarlyStoppingConfig,
    Evaluations,
    Metric,
    evaluations_in,
    standing,
)
from distill_core.engine import Rank
from distill_core.evaluate.masked_lm import HeldOut, Quality
from distill_core.evaluate.pseudo_perplexity import PseudoPerplexity
from distill_core.record import facts_of
from distill_core.stage import wants_more
from distill_core.tasks.metrics import METRICS
from distill_core.tasks.quality import TaskQuality

RANK = Rank(0, 0, 1, torch.device("cpu"))


def settings(metric: str = "loss", patience: int = 3, min_delta: float = 0.0, **more: Any) -> EarlyStoppingConfig:
    fields = {"metric": metric, "patience": patience, "min_delta": min_delta, **more}
    return EarlyStoppingConfig.model_validate(fields)


def numbered(values: list[float | None]) -> Evaluations:
    return [(10 * place, value) for place, value in enumerate(values, start=1)]


# ---------------------------------------------------------------- the decision

VALUES = st.lists(st.one_of(st.none(), st.integers(-6, 6).map(lambda n: n / 2)), max_size=20)


@given(VALUES, st.integers(1, 4), st.sampled_from([0.0, 0.5, 1.5]), st.sampled_from(["loss", "accuracy"]))
def test_it_ends_at_the_first_run_of_bad_evaluations(
    values: list[float | None], patience: int, min_delta: float, metric: str
) -> None:
    """Against the sentence of the documentation, word by word: quadratic, and with no state."""
    sign = -1 if metric == "loss" else 1

    def improvements(upto: int) -> list[int]:
        counted: list[int] = []
        for place in range(upto):
            value = values[place]
            if value is None:
                continue
            if not counted or sign * value > sign * values[counted[-1]] + min_delta:  # type: ignore[operator]
                counted.append(place)
        return counted

    def bad(place: int) -> bool:
        return place not in improvements(place + 1)

    ends = (p for p in range(patience - 1, len(values)) if all(bad(q) for q in range(p - patience + 1, p + 1)))
    end = next(ends, None)
    seen = len(values) if end is None else end + 1
    best = improvements(seen)
    found = standing(settings(metric, patience, min_delta), numbered(values))
    assert found.stopped == (None if end is None else 10 * (end + 1))
    assert found.best_step == (10 * (best[-1] + 1) if best else None)
    assert found.best == (values[best[-1]] if best else None)


@given(VALUES, st.integers(1, 4))
def test_kept_and_read_again_it_goes_on_as_if_it_had_never_stopped(values: list[float | None], patience: int) -> None:
    """From what a checkpoint holds after any evaluation, as text; the exact numbers come back."""
    config = settings("pseudo_perplexity", patience)
    values = [None if value is None else math.exp(value) / 3 for value in values]

    def told(early: EarlyStopping, some: Evaluations) -> EarlyStopping:
        for step, value in some:
            found = float("nan") if value is None else value
            early.consider({"pseudo_perplexity": found, "loss": 0.0}, step)
        return early

    straight = told(EarlyStopping(config, RANK), numbered(values))
    for cut in range(len(values) + 1):
        state = json.loads(json.dumps(told(EarlyStopping(config, RANK), numbered(values)[:cut]).state()))
        again = told(EarlyStopping(config, RANK, evaluations_in(config, state)), numbered(values)[cut:])
        assert (again.evaluations, again.standing) == (straight.evaluations, straight.standing)


def test_what_was_measured_otherwise_is_not_compared() -> None:
    few, many = settings("pseudo_perplexity", sequences=10), settings("pseudo_perplexity", sequences=20)
    state = EarlyStopping(few, RANK, [(1, 2.0)]).state()
    assert (
        evaluations_in(few, state)
        == [(1, 2.0)]
        == evaluations_in(settings("pseudo_perplexity", 9, 1, sequences=10), state)
    )
    assert evaluations_in(many, state) == evaluations_in(settings("loss"), state) == evaluations_in(few, None) == []


def test_it_says_why_and_when() -> None:
    early = EarlyStopping(settings("pseudo_perplexity", 2, 0.5), RANK)
    said = []
    for step, value in ((10, 20.0), (20, 19.6), (30, 19.5)):
        early.consider({"pseudo_perplexity": value}, step)
        said.append(early.sentence(step, 90))
    why = "pseudo_perplexity has not fallen by more than 0.5 in 2 evaluations since step 10 (20)"
    assert said == [None, None, f"stopped early after step 30 of at most 90: {why}"]
    assert early.scalars() == {"early_stopping/best": 20.0, "early_stopping/evaluations_without_improvement": 2.0}
    facts = early.facts(30, 90)
    assert facts["reason"] == said[-1] and facts["stopped"] and (facts["best"], facts["best_step"]) == (20.0, 10)
    assert facts["evaluations"] == [(10, 20.0), (20, 19.6), (30, 19.5)] and facts["at_most"] == 90
    broken = EarlyStopping(settings("f1", 1), RANK)
    broken.consider({"f1": float("nan")}, 5)
    assert broken.sentence(5, 9) == "stopped early after step 5 of at most 9: f1 was not finite in 1 evaluation"
    assert broken.facts(5, 9)["evaluations"] == [(5, None)]
    risen = EarlyStopping(settings("f1", 1), RANK, [(1, 0.5), (2, 0.5)])
    assert str(risen.sentence(2, 9)).endswith("f1 has not risen in 1 evaluation since step 1 (0.5)")
    with pytest.raises(ConfigError, match="metric is f1, but the evaluation has measured accuracy, mcc only"):
        risen.consider({"accuracy": 1.0, "mcc": 0.5}, 3)


def test_evaluations_offer_what_can_be_named() -> None:
    quality = HeldOut(Quality(2.0, 0.25), Quality(1.0, 0.5), 0.75, 8, PseudoPerplexity(9.0, 7.0, 2, 30))
    assert quality.metrics() == {
        "loss": 2.0,
        "accuracy": 0.25,
        "agreement": 0.75,
        "pseudo_perplexity": 9.0,
        "pseudo_perplexity_per_token": 7.0,
    }
    assert {name: quality.scalars()[f"eval/{name}"] for name in PERPLEXITIES} == dict(
        zip(PERPLEXITIES, (9.0, 7.0), strict=True)
    )
    assert "pseudo-perplexity 9.00 (per token 7.00)" in quality.sentence()
    assert facts_of(quality)["pseudo_perplexity"]["per_token"] == 7.0
    plain = HeldOut(Quality(2.0, 0.25), None, None, 8)
    assert set(plain.metrics()) == {"loss", "accuracy"} and "perplexity" not in plain.sentence()
    task = TaskQuality({"accuracy": 0.5, "mcc": 0.25}, {"accuracy": 1.0}, 0.5, "accuracy", 4)
    assert task.metrics() == {"accuracy": 0.5, "mcc": 0.25, "agreement": 0.5}
    named = {*quality.metrics(), *itertools.chain(*METRICS.values())}
    assert named == set(get_args(Metric)) and {m for m in named if "loss" in m or "perplexity" in m} == set(
        LOWER_IS_BETTER
    )


# ---------------------------------------------------------------- a finished stage


def test_a_stage_that_has_ended_goes_on_with_more_patience_or_without() -> None:
    def asked(steps: int, **early: Any) -> bool:
        wanted = {"metric": "accuracy", "patience": 2, **early} if early.get("metric", "") is not None else None
        training = {"global_batch_size": 8, "evaluate_every": 10, "steps": steps, "early_stopping": wanted}
        fields = {"kind": "finetune", "name": "f", "model": "m", "task": "t", "training": training}
        return wants_more(FinetuneStage.model_validate(fields), done)

    history = EarlyStopping(settings("accuracy", 2), RANK, [(10, 0.5), (20, 0.4), (30, 0.45)])
    done = {"steps": 30, "epochs": None, "early_stopping": history.facts(30, 100)}
    assert not asked(100) and not asked(200) and not asked(100, patience=1)
    assert asked(100, patience=3) and not asked(30, patience=3)
    assert asked(100, metric=None) and not asked(20, metric=None)
    assert asked(100, metric="mcc")  # of which nothing is known yet
    done["early_stopping"] = None
    assert asked(100) and not asked(30)


# ---------------------------------------------------------------- what is refused

RUN = """
name: run
output: runs
data:
  sources: [{path: corpus}]
  tokenizer: {vocab_size: 500}
tasks:
  match: {kind: classification, train: a.jsonl, dev: b.jsonl}
stages:
  - name: first
    kind: pretrain
    model: {preset: rbt3}
    training: {steps: 100, global_batch_size: 8}
  - name: second
    kind: distill
    teacher: first
    student: {model: {preset: rbt3}}
    objective: [{kind: kd_ce}]
    training: {steps: 100, global_batch_size: 8}
  - name: third
    kind: finetune
    model: second
    task: match
    training: {steps: 100, global_batch_size: 8}
"""


def read(
    tmp_path: Path, stage: int, early: dict[str, Any], training: dict[str, Any] | None = None, **fields: Any
) -> RunConfig:
    tree = yaml.safe_load(RUN)
    changed = tree["stages"][stage]
    changed |= fields
    changed["training"] |= {"evaluate_every": 10, **(training or {}), "early_stopping": early}
    changed["training"] = {key: value for key, value in changed["training"].items() if value is not None}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return load(path, [], RunConfig)


@pytest.mark.parametrize(
    ("stage", "metrics"), [(0, "loss pseudo_perplexity"), (1, "loss agreement"), (2, "accuracy f1")]
)
def test_metrics_that_a_stage_measures(tmp_path: Path, stage: int, metrics: str) -> None:
    for metric in metrics.split():
        found = read(tmp_path, stage, {"metric": metric}).stages[stage].training.early_stopping
        assert found.patience == 3 and found.min_delta == 0 and found.perplexity_sequences in (None, 100)


WRONG: list[tuple[int, dict[str, Any], dict[str, Any], str, str]] = [
    (0, {"metric": "loss", "patience": 0}, {}, "patience: 0", "greater than or equal to 1"),
    (0, {"metric": "loss", "min_delta": -1}, {}, "min_delta: -1", "greater than or equal to 0"),
    (0, {"metric": "loss", "min_delta": float("inf")}, {}, "min_delta: .inf", "finite"),
    (0, {"metric": "los"}, {}, "metric: los", "no such choice. Did you mean 'loss'?"),
    (0, {"patience": 2}, {}, "early_stopping:", "this key is required"),
    (
        0,
        {"metric": "loss", "sequences": 5},
        {},
        "early_stopping:",
        "`sequences` belongs to the metrics pseudo_perplexity",
    ),
    (0, {"metric": "loss"}, {"training": {"evaluate_every": None}}, "training:", "`evaluate_every` is not given"),
    (0, {"metric": "agreement"}, {}, "metric: agreement", "it measures loss, accuracy, pseudo_perplexity"),
    (1, {"metric": "f1"}, {}, "metric: f1", "agreement, but not f1; name one of these"),
    (
        2,
        {"metric": "loss"},
        {},
        "metric: loss",
        "dev rows of task 'match' (classification) it measures accuracy, macro_f1",
    ),
    (
        1,
        {"metric": "loss"},
        {"objective": [{"kind": "hidden_mse", "layers": "last"}]},
        "metric: loss",
        "no loss of its objective trains the head that loss is measured with",
    ),
    (
        1,
        {"metric": "loss"},
        {"progressive": {"steps_per_layer": 5}},
        "metric: loss",
        "stop early in a stage of its own behind this one (init: {kind: model, source: second})",
    ),
    (
        1,
        {"metric": "pseudo_perplexity"},
        {"references": {}},
        "metric: pseudo_perplexity",
        "is measured without references, and the stage has `references`; take loss",
    ),
]


@pytest.mark.parametrize(("stage", "early", "fields", "line", "said"), WRONG)
def test_what_cannot_work_is_refused_with_its_place(
    tmp_path: Path, stage: int, early: dict[str, Any], fields: dict[str, Any], line: str, said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, stage, early, **fields)
    message = str(refused.value)
    lines = (tmp_path / "run.yaml").read_text().splitlines()
    numbers = [number for number, text in enumerate(lines, start=1) if text.strip() == line]
    place = numbers[stage] if line == "training:" else numbers[0]  # one in each stage
    assert said in message and f"run.yaml:{place})" in message, message
    assert message.count("\n  - ") == 1

"""Which stages may be trained side by side, and what the plan says of it."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from rich.console import Console

from configs.errors import ConfigError
from configs.loader import identity, validate
from distill_core.beside import group_of, groups
from distill_core.config import RunConfig
from launcher.plan import make_plan
from launcher.plan_beside import beside_lines, memory_together, saved_flops
from launcher.plan_view import Wanted, show
from tests.distill_core.test_config import RUN, SHAPE


def run(count: int = 3, change: Any = None) -> RunConfig:
    """A pretrained teacher, then ``count`` students side by side."""
    tree = copy.deepcopy(RUN)
    first = tree["stages"].pop()
    for number in range(count):
        stage = copy.deepcopy(first) | {"name": f"s{number}"}
        if number:
            stage["beside"] = f"s{number - 1}"
        tree["stages"].append(stage)
    if change is not None:
        change(tree["stages"])
    return validate(tree, RunConfig)


def test_groups_are_stretches_of_the_list() -> None:
    config = run(3)
    assert groups(config.stages) == [[0], [1, 2, 3]]
    assert [group_of(config.stages, index) for index in (0, 2)] == [[0], [1, 2, 3]]
    chosen = run(3, lambda stages: stages[3].update(beside="s0"))
    assert groups(chosen.stages) == [[0], [1, 2, 3]]
    apart = run(3, lambda stages: stages[2].pop("beside"))
    assert groups(apart.stages) == [[0], [1], [2, 3]]


def test_being_beside_is_no_part_of_a_stage() -> None:
    alone = run(2, lambda stages: stages[2].pop("beside"))
    assert identity(alone.stages[2]) == identity(run(2).stages[2])


def together(name: str, value: Any) -> Any:
    return lambda stages: stages[2]["training"].update({name: value})


def from_s0(stages: Any) -> None:
    stages[2]["student"] = {"model": SHAPE, "init": {"kind": "model", "source": "s0"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[2].update(beside="s9"), r"'s1': beside 's9' is not the stage before it \('s0'\)"),
        (lambda s: s[3].update(beside="teacher"), r"'s2': beside 'teacher' is not the stage before it"),
        (lambda s: s[1].update(beside="teacher"), "that is a stage of kind pretrain"),
        (lambda s: s[2].update(teacher="s0"), "it starts from 's0', which is trained at the same time"),
        (from_s0, "it starts from 's0', which is trained at the same time"),
        (lambda s: s[2].update(teacher="elsewhere"), "but teacher is"),
        (together("global_batch_size", 8), "training.global_batch_size is 8 here and 4 in 's0'"),
        (together("micro_batch_tokens", 128), "training.micro_batch_tokens is 128 here and 64 in 's0'"),
        (together("order", "corpus"), "training.order is corpus here"),
        (together("precision", "fp32"), "training.precision is fp32 here and bf16"),
        (together("steps", 6), "training.steps is 6 here and 5"),
    ],
)
def test_what_cannot_be_shared_is_refused(change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(3, change)


def test_optimizers_and_rhythms_may_differ() -> None:
    config = run(2, together("optimizer", {"learning_rate": 1e-5}))
    assert groups(config.stages) == [[0], [1, 2]]


def test_the_plan_counts_the_teacher_once(monkeypatch: pytest.MonkeyPatch) -> None:
    beside, apart = run(2), run(2, lambda stages: stages[2].pop("beside"))
    plan, before = make_plan(beside, 1), make_plan(apart, 1)
    saved = saved_flops(plan.stages[1:])
    assert saved == pytest.approx(plan.stages[2].teacher_flops_per_token * plan.stages[2].tokens)
    assert sum(s.flops for s in before.stages) - sum(s.flops for s in plan.stages) == pytest.approx(saved)
    assert before.stages[1].flops == before.stages[2].flops == plan.stages[1].flops
    first, second = (stage.memory for stage in plan.stages[1:])
    assert memory_together(plan.stages[1:]) == pytest.approx(
        first.total + second.weights + second.gradients + second.optimizer
    )
    assert beside_lines(apart, before) == []
    out = io.StringIO()
    show(beside, Wanted(probe=False), console=Console(file=out, width=200))
    assert "side by side: s0 and s1 share each teacher forward" in out.getvalue()

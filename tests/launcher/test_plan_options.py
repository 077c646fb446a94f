"""What each way of keeping and running the models leaves on one rank's device."""

from __future__ import annotations

from typing import Any

import pytest

from distill_core.models.config import EncoderConfig
from distill_core.training import TrainingConfig
from launcher import plan_options

SHAPE = EncoderConfig(vocab_size=100, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64)


def training(**fields: Any) -> TrainingConfig:
    return TrainingConfig(steps=1, global_batch_size=1, **fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"precision": "fp32", "zero_stage": 0}, (4, 4, 8)),
        ({"zero_stage": 1}, (2, 4, 3)),
        ({"precision": "fp16", "zero_stage": 2}, (2, 1, 3)),
        ({"zero_stage": 3}, (0.5, 1, 3)),
        ({"zero_stage": 1, "offload": "optimizer"}, (2, 4, 0)),
        ({"zero_stage": 3, "offload": "parameters"}, (0, 1, 0)),
    ],
)
def test_bytes_of_a_trained_parameter_on_one_of_four_ranks(
    fields: dict[str, Any], expected: tuple[float, float, float]
) -> None:
    found = plan_options.trained(training(**fields), fields.get("zero_stage", 1), 4)
    assert (found.weights, found.gradients, found.optimizer) == expected


def test_one_rank_in_fp32_has_no_second_copy_of_the_weights() -> None:
    for zero in (0, 1, 2, 3):
        found = plan_options.trained(training(precision="fp32", zero_stage=zero), zero, 1)
        assert (found.weights, found.gradients, found.optimizer) == (4, 4, 8)
    assert plan_options.trained(training(), 3, 1) == plan_options.trained(training(), 1, 1)


def test_bytes_of_a_teacher() -> None:
    whole = SHAPE.parameters()
    layer = whole - SHAPE.model_copy(update={"num_hidden_layers": 3}).parameters()
    outer = whole - 4 * layer
    assert plan_options.teacher(SHAPE, training(), 8) == 2 * whole
    assert plan_options.teacher(SHAPE, training(precision="fp32", teacher_precision="bf16"), 8) == 2 * whole
    assert plan_options.teacher(SHAPE, training(teacher_precision="int8"), 8) == 2 * outer + 4 * layer
    sharded = plan_options.teacher(SHAPE, training(teacher_sharding="zero3"), 8)
    assert sharded == 2 * (outer + 4 * layer / 8 + layer)

from __future__ import annotations

import math

import pytest
import torch

from configs.errors import TrainingError
from distill_core.config import OptimizerConfig, TrainingConfig
from distill_core.engine import Rank, check_finite
from distill_core.meter import Meter
from distill_core.objective import LossTerms
from distill_core.stage import learning_rate

RANK = Rank(0, 0, 1, torch.device("cpu"))


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25, 1.0])
def test_learning_rate_rises_and_falls(warmup: float) -> None:
    optimizer = OptimizerConfig(learning_rate=2.0, warmup=warmup)
    training = TrainingConfig(steps=40, global_batch_size=1, optimizer=optimizer)
    rates = [learning_rate(training, step) for step in range(40)]
    warm = math.ceil(warmup * 40)
    assert max(rates) == pytest.approx(2.0)
    assert all(rate > 0 for rate in rates)
    assert rates[:warm] == pytest.approx([2.0 * (i + 1) / warm for i in range(warm)])
    assert rates[warm:] == pytest.approx([2.0 * (40 - i) / (40 - warm) for i in range(warm, 40)])


def test_meter_means_over_steps() -> None:
    meter = Meter(RANK)
    weights = {"kd_ce": 2.0, "hidden_mse/0-0": 0.5}
    for kd, hidden in ((1.0, 4.0), (3.0, 8.0)):
        for _ in range(2):  # two micro-batches, each with half of the step's mean
            shares = {"kd_ce": torch.tensor(kd / 2), "hidden_mse/0-0": torch.tensor(hidden / 2)}
            meter.add(LossTerms(torch.zeros(()), shares, weights))
        meter.end_step({"tokens": torch.tensor(100.0), "masked": torch.tensor(15.0)}, wait=0.5)
    row = meter.summary()
    assert row["loss/kd_ce"] == pytest.approx(2.0)
    assert row["loss/hidden_mse/0-0"] == pytest.approx(6.0)
    assert row["weighted/kd_ce"] == pytest.approx(4.0)
    assert row["loss/total"] == pytest.approx(2.0 * 2.0 + 0.5 * 6.0)
    assert row["data/wait_seconds"] == pytest.approx(0.5)
    assert row["speed/tokens_per_second"] == pytest.approx(200.0 / (2 * row["speed/step_seconds"]))
    assert meter.steps == 0 and meter.sums == {}


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    check_finite(1.0, "loss", "student", 3)
    for value in (float("nan"), float("inf")):
        with pytest.raises(TrainingError, match=r"Stage 'student', step 3: the loss is (nan|inf)"):
            check_finite(value, "loss", "student", 3)

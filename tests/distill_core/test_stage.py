from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from configs.errors import TrainingError
from distill_core.batch import Batch, Count
from distill_core.clock import Clock
from distill_core.config import FinetuneStage
from distill_core.engine import Rank, check_finite, check_skipped
from distill_core.flops import Flops
from distill_core.meter import Meter, resident_gigabytes, slots
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.objective import Distillation, LossTerms, Objective
from distill_core.objectives.hidden import HiddenMseConfig
from distill_core.objectives.sentence_order import SentenceOrderConfig
from distill_core.optimizer import adam_settings, parameter_groups
from distill_core.stage import learning_rate, wants_more
from distill_core.training import OptimizerConfig, TrainingConfig

RANK = Rank(0, 0, 1, torch.device("cpu"))


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25, 1.0])
def test_learning_rate_rises_and_falls(warmup: float) -> None:
    optimizer = OptimizerConfig(learning_rate=2.0, warmup=warmup)
    training = TrainingConfig(steps=40, global_batch_size=1, optimizer=optimizer)
    rates = [learning_rate(training, step, 40) for step in range(40)]
    warm = math.ceil(warmup * 40)
    assert max(rates) == pytest.approx(2.0)
    assert all(rate > 0 for rate in rates)
    assert rates[:warm] == pytest.approx([2.0 * (i + 1) / warm for i in range(warm)])
    assert rates[warm:] == pytest.approx([2.0 * (40 - i) / (40 - warm) for i in range(warm, 40)])


def test_other_decays() -> None:
    def rates(decay: str) -> list[float]:
        optimizer = OptimizerConfig.model_validate({"learning_rate": 2.0, "warmup": 0.1, "decay": decay})
        training = TrainingConfig(steps=40, global_batch_size=1, optimizer=optimizer)
        return [learning_rate(training, step, 40) for step in range(40)]

    assert rates("none")[4:] == [2.0] * 36
    assert rates("cosine")[4:] == pytest.approx([1 + math.cos(math.pi * i / 36) for i in range(36)])
    assert rates("none")[:4] == rates("cosine")[:4] == rates("linear")[:4]


def test_steps_or_epochs() -> None:
    base = {"global_batch_size": 8}
    assert TrainingConfig.model_validate({**base, "steps": 5}).total_steps(1000) == 5
    assert TrainingConfig.model_validate({**base, "epochs": 1.5}).total_steps(100) == 19
    for wrong in ({}, {"steps": 1, "epochs": 1.0}):
        with pytest.raises(ValueError, match="either steps"):
            TrainingConfig.model_validate({**base, **wrong})


def test_a_finished_stage_goes_on_when_more_is_asked_for() -> None:
    def asked(taken: int, seen: float | None, **length: float) -> bool:
        fields = {"kind": "finetune", "name": "f", "model": "m", "task": "t"}
        stage = FinetuneStage.model_validate({**fields, "training": {"global_batch_size": 8, **length}})
        return wants_more(stage, {"steps": taken, "epochs": seen})

    assert asked(10, None, steps=11) and not asked(10, None, steps=10) and not asked(10, None, steps=9)
    assert asked(10, 2.0, epochs=3.0) and not asked(10, 2.0, epochs=2.0) and not asked(10, 3.0, epochs=2.0)
    assert asked(10, 2.0, steps=11) and not asked(10, 2.0, steps=10)


@pytest.mark.parametrize("decayed", [True, False])
def test_weight_decay_spares_biases_norms_and_projections_if_asked(decayed: bool) -> None:
    wide = EncoderConfig(
        vocab_size=9, hidden_size=6, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, pooler=True
    )
    narrow = wide.model_copy(update={"hidden_size": 4})
    terms = [HiddenMseConfig(kind="hidden_mse", layers=[(1, 1)]), SentenceOrderConfig(kind="sentence_order")]
    module = Distillation(Encoder(narrow), [Objective(terms, narrow, wide)])
    optimizer = OptimizerConfig(weight_decay=0.3, decay_projections=decayed)
    groups = parameter_groups(module, TrainingConfig(steps=1, global_batch_size=1, optimizer=optimizer))
    found = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(found) == len(list(module.parameters()))
    for name, parameter in module.named_parameters():
        matrix = parameter.dim() == 2
        spared = not matrix or (name.startswith("objectives.") and not decayed)
        assert found[id(parameter)] == (0.0 if spared else 0.3), name


def test_adam_without_bias_correction() -> None:
    """torch's AdamW with the settings of each step against the plain recursion."""
    optimizer = OptimizerConfig(learning_rate=0.1, bias_correction=False, weight_decay=0.3, eps=1e-3)
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    adam = torch.optim.AdamW([w], lr=0.0, betas=optimizer.betas, eps=optimizer.eps)
    plain, m, v = w.detach().clone(), torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    b1, b2 = optimizer.betas
    for step in range(1, 6):
        gradient = torch.tensor([0.5 * step, -0.1], dtype=torch.float64)
        settings = adam_settings(optimizer, 0.1, step)
        group = adam.param_groups[0]
        group["lr"], group["eps"], group["weight_decay"] = settings
        w.grad = gradient.clone()
        adam.step()
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        plain = plain * (1 - 0.1 * 0.3) - 0.1 * m / (v.sqrt() + 1e-3)
        torch.testing.assert_close(w.detach(), plain, rtol=1e-12, atol=0)


def test_meter_means_over_steps() -> None:
    meter = Meter(RANK, Clock(RANK.device), peak=1e12)
    padded = Batch.of([[5, 6, 7], [8]], "padded")
    weights = {"kd_ce": 2.0, "hidden_mse/0-0": 0.5}
    for kd, hidden in ((1.0, 4.0), (3.0, 8.0)):
        for _ in range(2):  # two micro-batches, each with half of the step's mean
            shares = {"kd_ce": torch.tensor(kd / 2), "hidden_mse/0-0": torch.tensor(hidden / 2)}
            meter.add(LossTerms({name: (share, weights[name]) for name, share in shares.items()}))
        meter.clock.mark("forward")
        counts: dict[Count, torch.Tensor] = {"tokens": torch.tensor(100.0), "masked": torch.tensor(15.0)}
        meter.end_step(counts, 0.5, [padded], Flops({"tokens": 1e6, "masked": 1e8}))
    row = meter.summary()
    assert row["loss/kd_ce"] == pytest.approx(2.0)
    assert row["loss/hidden_mse/0-0"] == pytest.approx(6.0)
    assert row["weighted/kd_ce"] == pytest.approx(4.0)
    assert row["loss/total"] == pytest.approx(2.0 * 2.0 + 0.5 * 6.0)
    assert row["data/wait_seconds"] == pytest.approx(0.5)
    assert row["speed/tokens_per_second"] == pytest.approx(200.0 / (2 * row["speed/step_seconds"]))
    assert row["time/forward"] == pytest.approx(1.0)
    assert row["data/wait_share"] == pytest.approx(0.5 / row["speed/step_seconds"])
    assert row["data/padding_share"] == pytest.approx(1 - 4 / 6)  # 3 + 1 tokens in 2 x 3 places
    assert row["speed/useful_tflops"] == pytest.approx((100e6 + 15e8) / 1e12 / row["speed/step_seconds"])
    assert row["speed/flops_utilization"] == pytest.approx(row["speed/useful_tflops"])
    assert meter.steps == 0 and meter.sums == {}
    assert slots(Batch.of([[5, 6, 7], [8]], "runs")) == 4


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    check_finite(1.0, "loss", "student", 3)
    for value in (float("nan"), float("inf")):
        with pytest.raises(TrainingError, match=r"Stage 'student', step 3: the loss is (nan|inf)"):
            check_finite(value, "loss", "student", 3)


def test_too_many_skipped_steps_end_the_run() -> None:
    check_skipped(3, 3, "student", 9)
    with pytest.raises(TrainingError, match=r"Stage 'student', step 9: the last 4 steps were left out"):
        check_skipped(4, 3, "student", 9)


def test_peak_memory_is_this_process_alone() -> None:
    """Of a process that was started out of a large one, ``getrusage`` tells the large one's peak."""
    ballast = bytearray(300_000_000)
    code = "from distill_core.meter import resident_gigabytes as r; import resource; print(r('VmHWM'), r('VmRSS'), "
    code += "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    peak, now, counted = map(float, out.split())
    ours = resident_gigabytes("VmRSS")
    assert len(ballast) and 0.02 < now <= peak <= counted * 1.001
    assert resident_gigabytes("VmHWM") >= ours > 0.3

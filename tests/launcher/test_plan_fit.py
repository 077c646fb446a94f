"""Memory as simulated, what fits, other numbers of devices, and how far the plan was from a run."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from configs.errors import ConfigError
from distill_core.objectives import fused, logits
from launcher import devices, plan_fit, plan_view, simulation
from launcher.cli import app, status_of
from launcher.plan import Plan, make_plan
from launcher.plan_devices import Device, Place
from launcher.plan_fit import advise, fits, require_fit, span, wire_bytes
from launcher.plan_probe import Probed, Taken
from launcher.plan_time import Times, last_run_table, off
from launcher.plan_view import Wanted, show
from launcher.runfile import open_run
from launcher.units import amount, size

OBJECTIVES = [
    "[{kind: kd_ce}, {kind: hidden_mse, layers: [[0, 0], [2, 1]]}]",
    "[{kind: minilmv2, relation_heads: 2}]",
    "[{kind: attention_scores, layers: [[2, 1]], form: gram}, {kind: mlm}]",
    "[{kind: kd_kl, positions: all}, {kind: hidden_cosine}]",
]


def planned(prepared: Path, *words: str, ranks: int = 2) -> Plan:
    return make_plan(open_run(str(prepared), list(words)), ranks)


# ---------------------------------------------------------------- the simulation


def test_what_is_alive_is_what_torch_would_allocate() -> None:
    """Of real tensors, by their storages: a view takes nothing, what is dropped is given back."""
    with simulation.Alive(7, []) as alive:
        a = torch.ones(100)
        b = a.view(10, 10)
        logits = torch.zeros(4, 7)
        assert alive.now == {"activations": 400, "logits": 4 * 28}
        del logits
        assert alive.now == {"activations": 400, "logits": 0}
        del a
        c = b + 1
    assert alive.now["activations"] == 800 and len(c) == 10
    assert alive.peak == {"activations": 800, "logits": 0}


def test_the_simulation_against_a_real_pass(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same micro-step on real tensors has the same bytes alive at its peak."""
    stage = planned(prepared).stages[1]
    found = simulation.simulate(stage.work)
    monkeypatch.setattr(simulation, "FakeTensorMode", lambda **_: contextlib.nullcontext())
    assert found.complete and found.activations > 0
    assert simulation.simulate(stage.work) == found


def test_checkpointed_layers_keep_less(prepared: Path) -> None:
    work = planned(prepared).stages[0].work
    deep = dataclasses.replace(work, student=work.student.model_copy(update={"num_hidden_layers": 8}))
    plain, twice = (
        simulation.simulate(dataclasses.replace(deep, checkpointing=checkpointing)) for checkpointing in (False, True)
    )
    assert twice.complete and twice.activations < 0.5 * plain.activations


def test_a_large_step_is_extrapolated(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = dataclasses.replace(planned(prepared).stages[1].work, tokens=64 * 24, length=24)
    whole = simulation.simulate(work)
    monkeypatch.setattr(simulation, "SIMULATED", 16 * 24)
    found = simulation.simulate(work)
    total = [peak.activations + peak.logits for peak in (found, whole)]
    assert found != whole and total[0] == pytest.approx(total[1], rel=0.05)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_are_simulated_whole(prepared: Path, objective: str) -> None:
    stage = planned(prepared, f"stages.student.objective={objective}").stages[1]
    assert stage.peak.complete
    assert stage.memory.activations > 0


def test_a_loss_that_reads_numbers_is_left_out(prepared: Path) -> None:
    config = open_run(str(prepared), ["stages.student.objective=[{kind: emd}]"])
    stage = make_plan(config, 1).stages[1]
    assert not stage.peak.complete and stage.memory.activations > 0
    out = io.StringIO()
    show(config, Wanted(probe=False), Console(file=out, width=200))
    assert "without what the losses of student take by themselves" in " ".join(out.getvalue().split())


def test_memory_grows_with_the_micro_batch(prepared: Path) -> None:
    small, large = (
        planned(prepared, f"stages.student.training.{words}", "stages.student.training.global_batch_size=256").stages[1]
        for words in ("micro_batch_tokens=512", "micro_batch_tokens=2048")
    )
    ratio = large.work.tokens / small.work.tokens
    assert ratio > 3
    assert large.peak.activations == pytest.approx(ratio * small.peak.activations, rel=0.15)


# ---------------------------------------------------------------- fitting


def test_what_fits_and_what_to_choose(prepared: Path) -> None:
    stage = planned(prepared, "stages.student.training.global_batch_size=256").stages[1]
    assert fits(stage, Device(1.2 * stage.memory.total, "roomy"))
    assert not fits(stage, Device(stage.memory.total, "nothing spare"))
    roomy = advise(stage, Device(1e12, "huge"), ranks=2)
    assert roomy is not None and roomy.zero_stage == 1
    assert roomy.micro_batch_tokens == pytest.approx(stage.tokens_per_step / 2, abs=1)
    hundred = stage.memory_at(1).at(100)
    tight = advise(stage, Device((replace(hundred, loading=0.0).total + 1) / 0.9, "tight"), ranks=2)
    assert tight is not None and tight.zero_stage == 1
    assert tight.micro_batch_tokens == pytest.approx(100, abs=1)
    assert advise(stage, Device(stage.memory.process, "no"), ranks=2) is None


def test_a_higher_zero_stage_is_chosen_only_where_it_must(prepared: Path) -> None:
    wide = "stages.0.model={hidden_size: 1024, num_hidden_layers: 4, num_attention_heads: 4}"
    stage = planned(prepared, wide, ranks=8).stages[0]
    needs = {zero: stage.memory_at(zero).at(stage.longest).total for zero in (1, 2, 3)}
    assert needs[1] > needs[2] > needs[3]
    for zero in (1, 2, 3):
        chosen = advise(stage, Device(1.001 * needs[zero] / 0.9, "x"), ranks=8)
        assert chosen is not None and chosen.zero_stage == zero


def test_a_run_that_does_not_fit_is_refused(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(prepared)
    require_fit(plan, Device(1e12, "huge"))
    with pytest.raises(ConfigError, match=r"stage 'teacher' needs .* stage 'student' needs .*larger devices"):
        require_fit(plan, Device(1e6, "tiny"))
    monkeypatch.setattr(devices, "gpus", lambda: 0)
    words = ["plan", str(prepared), "--no-probe", "--require-fit"]
    assert status_of(lambda: app(words)) == 0
    monkeypatch.setattr(devices, "free_bytes", lambda: 10**6)
    assert status_of(lambda: app(words)) == 64
    assert status_of(lambda: app(["plan", str(prepared), "--no-probe"])) == 0


def test_free_memory(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 999999 kB\nMemAvailable:    5000 kB\n")
    assert devices.free_bytes(tmp_path / "meminfo", tmp_path) == 5_120_000
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert devices.free_bytes(tmp_path / "meminfo", tmp_path) == 2_000_000
    assert devices.free_bytes(tmp_path / "none", tmp_path / "none") == devices.memory_bytes()


# ---------------------------------------------------------------- other numbers of devices


def test_bytes_on_the_wire(prepared: Path) -> None:
    stage = planned(prepared).stages[1]
    assert wire_bytes(stage, 1) == 0
    assert wire_bytes(stage, 4) == pytest.approx(2 * 3 / 4 * 4 * stage.trained)  # fp32, a ring
    assert wire_bytes(stage, 4, zero=2, micro_steps=3) == pytest.approx((1 + 3) * 3 / 4 * 4 * stage.trained)
    assert wire_bytes(stage, 4, zero=3, micro_steps=2) == pytest.approx(2 * 3 * 3 / 4 * 4 * stage.trained)


def test_other_numbers_of_devices(prepared: Path) -> None:
    plan = planned(prepared, "stages.student.training.global_batch_size=64", "stages.student.training.steps=10")
    stage = plan.stages[1]
    table = plan_fit.scale_table(replace(plan, stages=[stage]), (1, 8, 512), lambda _, count: 24 / count, "so fast")
    cells = [list(column.cells) for column in table.columns]
    assert cells[1] == ["1", "8", "512"]
    assert cells[2] == ["24 s", "3 s", "fewer sequences in a step than devices"]
    assert cells[4][:2] == [span(240), span(30)] and cells[5][:2] == ["0.0667", "0.0667"]
    assert cells[6][1] == size(stage.memory_on(8).total) and cells[7][1] == size(wire_bytes(stage, 8))
    assert [span(value) for value in (0.0123, 3, 600, 7200, 2e6)] == ["12.3 ms", "3 s", "10 min", "2 h", "23.1 d"]


def test_memory_among_other_ranks(prepared: Path) -> None:
    """The optimizer is divided among all of them; a micro-step is as large as it can be, or holds all of a step."""
    stage = planned(prepared, "stages.student.training.global_batch_size=256").stages[1]
    alone, two, many = (stage.memory_on(ranks) for ranks in (1, 2, 256))
    assert 256 * many.optimizer == pytest.approx(2 * two.optimizer)
    assert alone.optimizer == pytest.approx(2 * two.optimizer * 8 / 12)  # in fp32 one rank has no second weights
    assert stage.micro_steps_on(1) > stage.micro_steps_on(256) == 1
    assert many.tokens == pytest.approx(stage.tokens_per_step / 256)
    assert alone.tokens == pytest.approx(stage.tokens_per_step / stage.micro_steps_on(1))
    assert stage.memory_on(2) == stage.memory.at(stage.memory_on(2).tokens)


def test_counts_of_devices() -> None:
    assert plan_view.device_counts("1, 8,64") == (1, 8, 64)
    assert plan_view.device_counts("") == ()
    for wrong in ("1,x", "0", "-3", "1.5"):
        with pytest.raises(ConfigError, match="numbers of devices"):
            plan_view.device_counts(wrong)


# ---------------------------------------------------------------- measured


def test_the_last_run_is_compared(prepared: Path, tmp_path: Path) -> None:
    config = open_run(str(prepared), [f"output={tmp_path}", f"data.folder={open_run(str(prepared)).data_folder}"])
    plan = make_plan(config, 1)
    stage = plan.stages[1]
    step = Taken(0.6, 0.6, 0.0)
    probed = Probed(1, round(stage.tokens_per_step), (step,), ())
    times = Times(Place(1, 1, Device(1e9, "x"), here=True), {}, {"student": probed}, 1e9)
    assert last_run_table(config, plan, times) is None
    folder = config.stage_folder(1)
    folder.mkdir(parents=True)
    rows = [
        {"step": n, "speed/step_seconds": s, "speed/tokens_per_second": 50 / s, "memory/gigabytes": 2.0}
        for n, s in ((1, 9.0), (2, 0.5), (3, 0.4))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"eval": 1}\n{"torn')
    table = last_run_table(config, plan, times)
    assert table is not None
    cells = [next(iter(column.cells)) for column in table.columns][1:]
    rate = times.tokens_per_second(stage)
    assert rate is not None
    assert cells[:4] == ["500 ms", "600 ms (+20%)", "100", f"{amount(rate)} ({off(rate, 100)})"]
    assert cells[4:] == ["2 GB", f"{size(stage.memory.total)} ({off(stage.memory.total, 2e9)})"]


def test_a_gpu_works_in_longer_pieces(prepared: Path) -> None:
    """By hand: sixteen times as many rows of logits at a time, student's and teacher's products in fp32."""
    stage = make_plan(open_run(str(prepared), ["stages.1.training.precision=bf16"]), 2, gpu=True).stages[1]
    assert stage.work.gpu and stage.work.dtype == torch.bfloat16
    vocabulary, rows = 40_000, logits.CHUNK * fused.GPU_CHUNKS
    student, *teachers = (
        one.model_copy(update={"vocab_size": vocabulary}) for one in (stage.work.student, *stage.work.teachers)
    )
    large = dataclasses.replace(stage.work, student=student, teachers=tuple(teachers), tokens=2**16, length=64)
    on_cpu, on_gpu = (simulation.simulate(dataclasses.replace(large, gpu=gpu)) for gpu in (False, True))
    assert on_gpu.complete and on_cpu.complete
    assert on_gpu.logits >= 2 * 4 * 0.9 * rows * vocabulary > 2 * on_cpu.logits
    more = simulation.simulate(dataclasses.replace(large, tokens=2**17, gpu=True))
    assert more.logits < 1.25 * on_gpu.logits  # chunks are of equal length, of up to so many rows

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill_core.flops import Flops
from distill_core.monitor import Monitor

TITLE = {"stage": "student", "stage_index": 1, "stages": 3}


def start(folder: Path, first_step: int = 0) -> Monitor:
    (folder / "logs").mkdir(exist_ok=True)
    monitor = Monitor(folder / "stage", folder / "logs", TITLE, first_step, steps=6)
    monitor.layout(["kd_ce", "hidden_mse/0-0"], with_teacher=True)
    return monitor


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "stage" / "tensorboard"))
    accumulator.Reload()
    return accumulator


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "stage" / "metrics.jsonl").read_text().splitlines()]


def test_scalars_go_to_tensorboard_and_metrics(tmp_path: Path) -> None:
    monitor = start(tmp_path)
    monitor.text("config", "seed: 1")
    for step in (1, 2, 3):
        monitor.scalars(step, {"loss/total": 1.0 / step, "optim/learning_rate": 0.1})
    monitor.close()
    read = events(tmp_path)
    assert [(e.step, round(e.value, 4)) for e in read.Scalars("loss/total")] == [(1, 1.0), (2, 0.5), (3, 0.3333)]
    assert "config/text_summary" in read.Tags()["tensors"]
    assert "custom_scalars__config__" in read.Tags()["tensors"]
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    assert rows(tmp_path)[1]["loss/total"] == 0.5


def test_a_resumed_stage_shows_no_step_twice(tmp_path: Path) -> None:
    first = start(tmp_path)
    for step in (1, 2, 3, 4):
        first.scalars(step, {"loss/total": float(step)})
    first.close()
    with (tmp_path / "stage" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss')  # torn by a crash
    second = start(tmp_path, first_step=2)
    for step in (3, 4, 5, 6):
        second.scalars(step, {"loss/total": 10.0 * step})
    second.close()
    expected = [1.0, 2.0, 30.0, 40.0, 50.0, 60.0]
    assert [row["loss/total"] for row in rows(tmp_path)] == expected
    shown = events(tmp_path).Scalars("loss/total")
    assert [e.step for e in shown] == [1, 2, 3, 4, 5, 6]
    assert [e.value for e in shown] == expected


def test_progress_file_and_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = start(tmp_path)
    row = {"loss/total": 2.5, "speed/tokens_per_second": 1000.0}
    monitor.progress(1, row)
    row |= {"speed/flops_utilization": 0.424, "speed/useful_tflops": 0.0954, "data/wait_share": 0.012}
    row |= {"data/padding_share": 0.25, "time/teacher": 0.6, "time/backward": 0.3, "time/other": 0.001}
    monitor.progress(6, row)
    monitor.close()
    facts = json.loads((tmp_path / "logs" / "progress.json").read_text())
    assert facts["step"] == facts["steps"] == 6
    assert facts["stage"] == "student"
    assert facts["seconds_left"] == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[2/3 student] step 1/6  loss 2.5000  1,000 tokens/s")
    assert lines[-1] == (
        "[2/3 student] step 6/6  loss 2.5000  1,000 tokens/s  42% of the peak (0.0954 useful TFLOP/s)  25% padding  "
        "1% data wait  teacher 60%, backward 30%  0:00 left"
    )
    assert facts["utilization"] == 0.424


def test_what_counts_as_useful_is_said(tmp_path: Path) -> None:
    monitor = start(tmp_path)
    monitor.useful_flops({"teachers": Flops({"tokens": 2e8, "pairs": 3.0}), "losses": Flops()}, 4e11)
    monitor.close()
    text = events(tmp_path).Tensors("useful FLOPs/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| teachers | tokens | 2e+08 |\n| teachers | pairs | 3 |\n\nPeak of all ranks: 0.4 TFLOP/s" in text

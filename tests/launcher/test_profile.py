"""`distill profile` on real ranks, and its parts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch._C._autograd import DeviceType

from configs.errors import ConfigError, DataError, LaunchError
from data_prep.corpus import Corpus
from distill_core.clock import PARTS
from distill_core.profile import MARK, operators, parts_track, wait_for_updates
from launcher import profile, rehearsal
from launcher.cli import app, status_of
from launcher.runfile import open_run

pytestmark = pytest.mark.ranks


def test_the_track_of_parts() -> None:
    events = [
        {"name": f"{MARK}None", "ts": 10.0, "dur": 1, "pid": 7, "tid": 1},
        {"name": "aten::mm", "ts": 11.0, "dur": 5, "pid": 7, "tid": 1},
        {"name": f"{MARK}backward", "ts": 60.0, "dur": 1, "pid": 7, "tid": 1},
        {"name": f"{MARK}forward", "ts": 30.0, "dur": 1, "pid": 7, "tid": 1},
        {"name": f"{MARK}None", "ts": 90.0, "dur": 1, "pid": 7, "tid": 1},
        {"name": "process_name", "ph": "M", "pid": 7},
    ]
    found = [(event["name"], event["ts"], event["dur"]) for event in parts_track(events)]
    assert found == [("forward", 10.0, 20.0), ("backward", 30.0, 30.0)]


def test_operators_on_a_device_count_once() -> None:
    """As the profiler lists them with a GPU: operators with the time of their kernels, and the kernels as well."""

    def row(key: str, kind: DeviceType, cpu: float, device: float) -> SimpleNamespace:
        return SimpleNamespace(
            key=key, device_type=kind, count=4, self_cpu_time_total=cpu, self_device_time_total=device
        )

    rows = [
        row("aten::mm", DeviceType.CPU, 5e6, 80e6),
        row("sm90_gemm_bf16", DeviceType.CUDA, 0, 80e6),
        row("step 3", DeviceType.CUDA, 0, 90e6),
        row("aten::add", DeviceType.CPU, 6e6, 10e6),
        row(f"{MARK}forward", DeviceType.CPU, 9e6, 0),
    ]
    tracing: Any = SimpleNamespace(key_averages=lambda: rows)
    assert operators(tracing, 2, torch.device("cuda")) == [
        {"name": "aten::mm", "calls": 2, "seconds": 40},
        {"name": "aten::add", "calls": 2, "seconds": 5},
    ]
    assert [one["seconds"] for one in operators(tracing, 2, torch.device("cpu"))] == [3, 2.5]


def test_what_runs_beside_is_waited_for_in_the_updates_part() -> None:
    log: list[str] = []
    trainees = [SimpleNamespace(engine=SimpleNamespace(settle=lambda name=name: log.append(name))) for name in "ab"]
    parts: Any = SimpleNamespace(trainees=trainees, clock=SimpleNamespace(mark=log.append))
    wait_for_updates(parts)
    assert log == ["a", "b", "optimizer"]


def test_a_stage_is_traced_and_the_run_left_alone(prepared: Path, tmp_path: Path) -> None:
    """The teacher is not trained, so that random weights stand in for it; two ranks, real steps."""
    config = open_run(str(prepared))
    before = sorted(path for path in config.folder.rglob("*"))
    out = io.StringIO()
    profile.show(config, None, 2, tmp_path, Console(file=out, width=120))
    assert sorted(path for path in config.folder.rglob("*")) == before
    trace = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))
    track = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "part"]
    assert set(track) == set(PARTS)  # "communication": the counts
    assert track.count("data") == 2 and track.count("teacher") == track.count("backward") >= 2
    assert {"step 2", "step 3", "aten::addmm"} <= {event.get("name") for event in trace["traceEvents"]}
    text = out.getvalue()
    for words in ("student: ", "median of 2, traced", "2 ranks", "teacher ", "backward ", "aten::addmm", "peak  "):
        assert words in text, words
    assert str(tmp_path / "trace.json") in text.replace("\n", "")


def test_useful_flops_of_the_parts() -> None:
    flops = {"teachers": {"tokens": 5.0}, "student": {"tokens": 6.0, "masked": 30.0}, "losses": {"tokens": 3.0}}
    found = profile.useful_flops({"flops": flops, "counts": {"tokens": 10.0, "masked": 2.0, "pairs": 99.0}})
    assert found == {"teacher": 50.0, "forward": 50.0, "backward": 100.0}


def test_what_cannot_be_profiled(prepared: Path, run_file: Path) -> None:
    with pytest.raises(DataError, match=r"holds no prepared data.*distill prep"):
        profile.show(open_run(str(run_file)), "student", 1, None)
    with pytest.raises(ConfigError, match=r"no stage 'studnet'.*'student'"):
        profile.show(open_run(str(prepared)), "studnet", 1, None)
    assert status_of(lambda: app(["profile", str(run_file)], standalone_mode=True)) == 65


def test_a_failing_rank_gives_its_status(prepared: Path, tmp_path: Path) -> None:
    """A trace that cannot be written: known only after the steps, on the first of the ranks."""
    (tmp_path / "file").write_text("")
    config = open_run(str(prepared), ["launch.processes=1"])
    with pytest.raises(LaunchError, match="Cannot write") as caught:
        rehearsal.measured(config, "teacher", 1, 1, tmp_path / "file" / "trace.json")
    assert caught.value.exit_code == 74


def test_finished_models_are_linked_and_others_stood_in_for(prepared: Path, tmp_path: Path) -> None:
    config = open_run(str(prepared), [f"output={tmp_path}", f"data.folder={open_run(str(prepared)).data_folder}"])
    corpus = Corpus.open(config.data_folder)
    rehearsal.provide(config, 0, tmp_path / "aside", corpus)
    shape = json.loads((tmp_path / "aside" / "model" / "config.json").read_text())
    assert (shape["hidden_size"], shape["vocab_size"]) == (32, corpus.vocab_size)
    done = config.stage_folder(0)
    done.mkdir(parents=True)
    (done / "DONE.json").write_text("{}")
    rehearsal.provide(config, 0, tmp_path / "linked", corpus)
    assert (tmp_path / "linked").resolve() == done.resolve()

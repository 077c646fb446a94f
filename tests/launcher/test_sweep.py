"""Sweeps: several ordinary runs from one file, and what becomes of them when some fail or the command is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from configs.errors import ConfigError, LaunchError, Requeue, ZhengliuError
from launcher import curves, devices, sweep
from launcher.backends import BACKENDS, Backend
from launcher.job import Job
from launcher.runfile import open_run

ROOT = Path(__file__).parents[2]
RATE = "stages.student.training.optimizer.learning_rate"


class Recorder(Backend):
    """Keeps the jobs' folders; the runs named in ``errors`` end in them."""

    started: list[Path]
    errors: dict[str, ZhengliuError]

    def describe(self, job: Job) -> str:
        return f"would start {job.folder.name}"

    def run(self, job: Job) -> None:
        self.started.append(job.folder)
        if job.folder.name in self.errors:
            raise self.errors[job.folder.name]


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    Recorder.started, Recorder.errors = [], {}
    monkeypatch.setitem(BACKENDS._entries, "recorder", Recorder)
    monkeypatch.setattr(devices, "gpus", lambda *_, **__: 0)
    return Recorder


def sweep_file(prepared: Path, folder: Path, block: str, **changes: object) -> Path:
    """The prepared run's file with a sweep, its runs under ``folder``."""
    tree = yaml.safe_load(prepared.read_text(encoding="utf-8"))
    tree["data"]["folder"] = str(prepared.parent / "runs" / "small" / "data")
    tree |= {"name": "many", "output": str(folder), "launch": {"backend": "recorder"}, **changes}
    path = folder / "many.yaml"
    path.write_text(yaml.safe_dump(tree | {"sweep": yaml.safe_load(block)}, sort_keys=False), encoding="utf-8")
    return path


def opened(path: Path | str, *overrides: str) -> sweep.Sweep:
    found = sweep.open_sweep(str(path), overrides)
    assert found is not None
    return found


def test_the_runs_are_ordinary_ones_with_one_corpus(prepared: Path, tmp_path: Path) -> None:
    path = sweep_file(prepared, tmp_path, f"{{grid: {{{RATE}: [0.1, 0.2], seed: [1, 2]}}}}")
    sweep.run(opened(path))
    names = [f"000{n}-learning_rate-{rate}-seed-{seed}" for n, rate, seed in ((1, 0.1, 1), (2, 0.1, 2), (3, 0.2, 1))]
    assert [folder.name for folder in Recorder.started[:3]] == names
    assert {folder.parent for folder in Recorder.started} == {tmp_path / "many"}
    assert len(Recorder.started) == 4
    alone = open_run(str(tmp_path / "many" / names[2]))
    assert alone.stages[1].training.optimizer.learning_rate == 0.2  # type: ignore[union-attr]
    assert alone.data_folder == prepared.parent / "runs" / "small" / "data"
    report = (tmp_path / "many" / "report.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in report for name in names)
    assert "teacher: not started" in report


def test_its_folder_stands_for_the_sweep_wherever_it_is(prepared: Path, tmp_path: Path) -> None:
    path = sweep_file(prepared, tmp_path, "{list: [{seed: 1}, {seed: 2}]}")
    sweep.run(opened(path))
    moved = tmp_path / "elsewhere" / "many"
    moved.parent.mkdir()
    (tmp_path / "many").rename(moved)
    again = opened(moved)
    assert [run.folder for run in sweep.configs(again)] == [moved / "0001-seed-1", moved / "0002-seed-2"]


def test_a_failed_run_does_not_keep_the_others_back(prepared: Path, tmp_path: Path) -> None:
    path = sweep_file(prepared, tmp_path, "{grid: {seed: [1, 2, 3]}}")
    Recorder.errors = {"0001-seed-1": LaunchError("rank 0 died"), "0003-seed-3": ConfigError("odd")}
    with pytest.raises(ZhengliuError, match=r"many: 2 of 3 runs have failed\.\n  - 0001-seed-1: rank 0 died") as caught:
        sweep.run(opened(path))
    assert caught.value.exit_code == 69
    assert len(Recorder.started) == 3


def test_a_stop_from_outside_ends_the_sweep(prepared: Path, tmp_path: Path) -> None:
    path = sweep_file(prepared, tmp_path, "{grid: {seed: [1, 2, 3]}}")
    Recorder.errors = {"0002-seed-2": Requeue("stopped")}
    with pytest.raises(Requeue):
        sweep.run(opened(path))
    assert len(Recorder.started) == 2


def test_what_can_be_known_is_said_of_all_runs_before_any_starts(prepared: Path, tmp_path: Path) -> None:
    rows = "[{stages.student.teacher: /none}, {stages.student.teacher: /nowhere}, {seed: 7}]"
    path = sweep_file(prepared, tmp_path, f"{{list: {rows}}}")
    with pytest.raises(ZhengliuError, match=r"nothing was started") as caught:
        sweep.run(opened(path))
    assert caught.value.exit_code == 65
    assert re.findall(r"000\d-teacher-\w+: ", str(caught.value)) == ["0001-teacher-none: ", "0002-teacher-nowhere: "]
    assert not Recorder.started


def test_a_dry_run_starts_nothing(prepared: Path, tmp_path: Path) -> None:
    path = sweep_file(prepared, tmp_path, "{grid: {seed: [1, 2]}}")
    said = sweep.dry_run(opened(path))
    assert said == "# 0001-seed-1\nwould start 0001-seed-1\n\n# 0002-seed-2\nwould start 0002-seed-2"
    assert not Recorder.started


def test_keys_that_change_the_corpus_have_one_each(prepared: Path, tmp_path: Path) -> None:
    data = {"sources": [{"path": "builtin:sample"}], "sequences": {"max_length": 32}}
    block = "{grid: {data.held_out: [0.2, 0.3], data.workers: [1, 2], seed: [1, 2]}}"
    path = sweep_file(prepared, tmp_path, block, data=data)
    corpora = sweep.preps(str(path))
    assert [(c.folder, c.data.held_out) for c in corpora] == [(tmp_path / "many", 0.2), (tmp_path / "many", 0.3)]
    assert [c.data_folder.name[:-7] for c in corpora] == ["data-held_out-0.2", "data-held_out-0.3"]
    assert {c.data_folder for c in sweep.configs(opened(path))} == {c.data_folder for c in corpora}


def test_the_data_folder_itself_can_be_swept(prepared: Path, tmp_path: Path) -> None:
    path = sweep_file(prepared, tmp_path, "{grid: {data.folder: [/a, /b]}}")
    assert [config.data_folder for config in sweep.preps(str(path))] == [Path("/a"), Path("/b")]


def test_an_override_of_a_swept_key_and_a_verb_for_single_runs(prepared: Path, tmp_path: Path) -> None:
    path = sweep_file(prepared, tmp_path, "{grid: {seed: [1, 2]}}")
    with pytest.raises(ConfigError, match="'seed=3' has no effect"):
        opened(path, "seed=3")
    with pytest.raises(ConfigError, match=r"is a sweep .*OUTPUT/NAME/0001"):
        open_run(str(path))
    assert sweep.open_sweep(str(prepared)) is None
    assert [config.name for config in sweep.preps(str(prepared))] == ["small"]


def test_tensorboard_shows_all_runs(tmp_path: Path) -> None:
    words = curves.command(tmp_path, 6006, None, ["0001-a", "0002-b"])
    spec = words[words.index("--logdir_spec") + 1]
    assert spec == f"0001-a:{tmp_path}/0001-a/stages,0002-b:{tmp_path}/0002-b/stages"


# ---------------------------------------------------------------- killed and continued


def command(path: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "launcher.cli", "run", str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.ranks
@pytest.mark.chain
@pytest.mark.timeout(900)
def test_a_sweep_that_is_killed_goes_on(prepared: Path, tmp_path: Path) -> None:
    stage = yaml.safe_load(prepared.read_text(encoding="utf-8"))["stages"][0]
    stage["training"]["log_every"] = 1
    measured = {"latency_lengths": [8], "latency_batch_sizes": [1], "latency_repeats": 1}
    changes: dict[str, object] = {"stages": [stage], "launch": {"processes": 1}, "evaluation": measured}
    block = "{grid: {stages.teacher.training.optimizer.learning_rate: [0.001, 0.01], seed: [1, 2]}}"
    path = sweep_file(prepared, tmp_path, block, **changes)
    first = command(path)
    assert first.stdout is not None
    for line in first.stdout:
        if "sweep: 2 of 4" in line:
            time.sleep(1.0)
            first.send_signal(signal.SIGKILL)
    first.wait()
    many = tmp_path / "many"
    names = [point.name for point in opened(path).runs]
    done = (many / names[0] / "stages" / "01-teacher" / "DONE.json").stat().st_mtime_ns
    assert not (many / names[2] / "config.yaml").exists()

    second = command(path)
    said, _ = second.communicate()
    assert second.returncode == 0, said
    assert "4 runs in" in said and "of which 1 are finished" in said
    assert "sweep: 1 of 4" not in said and "sweep: 2 of 4" in said
    assert (many / names[0] / "stages" / "01-teacher" / "DONE.json").stat().st_mtime_ns == done
    assert all((many / name / "export" / "teacher" / "model.safetensors").is_file() for name in names)
    report = (many / "report.md").read_text(encoding="utf-8")
    assert report.count("| finished |") == 4
    assert "★" in report
    assert (many / "report.html").read_text(encoding="utf-8").count("<svg") >= 1
    assert all(sweep.finished(config) for config in sweep.configs(opened(path)))
    assert not any(sweep.finished(config) for config in sweep.configs(opened(path, "evaluation.latency_repeats=2")))

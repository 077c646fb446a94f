"""Runs of a sweep at the same time: processes that divide a machine, and jobs that wait for each other."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.cluster import HostsCluster, SlurmCluster
from configs.errors import ConfigError, Requeue, ZhengliuError
from launcher import devices, side_by_side, sweep
from launcher.job import ROOT
from launcher.side_by_side import Runs, slots

CHILD = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
note = lambda **facts: (folder / "facts.json").write_text(json.dumps(facts))
facts = {"began": time.time(), "variables": {k: os.environ.get(k) for k in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}}
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
note(**facts)
act = json.loads(sys.argv[2]).get(folder.name, {})
deadline = time.time() + act.get("seconds", 0.3)
patience = time.time() + 30  # for the one that is to be beside it
beside = lambda: len(list(folder.parent.glob("*/facts.json"))) >= act.get("beside", 0)
while (time.time() < deadline or not beside() and time.time() < patience) and not asked:
    time.sleep(0.01)
note(**facts, ended=time.time(), asked=bool(asked))
print("a line of the run")
if act.get("says"):
    print("distill: " + act["says"], file=sys.stderr)
if act.get("kill"):
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(75 if asked else act.get("status", 0))
"""
NAMES = ["0001-seed-1", "0002-seed-2", "0003-seed-3", "0004-seed-4"]


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the runs' launchers do, by the runs' names; they are small programs of this test."""
    said: dict[str, Any] = {}

    def command(config: Any, runs: Runs) -> list[str]:
        return [sys.executable, "-I", "-S", "-c", CHILD, str(config.folder), json.dumps(said)]

    monkeypatch.setattr(side_by_side, "command", command)
    monkeypatch.setattr(devices, "gpus", lambda *_, **__: 0)
    monkeypatch.setattr(devices, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return said


def opened(prepared: Path, folder: Path, at_once: int, **changes: object) -> sweep.Sweep:
    """Four runs of the prepared file."""
    tree = yaml.safe_load(prepared.read_text(encoding="utf-8"))
    tree["data"]["folder"] = str(prepared.parent / "runs" / "small" / "data")
    tree |= {"name": "many", "output": str(folder), **changes}
    tree["sweep"] = {"at_once": at_once, "grid": {"seed": [1, 2, 3, 4]}}
    path = folder / "many.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    found = sweep.open_sweep(str(path))
    assert found is not None
    return found


def facts(folder: Path) -> dict[str, Any]:
    return {p.parent.name: json.loads(p.read_text()) for p in sorted((folder / "many").glob("*/facts.json"))}


def at_the_same_time(found: dict[str, Any]) -> int:
    return max(
        sum(other["began"] < one["ended"] and one["began"] < other["ended"] for other in found.values())
        for one in found.values()
    )


def test_two_at_once_share_the_cores(prepared: Path, tmp_path: Path, acts: dict[str, Any]) -> None:
    acts |= {name: {"beside": 2} for name in NAMES[:2]}
    sweep.run(opened(prepared, tmp_path, 2))
    found = facts(tmp_path)
    assert list(found) == NAMES
    assert 2 == at_the_same_time(dict(list(found.items())[:2])) <= at_the_same_time(found)
    # 8 cores, two runs of two ranks each
    assert [one["variables"] for one in found.values()] == 4 * [{"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": None}]
    assert (tmp_path / "many" / NAMES[3] / "logs" / "launch.log").read_text() == "a line of the run\n"
    assert (tmp_path / "many" / NAMES[3] / "config.yaml").is_file()
    assert (tmp_path / "many" / "report.md").is_file()


def test_gpus_are_divided(
    prepared: Path, tmp_path: Path, acts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "gpus", lambda *_, **__: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    sweep.run(opened(prepared, tmp_path, 2))
    seen = [one["variables"]["CUDA_VISIBLE_DEVICES"] for one in facts(tmp_path).values()]
    assert set(seen) == {"4,5", "6,7"} and seen[0] != seen[1]


@pytest.mark.parametrize(
    ("at_once", "gpus", "visible", "expected"),
    [
        (1, 0, None, [([], 8)]),
        (3, 0, None, [([], 2), ([], 2), ([], 2)]),
        (2, 4, None, [(["0", "1"], 4), (["2", "3"], 4)]),
        (3, 4, None, [(["0"], 2), (["1"], 2), (["2"], 2)]),
        (8, 2, "GPU-a,GPU-b", [(["GPU-a"], 4), (["GPU-b"], 4)]),
    ],
)
def test_slots(
    at_once: int, gpus: int, visible: str | None, expected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "gpus", lambda *_, **__: gpus)
    monkeypatch.setattr(devices, "cores", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [(list(slot.gpus), slot.cores) for slot in slots(at_once)] == expected


def test_a_run_that_fails_does_not_keep_the_others_back(
    prepared: Path, tmp_path: Path, acts: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    acts |= {NAMES[0]: {"status": 65, "says": "a bad shard"}, NAMES[2]: {"kill": True}}
    with pytest.raises(ZhengliuError, match=r"many: 2 of 4 runs have failed\.") as error:
        sweep.run(opened(prepared, tmp_path, 2))
    assert error.value.exit_code == 69, "the highest"
    assert f"{NAMES[0]}: a bad shard" in str(error.value)
    assert f"{NAMES[2]}: its launcher ended with status -9, without a word. See " in str(error.value)
    assert list(facts(tmp_path)) == NAMES
    assert f"sweep: {NAMES[0]} has failed (status 65): a bad shard" in capsys.readouterr().out


def test_a_stop_of_one_ends_all(prepared: Path, tmp_path: Path, acts: dict[str, Any]) -> None:
    acts |= {NAMES[0]: {"status": 75}, NAMES[1]: {"seconds": 60}}
    with pytest.raises(Requeue, match=f"stopped by the stop of {NAMES[0]}"):
        sweep.run(opened(prepared, tmp_path, 2))
    found = facts(tmp_path)
    assert list(found) == NAMES[:2]
    assert found[NAMES[1]]["asked"]


def test_a_signal_is_passed_on_and_waited_for(prepared: Path, tmp_path: Path, acts: dict[str, Any]) -> None:
    acts |= {name: {"seconds": 60} for name in NAMES}

    def stop() -> None:
        deadline = time.monotonic() + 30
        while len(list((tmp_path / "many").glob("*/facts.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Requeue, match=r"stopped by SIGTERM\. All runs have ended"):
        sweep.run(opened(prepared, tmp_path, 2))
    thread.join()
    assert [one["asked"] for one in facts(tmp_path).values()] == [True, True]


def test_a_corpus_that_cannot_be_made_fails_its_runs_alone(
    prepared: Path, tmp_path: Path, acts: dict[str, Any]
) -> None:
    """A bad file is found in the preparation; the runs on another corpus are carried out."""
    (tmp_path / "empty.txt").write_text("一\n")
    bad = {"data.sources": [{"path": str(tmp_path / "empty.txt")}], "data.folder": str(tmp_path / "bad")}
    tree = {**opened(prepared, tmp_path, 2).tree, "sweep": {"at_once": 2, "list": [{"seed": 1}, bad]}}
    path = tmp_path / "rows.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    found = sweep.open_sweep(str(path))
    assert found is not None
    with pytest.raises(ZhengliuError, match=r"1 of 2 runs have failed") as error:
        sweep.run(found)
    assert error.value.exit_code == 65
    assert list(facts(tmp_path)) == ["0001-seed-1"]


def test_the_command_is_an_ordinary_run_of_its_folder(prepared: Path, tmp_path: Path) -> None:
    config = sweep.configs(opened(prepared, tmp_path, 2))[0]
    words = side_by_side.command(config, Runs([config], {}, {}, 2, "teacher", None, "c.yaml"))
    assert words[1:5] == ["-P", "-m", "launcher.cli", "run"]
    assert words[5:] == [str(config.folder), "--only", "teacher", "--cluster", "c.yaml"]


def test_hosts_are_not_shared(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ZhengliuError, match=r"sweep\.at_once is 2, but a run on a cluster of kind hosts") as error:
        sweep.run(opened(prepared, tmp_path, 2), None, HostsCluster(kind="hosts", hosts=["a", "b"], runner="ssh"))
    assert error.value.exit_code == ConfigError.exit_code


# ---------------------------------------------------------------- Slurm

SBATCH = """#!/bin/sh
# Notes what it is asked for and numbers it.
echo "$@" >> {place}/asked
wc -l < {place}/asked
"""


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_slurm_holds_so_many_at_once(
    at_once: int, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each job waits for the end, good or bad, of the one so many before it."""
    (tmp_path / "sbatch").write_text(SBATCH.format(place=tmp_path))
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    sweep.run(opened(prepared, tmp_path, at_once), None, SlurmCluster(kind="slurm", partition="cpu", processes=2))
    asked = (tmp_path / "asked").read_text().splitlines()
    waits = [next((w for w in line.split() if w.startswith("--dependency")), None) for line in asked]
    expected = [None] * at_once + [f"--dependency=afterany:{number}" for number in range(1, 5 - at_once)]
    assert waits == expected
    assert [line.split("/")[-4] for line in asked] == NAMES


# ---------------------------------------------------------------- real


@pytest.mark.ranks
@pytest.mark.chain
@pytest.mark.timeout(900)
def test_two_real_runs_at_once(prepared: Path, tmp_path: Path) -> None:
    """As a command; each writes its own launch log, and both are compared."""
    import subprocess

    stage = yaml.safe_load(prepared.read_text(encoding="utf-8"))["stages"][0]
    measured = {"latency_lengths": [8], "latency_batch_sizes": [1], "latency_repeats": 1}
    several = opened(prepared, tmp_path, 2, stages=[stage], launch={"processes": 1}, evaluation=measured)
    tree = {**several.tree, "sweep": {"at_once": 2, "grid": {"seed": [1, 2]}}}
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "launcher.cli", "run", str(path)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sweep: 2 runs in" in done.stdout
    for name in NAMES[:2]:
        assert (tmp_path / "many" / name / "export" / "teacher" / "model.safetensors").is_file()
        assert "teacher" in (tmp_path / "many" / name / "logs" / "launch.log").read_text(encoding="utf-8")
    report = (tmp_path / "many" / "report.md").read_text(encoding="utf-8")
    assert report.count("| finished |") == 2

"""A real OpenMPI and a real MPICH: two agents on one machine, each a node of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from launcher.launch import prepare_data
from launcher.runfile import open_prep
from tests.launcher.conftest import write_run
from tests.launcher.strings import make

pytestmark = [pytest.mark.clusters, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
CLUSTER = """
kind: mpi
launcher: LAUNCHER
mpirun: PROGRAM
nodes: 2
processes: 1
interface: lo
variables: {OMP_NUM_THREADS: "1"}
supervision: {restarts: RESTARTS}
"""
MANY = ["stages.0.training.steps=400", "stages.0.training.checkpoint_every=20"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mpi") / "a b'c"
    folder.mkdir()
    config = open_prep(str(write_run(folder)), [f"data.folder={folder / 'data'}"])
    prepare_data(config.data, config.data_folder)
    return folder


@pytest.fixture(params=["openmpi", "mpich"])
def kind(request: pytest.FixtureRequest) -> str:
    program(request.param)
    return str(request.param)


def program(kind: str) -> str:
    """By names that Debian's alternatives leave alone."""
    names = {"openmpi": ["mpirun.openmpi", "mpirun"], "mpich": ["mpiexec.hydra"]}[kind]
    found = next((path for path in map(shutil.which, names) if path is not None), None)
    if found is None:  # a laptop may lack it; with CI=true a skip fails (tests/conftest.py)
        pytest.skip(f"{names[0]} is not installed (Debian: openmpi-bin, mpich)")
    return found


def start(place: Path, kind: str, name: str, *words: str, restarts: int = 0) -> subprocess.Popen[str]:
    file = place / f"{name}.yaml"
    text = CLUSTER.replace("LAUNCHER", kind).replace("PROGRAM", program(kind))
    file.write_text(text.replace("RESTARTS", str(restarts)))
    run = [str(place / "small.yaml"), f"name={name}", f"data.folder={place / 'data'}", *words]
    command = [sys.executable, "-P", "-m", "launcher.cli", "run", *run, "--cluster", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ranks(place: Path, name: str) -> list[psutil.Process]:
    """The rank programs of a run; its folder is on their command line."""
    folder = str((place / "runs" / name).resolve())
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "distill_core.run" in words and folder in words:
            found.append(process)
    return found


def none_left(place: Path, name: str) -> bool:
    """Within seconds: a process that was killed may be seen for a moment."""
    deadline = time.monotonic() + 5
    while ranks(place, name) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not ranks(place, name)


def wait_for_steps(process: subprocess.Popen[str], place: Path, name: str, seconds: float = 120) -> None:
    path = place / "runs" / name / "logs" / "progress.json"
    deadline = time.monotonic() + seconds
    while not path.is_file():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{name} has not begun"
        time.sleep(0.1)


@pytest.fixture
def stopped() -> Iterator[list[subprocess.Popen[str]]]:
    """Launchers that a failing test would leave."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_sigterm_is_a_checkpoint_and_75(place: Path, kind: str, stopped: list[subprocess.Popen[str]]) -> None:
    """And the same command goes on to the end."""
    name = f"stopped-{kind}"
    process = start(place, kind, name, *MANY)
    stopped.append(process)
    wait_for_steps(process, place, name)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "Stopped by SIGTERM. The state of the last step is in a checkpoint." in said
    assert none_left(place, name)
    process = start(place, kind, name, *MANY)
    stopped.append(process)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert (place / "runs" / name / "report.html").is_file()
    assert none_left(place, name)


def test_a_killed_rank_is_named_and_69(place: Path, kind: str, stopped: list[subprocess.Popen[str]]) -> None:
    name = f"killed-{kind}"
    process = start(place, kind, name, *MANY)
    stopped.append(process)
    wait_for_steps(process, place, name)
    victim = next(p for p in ranks(place, name) if p.environ().get("RANK") == "1")
    victim.kill()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 69, said
    assert "Rank 1 of 2 on" in said and "it was killed by SIGKILL" in said
    assert none_left(place, name)


def test_any_string_arrives(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts: dict[str, object] = {"kind": "mpi", "launcher": kind, "mpirun": program(kind), "nodes": 2, "interface": "lo"}
    made = make(tmp_path, "a b'c; $(touch x)", monkeypatch, facts)
    made.backend.run(made.job)
    made.check()
    assert not [folder for folder in (Path(), Path("/"), Path.home()) if (folder / "x").exists()]

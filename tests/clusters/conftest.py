"""Hosts for the tests of clusters, and what is started on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clusters import hosts
from tests.clusters.hosts import Network

ROOT = Path(__file__).resolve().parent.parent.parent
NODE_TIMEOUT = 5.0


@pytest.fixture(scope="session")
def namespaces() -> None:
    why = hosts.missing()
    if why is not None:
        pytest.skip(why)  # a laptop may forbid namespaces; with CI=true a skip fails (tests/conftest.py)


@pytest.fixture
def two(namespaces: None, tmp_path: Path) -> Iterator[Network]:
    with hosts.network(tmp_path, 2) as made:
        yield made


@pytest.fixture
def three(namespaces: None, tmp_path: Path) -> Iterator[Network]:
    with hosts.network(tmp_path, 3) as made:
        yield made


def cluster_file(net: Network, runner: str, **supervision: Any) -> Path:
    """Of all hosts of ``net``, two ranks each."""
    timeouts = {"node": NODE_TIMEOUT, "stop": 60, "peer_grace": 1} | supervision.pop("timeouts", {})
    facts = {
        "kind": "hosts",
        "hostfile": str(net.hostfile),
        "ssh_config": str(net.ssh_config),
        "runner": runner,
        "supervision": {"timeouts": timeouts} | supervision,
    }
    path = net.folder / f"{runner}.yaml"
    path.write_text(yaml.safe_dump(facts))
    return path


def figure(name: str, **facts: object) -> None:
    """One line for the records: `pytest -s` shows it."""
    print("figure", json.dumps({"name": name} | facts), flush=True)


def until(ready: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.02)


@dataclass
class Launched:
    """A launcher's process beside the hosts, and its run folder."""

    folder: Path
    process: subprocess.Popen[str]
    net: Network
    ranks: dict[int, int] = field(default_factory=dict)

    def output(self, seconds: float = 120.0) -> tuple[int, str]:
        text, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, text

    def pids(self) -> dict[int, int]:
        return {rank: pid for host in self.net.hosts for rank, pid in host.ranks().items()}


def launch(net: Network, folder: Path, *words: str) -> Launched:
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "250", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    return Launched(folder, process, net)


def launch_light(net: Network, runner: str = "ssh", begun: int | None = None, **supervision: Any) -> Launched:
    """Two light ranks on each host, all of them within their steps when this returns."""
    folder = net.folder / "run"
    program = str(ROOT / "tests" / "clusters" / "light.py")
    made = launch(net, folder, program, str(folder), str(cluster_file(net, runner, **supervision)))
    await_starts(made, begun or 2 * len(net.hosts))
    return made


def await_starts(made: Launched, count: int) -> None:
    """Until ``count`` light ranks have begun their steps in this folder, of all starts."""
    starts = made.folder / "starts"

    def begun() -> bool:
        if made.process.poll() is not None:
            pytest.fail(f"the launcher ended: {made.output()}")
        return starts.exists() and len(starts.read_text().splitlines()) >= count

    until(begun, f"{count} ranks at work")
    time.sleep(0.3)
    made.ranks = made.pids()

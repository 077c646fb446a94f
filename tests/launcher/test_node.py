"""The agent's program as schedulers start it: fake ranks, real agents that find each other over the loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.cluster import Timeouts
from configs.errors import ConfigError, LaunchError
from launcher.job import HOSTS, ROOT, Job
from launcher.lock import folder_lock
from launcher.node import encoded, node_number

PROGRAM = Path(__file__).with_name("fake_rank.py")
Started = list[subprocess.Popen[str]]


@pytest.fixture
def started() -> Iterator[Started]:
    processes: Started = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def saved(folder: Path, nodes: int = 1, **acts: str) -> Path:
    command = [sys.executable, "-I", "-S", str(PROGRAM), str(folder)]
    job = Job(folder, 1, None, command, nodes, environment=acts, interface="lo", mark="m1", scheduled=True)
    return Job.save(job)


def node(path: Path, *words: str, variable: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-P", str(ROOT / "launcher" / "node.py"), encoded(path), *words]
    environment = {**os.environ, "PMI_RANK": variable}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_nodes_that_a_scheduler_has_numbered(tmp_path: Path, started: Started) -> None:
    """One more than there are: the script has left the names of those that it got."""
    path = saved(tmp_path, 3, FAKE_0="print:one", FAKE_1="print:two")
    path.with_name(HOSTS).write_text("n1\nn2\n")
    assert Job.open(path).hosts == ["n1", "n2"]
    started += [node(path, "--node", "PMI_RANK", "--show", variable=str(number)) for number in range(2)]
    said = [process.communicate(timeout=60)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert said == ["one\n", ""]
    assert node(path, "--outcome").wait(30) == 0


def test_what_failed_is_the_outcome_of_all(tmp_path: Path, started: Started) -> None:
    path = saved(tmp_path, 2, FAKE_0="sleep:60", FAKE_1="fail:65")
    path.with_name(HOSTS).write_text("n1\nn2\n")
    started += [node(path, "--node", str(number)) for number in range(2)]
    assert [process.wait(60) for process in started] == [65, 65]
    outcome = node(path, "--outcome")
    started.append(outcome)
    said, _ = outcome.communicate(timeout=30)
    assert outcome.returncode == 65
    assert "Rank 1 of 2 on n2 failed first" in said and "message of rank 1" in said


def test_no_word_is_a_lost_node(tmp_path: Path, started: Started) -> None:
    outcome = node(saved(tmp_path), "--outcome")
    started.append(outcome)
    said, _ = outcome.communicate(timeout=30)
    assert (outcome.returncode, said.splitlines()[0][:35]) == (69, "The agents ended without a word: se")


def test_a_scheduler_may_say_sigterm_twice(tmp_path: Path, started: Started) -> None:
    """The ranks still have the time for their checkpoint."""
    path = saved(tmp_path, FAKE_0="ignore:SIGUSR1;ready;await:go;exit:75")
    process = node(path, "--node", "0")
    started.append(process)
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready-0").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.4)
    assert process.poll() is None
    (tmp_path / "go").write_text("")
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "The state of the last step is in a checkpoint." in said


def test_the_folder_is_held_by_the_first_node(tmp_path: Path, started: Started) -> None:
    path = saved(tmp_path, FAKE_0="ready;await:go")
    process = node(path, "--node", "0")
    started.append(process)
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready-0").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(ConfigError, match=f"pid {process.pid} on "), folder_lock(tmp_path, patience=0.3):
        pass
    (tmp_path / "go").write_text("")
    with folder_lock(tmp_path, patience=30):
        assert process.wait(30) == 0


def test_numbers_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "12")
    assert (node_number("3"), node_number("SLURM_PROCID")) == (3, 12)
    monkeypatch.delenv("SLURM_PROCID")
    with pytest.raises(ConfigError, match="SLURM_PROCID is not set to this node's number"):
        node_number("SLURM_PROCID")


def test_what_is_shown_of_a_job_hides_secrets(tmp_path: Path) -> None:
    job = Job(tmp_path, 1, environment={"MY_TOKEN": "canary", "LANG": "C"}, timeouts=Timeouts(step=7))
    assert "canary" in job.text() and "canary" not in job.shown()
    assert '"LANG": "C"' in job.shown()


def test_a_node_that_does_not_see_the_run_folder_says_its_name(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=f"cannot be read on {socket.gethostname()} .*all nodes share"):
        Job.open(tmp_path / "launch" / "m" / "job.json")

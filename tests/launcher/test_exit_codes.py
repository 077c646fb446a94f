"""The matrix of exit codes: each way of dying, at each level, under each way of starting, and the status at the top.

0 is for runs that are done, 64 usage, 65 bad data, 69 a lost peer, 70 a defect, 74 input and output, 75 another turn.
What stands elsewhere: a rank's own errors (``tests/distill_core/test_exit_status.py``), the command's
(``test_cli.py``), verdicts of any content (``test_verdict.py``), runners that lie (``test_follow.py``); and the same
deeds with real ssh, pdsh, Slurm and mpirun in ``tests/clusters``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from configs.cluster import SlurmCluster, Supervision
from launcher import follow
from launcher.backends.slurm import Slurm
from launcher.cli import status_of
from launcher.job import ROOT
from tests.launcher import stand_ins
from tests.launcher.fake_launcher import made

STUBBORN = "ignore:SIGTERM;ignore:SIGUSR1;ready;sleep:60"
PATIENT = "heed;ready;sleep:60"
REQUEUED = (69, 75)
"""What Slurm's script puts back into the queue, here once for each."""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "LINGER_SECONDS", 0.5)


# ---------------------------------------------------------------- ranks

RANKS = {
    "done": ("print:well", 0),
    "bad usage": ("fail:64", 64),
    "bad data": ("fail:65", 65),
    "it has lost a peer": ("fail:69", 69),
    "a defect of ours": ("crash", 70),
    "a full disk": ("fail:74", 74),
    "another turn": ("exit:75", 75),
    "SIGTERM, which it heeds": ("heed;kill:SIGTERM", 75),
    "SIGUSR1, which it heeds": ("heed;kill:SIGUSR1", 75),
    "SIGKILL, of the kernel out of memory too": ("kill:SIGKILL", 69),
    "SIGSEGV": ("kill:SIGSEGV", 69),
    "SIGABRT": ("kill:SIGABRT", 69),
    "an import that fails": ("import:no_such_module", 70),
    "a status that is none of ours": ("exit:3", 70),
    "it hangs": ("pulse:backward;sleep:60", 69),
    "it was stopped": ("pulse:teacher;kill:SIGSTOP", 69),
}
"""What the second of two ranks does; the first one works on, and follows only to the end of a run or of a turn."""
TURNS = ("done", "bad usage", "bad data", "a defect of ours", "a full disk", "another turn", "SIGSEGV", "it hangs")
"""For Slurm's script, which only looks at the status that its agent ends with."""
Start = Callable[[Path, pytest.MonkeyPatch], int]


def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    backend, job = made(folder, "local")
    return status_of(lambda: backend.run(job))


def over_ssh(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Two hosts; the rank that dies is on the second one."""
    stand_ins.ssh(folder, monkeypatch)
    backend, job = made(folder, "hosts")
    return status_of(lambda: backend.run(job))


def in_slurms_script(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    stand_ins.slurm(folder, monkeypatch)
    _, job = made(folder, "local")
    backend = Slurm(SlurmCluster(kind="slurm", partition="p", supervision=Supervision(restarts=1)))
    replace(job, scheduled=True).save()
    script = folder / "slurm.sh"
    script.write_text(backend.script(job))
    status = subprocess.run(["bash", script], check=False, cwd="/").returncode
    assert (folder / "requeued").exists() == (status in REQUEUED)
    return status


CASES = [(start, way) for start in (here, over_ssh) for way in RANKS] + [(in_slurms_script, way) for way in TURNS]


@pytest.mark.parametrize(("start", "way"), CASES)
def test_a_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Start, way: str) -> None:
    acts, status = RANKS[way]
    monkeypatch.setenv("FAKE_0", acts if status in (0, 75) else "sleep:60")
    monkeypatch.setenv("FAKE_1", acts)
    assert start(tmp_path, monkeypatch) == status


@pytest.mark.parametrize("start", [here, over_ssh])
def test_a_rank_that_asks_for_another_turn_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
    """As one does that got SIGTERM while it loaded: its peers would wait for it for ever."""
    monkeypatch.setenv("FAKE_0", PATIENT)
    monkeypatch.setenv("FAKE_1", "await:ready-0;exit:75")
    began = time.monotonic()
    assert start(tmp_path, monkeypatch) == 75
    assert time.monotonic() - began < 30
    assert all_gone(tmp_path)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    backend, job = made(tmp_path, "local", ["/no/such/program"])
    assert status_of(lambda: backend.run(job)) == 70


# ---------------------------------------------------------------- agents on two hosts

AGENTS = {
    "SIGKILL": ([signal.SIGKILL], PATIENT, 69),
    "SIGSEGV": ([signal.SIGSEGV], PATIENT, 69),
    "it was stopped": ([signal.SIGSTOP], PATIENT, 69),
    "SIGTERM": ([signal.SIGTERM], PATIENT, 75),
    "SIGUSR1": ([signal.SIGUSR1], PATIENT, 75),
    "a second signal": ([signal.SIGTERM, signal.SIGTERM], STUBBORN, 75),
    "no time left": ([signal.SIGTERM], STUBBORN, 75),
}


@pytest.mark.parametrize("way", AGENTS)
@pytest.mark.parametrize("host", ["node1", "node2"])
def test_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, way: str) -> None:
    numbers, acts, status = AGENTS[way]
    for rank in range(2):
        monkeypatch.setenv(f"FAKE_{rank}", acts)
    stand_ins.ssh(tmp_path, monkeypatch)
    backend, job = made(tmp_path, "hosts")
    with beside(lambda: signalled(lambda: int((tmp_path / f"pid-{host}").read_text()), tmp_path, numbers)):
        assert status_of(lambda: backend.run(job)) == status
    assert all_gone(tmp_path)


BROKEN = {
    "no connection": ("exit 255", 69),
    "no Python": ("PATH=/nowhere; exit 127", 69),
    "an import that fails": ("echo 'raise ImportError' > {place}/pydantic.py; PYTHONPATH={place}", 69),
    "a defect of ours": ('echo "$DEFECT" > {place}/sitecustomize.py; PYTHONPATH={place}', 70),
    "a full disk": ("ln -s /dev/full {place}/logs/rank-1.log", 74),
}
"""What a login shell of the second host does before the agent comes: without it the others cannot begin."""
DEFECT = """
import sys
sys.path.insert(0, {root!r})
from launcher.agent import Agent
def broken(self): raise RuntimeError("the very defect")
Agent.report = broken
"""


@pytest.mark.parametrize("way", BROKEN)
def test_an_agent_that_cannot_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    profile, status = BROKEN[way]
    for rank in range(2):
        monkeypatch.setenv(f"FAKE_{rank}", PATIENT)
    monkeypatch.setenv("DEFECT", DEFECT.format(root=str(ROOT)))
    stand_ins.ssh(tmp_path, monkeypatch)
    (tmp_path / "logs").mkdir()
    (tmp_path / "profile-node2").write_text(profile.format(place=tmp_path))
    backend, job = made(tmp_path, "hosts")
    assert status_of(lambda: backend.run(job)) == status
    assert all_gone(tmp_path)


def test_a_full_disk_under_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank-1.log").symlink_to("/dev/full")
    monkeypatch.setenv("FAKE_0", PATIENT)
    assert here(tmp_path, monkeypatch) == 74
    assert all_gone(tmp_path)


def test_a_run_whose_end_cannot_be_written_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the launch fills up while the ranks work: the run is done, and nobody could read that."""
    stand_ins.ssh(tmp_path, monkeypatch)
    (tmp_path / "profile-node1").write_text(f'echo "$DEFECT" > {tmp_path}/sitecustomize.py; PYTHONPATH={tmp_path}')
    monkeypatch.setenv("DEFECT", FULL.format(root=str(ROOT)))
    backend, job = made(tmp_path, "hosts")
    assert status_of(lambda: backend.run(job)) == 74


FULL = """
import errno, sys
sys.path.insert(0, {root!r})
from launcher import verdict
def full(path, text): raise OSError(errno.ENOSPC, "No space left on device")
verdict.write_private = full
"""


# ---------------------------------------------------------------- the launcher

LAUNCHERS = {
    "SIGTERM": ([signal.SIGTERM], PATIENT, 75),
    "SIGUSR1": ([signal.SIGUSR1], PATIENT, 75),
    "SIGINT": ([signal.SIGINT], PATIENT, 130),
    "a second signal": ([signal.SIGTERM, signal.SIGTERM], STUBBORN, 75),
    "no time left": ([signal.SIGTERM], STUBBORN, 75),
    "SIGKILL": ([signal.SIGKILL], PATIENT, -signal.SIGKILL),
    "SIGSEGV": ([signal.SIGSEGV], PATIENT, -signal.SIGSEGV),
}


@pytest.mark.parametrize("way", LAUNCHERS)
@pytest.mark.parametrize("kind", ["local", "hosts"])
def test_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, way: str) -> None:
    numbers, acts, status = LAUNCHERS[way]
    for rank in range(2):
        monkeypatch.setenv(f"FAKE_{rank}", acts)
    stand_ins.ssh(tmp_path, monkeypatch)
    program = Path(__file__).with_name("fake_launcher.py")
    process = subprocess.Popen([sys.executable, str(program), str(tmp_path), kind])
    try:
        signalled(lambda: process.pid, tmp_path, numbers)
        assert process.wait(30) == status
    finally:
        process.kill()
        process.wait()
    assert all_gone(tmp_path)


# ---------------------------------------------------------------- deeds


@contextlib.contextmanager
def beside(deed: Callable[[], None]) -> Iterator[None]:
    """The launcher heeds signals, so it has the main thread."""
    failed: list[BaseException] = []

    def carry_out() -> None:
        try:
            deed()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=carry_out)
    thread.start()
    yield
    thread.join()
    assert not failed, failed


def signalled(pid: Callable[[], int], folder: Path, numbers: list[signal.Signals]) -> None:
    """Send ``numbers`` to a process once both ranks are at work."""
    until(lambda: all((folder / f"ready-{rank}").exists() for rank in range(2)))
    for number in numbers:
        os.kill(pid(), number)
        time.sleep(0.7)


def until(ready: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def all_gone(folder: Path, seconds: float = 10.0) -> bool:
    """Whether the ranks that had begun, and the agents, end within ``seconds``."""
    pids = [int(path.read_text()) for path in (*folder.glob("ready-?"), *folder.glob("pid-*"))]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False

"""The launcher's side, with shells that stand for ssh and DeepSpeed's runner; real ones are in ``tests/clusters``."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from configs.cluster import Timeouts
from configs.errors import ConfigError, LaunchError, Requeue
from launcher import follow
from launcher.follow import Beat, Shell
from launcher.job import Job
from launcher.verdict import Verdict


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(follow, "LINGER_SECONDS", 0.5)
    made = Job(tmp_path, 1, command=["true"], nodes=2, hosts=["a", "b"], mark="m", timeouts=Timeouts(stop=5))
    made.save()
    (tmp_path / "logs").mkdir()
    return made


def carry(job: Job, *scripts: str) -> Beat:
    beat = Beat(job.place)
    shells = [Shell.start(f"host-{i}", ["sh", "-c", script], os.environ) for i, script in enumerate(scripts)]
    with beat.beating():
        follow.follow(job, shells, beat)
    return beat


def later(seconds: float, deed: object) -> threading.Timer:
    timer = threading.Timer(seconds, deed)  # type: ignore[arg-type]
    timer.daemon = True
    timer.start()
    return timer


def await_handlers(before: object) -> None:
    """Until the launcher heeds signals; without it one would end the tests."""
    while signal.getsignal(signal.SIGTERM) == before:
        time.sleep(0.01)


def test_done_is_what_node_0_has_written_whatever_the_shells_say(job: Job) -> None:
    later(0.3, lambda: Verdict("done").save(job.place))
    carry(job, "sleep 0.6", "sleep 0.6; exit 3")


def test_a_status_of_0_without_a_word_is_a_failure(job: Job) -> None:
    """As of DeepSpeed's runner, when its remote jobs have died."""
    with pytest.raises(LaunchError, match=r"host-0: `sh` ended with status 0, and its agent without a word.*\n.*bye"):
        carry(job, "echo bye")


def test_a_shell_that_ends_before_the_others_asks_them_to_stop_and_is_named(job: Job) -> None:
    def stopped() -> None:
        path = job.place / "launcher.json"
        while not path.exists() or json.loads(path.read_text())["stop"] != "the loss of host-1":
            time.sleep(0.02)
        Verdict.stopped("the loss of host-1", complete=True).save(job.place)

    later(0.0, stopped)
    with pytest.raises(LaunchError, match=r"host-1: `sh` ended with status 255.*\n.*no route") as error:
        carry(job, "sleep 2", "echo no route to host >&2; exit 255")
    assert (error.value.exit_code, error.value.host) == (69, "host-1")


def test_while_the_first_agent_is_at_work_nothing_new_may_start(job: Job) -> None:
    """The shells are gone and the agents are not: they are waited for, up to timeouts.stop."""
    link = job.place / "link.json"
    link.write_text("{}")

    def end() -> None:
        Verdict.stopped("the loss of host-0", complete=True).save(job.place)
        link.unlink()

    began = time.monotonic()
    later(2.0, end)
    with pytest.raises(LaunchError, match="host-0: `sh` ended with status 255"):
        carry(job, "exit 255")
    assert time.monotonic() - began > 1.9


def test_signals_travel_with_the_beat(job: Job) -> None:
    seen: list[str] = []
    path = job.place / "launcher.json"

    def ask() -> None:
        await_handlers(before)
        for at_once in (False, True):
            os.kill(os.getpid(), signal.SIGTERM)
            while (facts := json.loads(path.read_text()))["at_once"] != at_once or facts["stop"] is None:
                time.sleep(0.01)
            seen.append(facts["stop"])

    before = signal.getsignal(signal.SIGTERM)
    asking = later(0.0, ask)
    with pytest.raises(Requeue, match="Stopped by SIGTERM"):
        carry(job, "sleep 30")
    asking.join(20)
    assert seen == ["SIGTERM", "SIGTERM"]


def test_a_program_that_is_not_there(job: Job) -> None:
    with pytest.raises(ConfigError, match=r"no-such-ssh cannot be started \(No such file or directory\)"):
        Shell.start("a", ["/nowhere/no-such-ssh"], {})


def test_a_first_agent_that_was_killed_is_not_waited_for(job: Job) -> None:
    """Its file stays and stays the same; the launcher waits for as long as a node may be silent, not for the stop."""
    patient = replace(job, timeouts=Timeouts(stop=300, node=1))
    (job.place / "link.json").write_text('{"beat": 7}')
    began = time.monotonic()
    with pytest.raises(LaunchError, match="host-0: `sh` ended with status 255") as error:
        carry(patient, "exit 255")
    assert error.value.exit_code == 69
    assert 1.0 < time.monotonic() - began < 5.0


def test_a_first_agent_that_beats_is_waited_for(job: Job) -> None:
    """For longer than a node may be silent."""
    patient = replace(job, timeouts=Timeouts(stop=300, node=3))
    for number in range(20):
        later(0.2 * number, lambda n=number: (job.place / "link.json").write_text(json.dumps({"beat": n})))
    later(4.0, lambda: Verdict.stopped("the loss of host-0", complete=True).save(job.place))
    began = time.monotonic()
    with pytest.raises(LaunchError, match="host-0: `sh` ended with status 255"):
        carry(patient, "sleep 0.1; exit 255")
    assert time.monotonic() - began > 3.8


def test_a_stop_is_no_loss_whichever_is_seen_first(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent leaves its verdict and its shell ends, both just after the launcher has looked for a verdict."""
    real, looked = follow.read_verdict, list[bool]()

    def late(one: Job) -> Verdict | None:
        found = real(one)
        if not looked:
            looked.append(True)
            Verdict.stopped("SIGTERM", complete=True).save(job.place, 1)
            time.sleep(0.5)
        return found

    monkeypatch.setattr(follow, "read_verdict", late)
    with pytest.raises(Requeue, match="Stopped by SIGTERM"):
        carry(job, "exit 75", "exit 75")


def test_a_stop_that_somebody_else_asked_for_is_no_loss(job: Job) -> None:
    """The first shell breaks at once; the agents stop, but by a signal to one of them that came before."""
    later(0.5, lambda: Verdict.stopped("SIGUSR1", complete=True).save(job.place))
    with pytest.raises(Requeue, match="Stopped by SIGUSR1"):
        carry(job, "exit 255", "sleep 1")


def test_whoever_wants_the_end_during_a_loss_gets_no_other_start(job: Job) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def end() -> None:
        await_handlers(before)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
        Verdict.stopped("the loss of host-0", complete=True).save(job.place)

    later(0.0, end)
    with pytest.raises(Requeue):
        carry(job, "exit 255", "sleep 3")


def test_what_the_first_agent_warns_of_is_said_once(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    """It prints where nobody looks."""
    (job.place / "link.json").write_text(json.dumps({"address": "8.8.8.8", "warning": "warning: 8.8.8.8 is public."}))
    later(0.5, lambda: Verdict("done").save(job.place))
    carry(job, "sleep 0.8")
    assert capfd.readouterr().out == "warning: 8.8.8.8 is public.\n"

"""The agent with small fake rank programs: no torch, no DeepSpeed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from configs.cluster import Timeouts
from configs.errors import LaunchError, Requeue
from launcher import agent, devices, ranks
from launcher.job import Job, rank_environment
from launcher.lock import agent_lock
from launcher.signals import Stopped

PROGRAM = Path(__file__).with_name("fake_rank.py")

Acts = Callable[..., Job]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Acts:
    def make(*acts: str, peer_grace: float = 5.0) -> Job:
        for rank, words in enumerate(acts):
            monkeypatch.setenv(f"FAKE_{rank}", words)
        command = [sys.executable, "-I", "-S", str(PROGRAM), str(tmp_path)]
        return Job(tmp_path, len(acts), command=command, timeouts=Timeouts(peer_grace=peer_grace))

    return make


def gone(pid: int, seconds: float = 10.0) -> bool:
    """True when ``pid`` ends within ``seconds`` (a zombie without a parent to reap it counts as ended)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def wait_for(*paths: Path) -> list[int]:
    deadline = time.monotonic() + 20
    while not all(p.exists() for p in paths):
        assert time.monotonic() < deadline, f"{paths} did not appear"
        time.sleep(0.01)
    return [int(p.read_text()) for p in paths]


def test_agents_that_do_not_come_are_named(job: Acts, tmp_path: Path) -> None:
    """After ``timeouts.join``, in which all must have started; on both sides."""
    alone = replace(job("exit:0"), nodes=2, hosts=["n1", "n2"], interface="lo", timeouts=Timeouts(join=0.4))
    alone.place.mkdir(parents=True)
    with pytest.raises(LaunchError, match=r"No agent has reported within 0 s \(supervision\.timeouts\.join\) from: n2"):
        agent.run(alone, 0)
    with pytest.raises(LaunchError, match="the agent of the first node has not appeared within 0 s"):
        agent.run(alone, 1)


def test_all_well(job: Acts, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    agent.run(job("print:hello;sleep:0.2;print:世界", "print:other"))
    assert capfd.readouterr().out == "hello\n世界\n"
    header, line = (tmp_path / "logs" / "rank-1.log").read_text().splitlines()
    assert header.endswith("rank 1 of 2 ===")
    assert line == "other"
    assert sorted(p.name for p in (tmp_path / "logs").iterdir()) == ["rank-0.log", "rank-1.log"]


def test_logs_are_appended_and_only_the_new_part_is_shown(
    job: Acts, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one = job("print:again")
    agent.run(one)
    agent.run(one)
    assert capfd.readouterr().out == "again\nagain\n"
    assert (tmp_path / "logs" / "rank-0.log").read_text().count("again") == 2


def test_the_failing_rank_is_named_with_its_stage_message_lines_and_status(job: Acts) -> None:
    with pytest.raises(LaunchError) as error:
        agent.run(job("sleep:60", "print:reading;print:last words;fail:65", peer_grace=0.1))
    text = str(error.value)
    assert "Rank 1 of 2 failed first, in stage 'student': message of rank 1" in text
    assert "rank-1.log" in text
    assert "    last words" in text
    assert error.value.exit_code == 65


def test_the_first_by_the_time_of_the_error_file(job: Acts) -> None:
    with pytest.raises(LaunchError, match="Rank 1 of 3 failed first") as error:
        agent.run(job("await:logs/rank-1.error.json;sleep:0.05;crash", "fail:74", "sleep:60", peer_grace=0.5))
    assert error.value.exit_code == 74


def test_a_killed_rank_comes_before_the_peers_that_complain_about_it(job: Acts) -> None:
    """A killed process is reported only after its sockets closed, so a quick peer may have complained already."""
    with pytest.raises(LaunchError, match=r"Rank 1 of 2 failed first: it was killed by SIGKILL.*memory") as error:
        agent.run(job("crash", "await:logs/rank-0.error.json;sleep:0.1;kill:SIGKILL"))
    assert error.value.exit_code == 69


def test_any_other_signal_is_named(job: Acts) -> None:
    with pytest.raises(LaunchError, match="Rank 0 of 1 failed first: it was killed by SIGABRT") as error:
        agent.run(job("kill:SIGABRT"))
    assert error.value.exit_code == 69


def test_an_exit_without_an_error_file(job: Acts) -> None:
    with pytest.raises(LaunchError, match="Rank 0 of 1 failed first: it ended with status 3") as error:
        agent.run(job("exit:3"))
    assert error.value.exit_code == 70  # none of ours: a defect


def test_an_error_file_is_a_failure_even_with_status_0(job: Acts) -> None:
    with pytest.raises(LaunchError, match="message of rank 0"):
        agent.run(job("fail:0"))


def test_error_files_of_an_earlier_launch_do_not_count(job: Acts, tmp_path: Path) -> None:
    with pytest.raises(LaunchError):
        agent.run(job("fail:65"))
    assert (tmp_path / "logs" / "rank-0.error.json").exists()
    agent.run(job("print:fine"))


def test_a_program_that_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"status 1(.|\n)*no-such-program cannot be started: No such file"):
        agent.run(Job(tmp_path, 1, command=["/no-such-program"]))


def test_peers_and_their_children_are_gone_after_a_failure(job: Acts, tmp_path: Path) -> None:
    stubborn = "ignore:SIGTERM;child;ready;sleep:300"
    with pytest.raises(LaunchError, match="Rank 1"):
        agent.run(job(stubborn, "await:ready-0;fail:65", peer_grace=0.1))
    pids = wait_for(tmp_path / "ready-0", tmp_path / "child-0.pid")
    assert all(gone(pid) for pid in pids)


def test_peers_get_time_to_write_their_own_message(job: Acts, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="Rank 1"):
        agent.run(job("await:logs/rank-1.error.json;sleep:0.3;print:closing;crash", "fail:65"))
    assert "closing" in (tmp_path / "logs" / "rank-0.log").read_text()


def test_children_of_a_rank_that_ended_well_are_gone(job: Acts, tmp_path: Path) -> None:
    agent.run(job("child"))
    assert gone(*wait_for(tmp_path / "child-0.pid"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_a_signal_to_the_launcher_ends_the_ranks(
    job: Acts, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    job("child;ready;sleep:300", "ready;sleep:300")
    with launcher(tmp_path, ranks=2) as process:
        pids = wait_for(tmp_path / "ready-0", tmp_path / "ready-1", tmp_path / "child-0.pid")
        process.send_signal(number)
        assert process.wait(20) == status
    assert all(gone(pid) for pid in pids)
    assert not list((tmp_path / "logs").glob(".rendezvous-*"))


def test_a_second_signal_does_not_wait_for_a_stubborn_rank(job: Acts, tmp_path: Path) -> None:
    job("ignore:SIGTERM;ignore:SIGUSR1;ready;sleep:300")
    with launcher(tmp_path, ranks=1) as process:
        pids = wait_for(tmp_path / "ready-0")
        process.send_signal(signal.SIGTERM)
        time.sleep(1.0)  # two that arrive together are one
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 75
    assert gone(*pids)


def test_sigkill_of_the_launcher_leaves_no_rank(job: Acts, tmp_path: Path) -> None:
    job("ignore:SIGTERM;ready;sleep:300", "ready;sleep:300")
    with launcher(tmp_path, ranks=2) as process:
        pids = wait_for(tmp_path / "ready-0", tmp_path / "ready-1")
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
    assert all(gone(pid) for pid in pids)


def launcher(folder: Path, ranks: int) -> subprocess.Popen[bytes]:
    """A launcher process of its own, over the fake ranks."""
    code = (
        "import sys; from pathlib import Path; from launcher import agent, cli; from launcher.job import Job;"
        f"job = Job(Path({str(folder)!r}), {ranks}, command=[sys.executable, '-I', '-S', {str(PROGRAM)!r}, "
        f"{str(folder)!r}]);"
        "sys.exit(cli.status_of(lambda: agent.run(job)))"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])


def test_what_a_rank_finds_in_its_environment(job: Acts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(devices, "cores", lambda: 5)
    monkeypatch.setattr(devices, "gpus", lambda visible=None: 0)
    agent.run(job("environment", "environment"))
    environments = [json.loads((tmp_path / f"environment-{rank}.json").read_text()) for rank in (0, 1)]
    for rank, environment in enumerate(environments):
        expected = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "OMP_NUM_THREADS": "2",
            "DS_ACCELERATOR": "cpu",
            "GLOO_SOCKET_IFNAME": "lo",
            "TOKENIZERS_PARALLELISM": "false",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        assert expected.items() <= environment.items()
    assert environments[0]["ZHENGLIU_RENDEZVOUS"] == environments[1]["ZHENGLIU_RENDEZVOUS"]
    assert environments[0]["ZHENGLIU_RENDEZVOUS"].startswith(f"file://{tmp_path.resolve()}/logs/.rendezvous-")


def test_the_users_own_settings_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda visible=None: 0)
    base = {"OMP_NUM_THREADS": "7", "GLOO_SOCKET_IFNAME": "eth9", "PYTHONPATH": "/theirs"}
    environment = rank_environment(Job(tmp_path, 2), 0, "file:///x", base)
    assert environment["OMP_NUM_THREADS"] == "7"
    assert environment["GLOO_SOCKET_IFNAME"] == "eth9"
    assert environment["PYTHONPATH"].split(os.pathsep)[1:] == ["/theirs"]


def test_on_gpus_the_accelerator_is_not_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda visible=None: 2)
    assert "DS_ACCELERATOR" not in rank_environment(Job(tmp_path, 2), 0, "file:///x", {})


def test_an_unwritable_run_folder(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file in the way")
    with pytest.raises(Exception, match="Cannot write"):
        agent.run(Job(tmp_path, 1, command=["true"]))


def test_last_lines_are_bounded(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("old\n" + "".join(f"{i} {'x' * 600}\n" for i in range(1000)))
    lines = ranks.last_lines(log, began_at=4)
    assert len(lines) == ranks.LAST_LINES
    assert lines[-1].startswith("999 ")
    assert all(len(line) <= 500 for line in lines)
    assert ranks.last_lines(log, began_at=log.stat().st_size) == []


def test_two_starts_have_no_ranks_at_work_in_one_folder(
    job: Acts, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The launcher of the first one was killed, and its agents have not noticed yet."""
    again = replace(job("ready"), timeouts=Timeouts(join=0.3))
    with (
        agent_lock(tmp_path, 0, lambda: None),
        pytest.raises(LaunchError, match=rf"an earlier start \(pid {os.getpid()} on .*still at work") as error,
    ):
        agent.run(again)
    assert error.value.exit_code == 69
    assert not (tmp_path / "ready-0").exists()
    assert capfd.readouterr().out.startswith("Waiting for the agents of an earlier start (pid ")
    agent.run(again)
    assert (tmp_path / "ready-0").exists()


def test_agents_wait_until_those_of_an_earlier_start_have_ended(job: Acts, tmp_path: Path) -> None:
    earlier = agent_lock(tmp_path, 0, lambda: None)
    earlier.__enter__()
    timer = threading.Timer(0.5, lambda: earlier.__exit__(None, None, None))
    began = time.monotonic()
    timer.start()
    agent.run(replace(job("ready"), timeouts=Timeouts(join=60)))
    assert time.monotonic() - began > 0.5


def test_a_signal_ends_that_wait(job: Acts, tmp_path: Path) -> None:
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    with (
        agent_lock(tmp_path, 0, lambda: None),
        pytest.raises(Requeue, match="Stopped by SIGTERM before the ranks had started"),
    ):
        agent.run(replace(job("ready"), timeouts=Timeouts(join=60)))


@pytest.mark.parametrize("followed", [True, False])
def test_the_launcher_of_one_node_elsewhere_sees_that_it_is_at_work(job: Acts, tmp_path: Path, followed: bool) -> None:
    one = replace(job("ready;await:go"), followed=followed)
    one.place.mkdir(parents=True)
    sign, seen = one.place / "link.json", list[bool]()

    def look() -> None:
        wait_for(tmp_path / "ready-0")
        seen.append(sign.exists())
        (tmp_path / "go").touch()

    thread = threading.Thread(target=look)
    thread.start()
    agent.run(one)
    thread.join()
    assert seen == [followed]
    assert not sign.exists()


def test_stopped_is_not_an_exception() -> None:
    assert not issubclass(Stopped, Exception)
    assert Stopped(signal.SIGTERM).exit_code == 143

"""What becomes of a job on two and three hosts when parts of it go. Real ssh and agents; ranks without torch.

Times are from the deed to the launcher's end; the launcher itself waits for remote shells up to ``LINGER_SECONDS``, so
that the agents' own ends are measured on their processes.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from launcher.follow import LINGER_SECONDS
from tests.clusters.conftest import (
    NODE_TIMEOUT,
    ROOT,
    Launched,
    await_starts,
    cluster_file,
    figure,
    launch,
    launch_light,
    until,
)
from tests.clusters.hosts import Network, variables

pytestmark = [pytest.mark.clusters, pytest.mark.timeout(200)]
RUNNERS = pytest.mark.parametrize("runner", ["ssh", "deepspeed"])


def verdict_seconds(made: Launched, began: float) -> float:
    """From ``began`` until a verdict stands in the run folder."""
    until(lambda: [*made.folder.glob("launch/*/verdict.json"), *made.folder.glob("launch/*/node-*.json")], "a verdict")
    return time.monotonic() - began


def ranks_gone(made: Launched, began: float, seconds: float) -> float:
    until(lambda: not made.pids(), "the ranks' ends", seconds)
    return time.monotonic() - began


@RUNNERS
def test_a_killed_rank_is_named_within_two_seconds(two: Network, runner: str) -> None:
    made = launch_light(two, runner)
    began = time.monotonic()
    os.kill(made.ranks[3], signal.SIGKILL)
    seconds = verdict_seconds(made, began)
    status, text = made.output()
    figure("rank killed", runner=runner, seconds=round(seconds, 2), orphans=len(two.left_behind()))
    assert status == 69, text
    assert "Rank 3 of 4 on host2 failed first, in stage 'student', step" in text
    assert "it was killed by SIGKILL" in text
    assert seconds < 2  # peer_grace is not waited for: nobody can have caused a kill
    assert two.left_behind() == []


def test_a_stopped_rank_is_named_as_the_one_that_hangs(two: Network) -> None:
    made = launch_light(two, timeouts={"step": 4.0})
    began = time.monotonic()
    os.kill(made.ranks[2], signal.SIGSTOP)
    seconds = verdict_seconds(made, began)
    status, text = made.output()
    figure("rank stopped", timeout=4.0, seconds=round(seconds, 2), orphans=len(two.left_behind()))
    assert status == 69, text
    assert "Rank 2 of 4 on host2 failed first, in stage 'student', step" in text
    assert "section" in text and "no sign of life" in text
    assert seconds < 4 + 2
    assert two.left_behind() == []


@pytest.mark.parametrize("section", ["teacher", "backward"])
def test_a_rank_that_hangs_alive_is_named_with_its_section(two: Network, section: str) -> None:
    made = launch_light(two, timeouts={"step": 4.0})
    began = time.monotonic()
    (made.folder / f"hang-1-{section}").touch()
    seconds = verdict_seconds(made, began)
    status, text = made.output()
    figure("rank hangs", section=section, timeout=4.0, seconds=round(seconds, 2), orphans=len(two.left_behind()))
    assert status == 69, text
    assert "Rank 1 of 4 on host1 failed first, in stage 'student', step" in text
    assert f"section {section}: it is stuck" in text
    assert "while it is alive" in text
    assert seconds < 4 + 2
    assert two.left_behind() == []


@pytest.mark.parametrize("lost", [1, 2])
def test_an_agent_that_is_killed_takes_its_ranks_with_it(two: Network, lost: int) -> None:
    made = launch_light(two)
    began = time.monotonic()
    os.kill(agent_of(two, lost), signal.SIGKILL)
    seconds = ranks_gone(made, began, NODE_TIMEOUT + 5)
    status, text = made.output()
    figure("agent killed", host=lost, seconds=round(seconds, 2), orphans=len(two.left_behind()))
    assert status == 69, text
    assert f"Node host{lost} failed first" in text
    assert seconds < 2 + 1  # KILL_GRACE, in which ranks may end by themselves
    assert two.left_behind() == []


@pytest.mark.parametrize("status", [64, 65, 70, 74])
def test_a_ranks_exit_status_is_the_commands_and_is_not_tried_again(two: Network, status: int) -> None:
    made = launch_light(two, restarts=3)
    (made.folder / "exit-2").write_text(str(status))
    found, text = made.output()
    assert found == status, text
    assert "Rank 2 of 4 on host2 failed first" in text
    assert "Starting again" not in text
    assert two.left_behind() == []


def test_a_second_signal_ends_at_once(two: Network) -> None:
    """While a rank cannot reach the end of its step."""
    made = launch_light(two)
    (made.folder / "hang-3-backward").touch()
    until((made.folder / "hangs-3-backward").exists, "a rank that hangs", 20)
    made.process.terminate()
    time.sleep(1.5)
    assert made.process.poll() is None
    began = time.monotonic()
    made.process.terminate()
    status, text = made.output()
    figure("second signal", seconds=round(time.monotonic() - began, 2), orphans=len(two.left_behind()))
    assert status == 75, text
    assert "Not all ranks reached the end of their step in time" in text
    assert two.left_behind() == []


def test_a_link_that_goes_down_ends_both_sides(two: Network) -> None:
    made = launch_light(two)
    began = time.monotonic()
    two[2].link("down")
    seconds = ranks_gone(made, began, NODE_TIMEOUT + 5)
    status, text = made.output()
    figure("link down", timeout=NODE_TIMEOUT, seconds=round(seconds, 2), orphans=len(two.left_behind()))
    assert status == 69, text
    assert "Node host2 failed first" in text
    assert NODE_TIMEOUT - 1 < seconds < NODE_TIMEOUT + 2
    assert two.left_behind() == []


@pytest.mark.parametrize("lost", [1, 2])
def test_a_host_that_is_gone_is_named(two: Network, lost: int) -> None:
    """Also when it is the first one, whose agent decides for all."""
    made = launch_light(two)
    began = time.monotonic()
    two[lost].kill()
    seconds = ranks_gone(made, began, NODE_TIMEOUT + 5)
    status, text = made.output()
    figure("host killed", host=lost, timeout=NODE_TIMEOUT, seconds=round(seconds, 2), orphans=len(two.left_behind()))
    assert status == 69, text
    assert f"Node host{lost} failed first" in text
    assert seconds < NODE_TIMEOUT + 2
    assert two.left_behind() == []


@RUNNERS
def test_a_run_goes_on_without_a_host_that_is_gone(three: Network, runner: str) -> None:
    made = launch_light(three, runner, restarts=1, min_nodes=2)
    three[3].kill()
    await_starts(made, 6 + 4)
    (made.folder / "finish").touch()
    status, text = made.output()
    assert status == 0, text
    assert "Starting again (1 of 1), with 2 node(s)." in text
    starts = (made.folder / "starts").read_text().splitlines()
    assert sorted(line.split(" from")[0] for line in starts[6:]) == [f"{rank} of 4" for rank in range(4)]
    assert three.left_behind() == []


@RUNNERS
def test_a_launcher_that_is_killed_leaves_nothing_behind(two: Network, runner: str) -> None:
    made = launch_light(two, runner)
    began = time.monotonic()
    made.process.kill()
    seconds = ranks_gone(made, began, NODE_TIMEOUT + 5)
    made.process.wait()
    figure(
        "launcher killed",
        runner=runner,
        timeout=NODE_TIMEOUT,
        seconds=round(seconds, 2),
        orphans=len(two.left_behind()),
    )
    assert two.left_behind() == []
    verdict = json.loads(next(made.folder.glob("launch/*/verdict.json")).read_text())
    assert (verdict["kind"], verdict["exit_code"]) == ("stopped", 75)
    assert "the loss of the launcher" in verdict["message"]
    assert len(kept(made)) == 4


def test_a_runner_that_is_killed_is_a_failure_and_no_success(two: Network) -> None:
    """DeepSpeed's own ends with status 0 when its remote jobs have died."""
    made = launch_light(two, "deepspeed")
    runner = next(pid for pid in children(made.process.pid) if "deepspeed.launcher.runner" in command(pid))
    os.kill(runner, signal.SIGKILL)
    status, text = made.output()
    assert status == 69, text
    assert "DeepSpeed's runner" in text
    assert len(kept(made)) == 4
    assert two.left_behind() == []


def test_deepspeeds_runner_carries_no_variables(two: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would read ``.deepspeed_env``, take PYTHON* and UCX*, and run both through the hosts' shells."""
    home, touched = tmp_path / "home", tmp_path / "touched"
    home.mkdir()
    (home / ".deepspeed_env").write_text(f"CANARY=$(touch {touched})\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("UCX_CANARY", f"$(touch {touched})")
    made = launch_light(two, "deepspeed")
    seen = [variables(pid) for pid in made.ranks.values()]
    (made.folder / "finish").touch()
    status, text = made.output()
    assert status == 0, text
    assert len(seen) == 4
    assert not [name for facts in seen for name in facts if b"CANARY" in name or name == b"CUDA_VISIBLE_DEVICES"]
    assert not touched.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("whom", ["launcher", "first agent", "second agent"])
def test_being_asked_to_stop(two: Network, whom: str, number: signal.Signals) -> None:
    made = launch_light(two)
    agents = {"first agent": 1, "second agent": 2}
    pid = made.process.pid if whom == "launcher" else agent_of(two, agents[whom])
    began = time.monotonic()
    os.kill(pid, number)
    status, text = made.output()
    figure("asked to stop", whom=whom, signal=number.name, seconds=round(time.monotonic() - began, 2))
    assert status == 75, text
    assert f"Stopped by {number.name}" in text
    assert "The state of the last step is in a checkpoint." in text
    assert len(kept(made)) == 4
    assert two.left_behind() == []


def test_a_host_without_the_run_folder_is_named(two: Network) -> None:
    """Before anything starts. On host2, another file system lies over the folder."""
    folder = two.folder / "run"
    folder.mkdir()
    mounted = two.ssh("host2", f"mount -t tmpfs none {folder}")
    assert mounted.returncode == 0, mounted.stderr
    program = str(ROOT / "tests" / "clusters" / "light.py")
    made = launch(two, folder, program, str(folder), str(cluster_file(two, "ssh")))
    status, text = made.output()
    assert status == 69, text
    assert f"The run folder {folder} is not shared by all hosts." in text
    assert "    host2: cat: " in text
    assert "    host1: " not in text
    assert list(folder.iterdir()) == []


def test_all_agents_killed_at_once_are_noticed_long_before_the_limit_of_a_stop(two: Network) -> None:
    """`timeouts.stop` is 60 s here; the first agent is silent for longer than `timeouts.node`."""
    made = launch_light(two)
    began = time.monotonic()
    for pid in [agent_of(two, number) for number in (1, 2)]:
        os.kill(pid, signal.SIGKILL)
    status, text = made.output()
    seconds = time.monotonic() - began
    figure("all agents killed", timeout=NODE_TIMEOUT, seconds=round(seconds, 2), orphans=len(two.left_behind()))
    assert status == 69, text
    assert "and its agent without a word" in text
    assert seconds < NODE_TIMEOUT + LINGER_SECONDS + 3
    assert two.left_behind() == []


def agent_of(net: Network, number: int) -> int:
    return next(pid for pid in net[number].agents() if "light_rank" not in command(pid))


def kept(made: Launched) -> dict[str, int]:
    """Steps that light ranks have kept."""
    return {path.name: int(path.read_text()) for path in made.folder.glob("state-*")}


def children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")

"""Whole small runs on two hosts with two ranks each, through each way of starting them; disturbed, and continued.

They all are the same run, so that all end in the same bits.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.agent import KILL_GRACE
from tests.clusters import hosts
from tests.clusters.conftest import ROOT, Launched, cluster_file, figure, launch, until
from tests.clusters.hosts import Network
from tests.launcher.conftest import write_run

pytestmark = [pytest.mark.clusters, pytest.mark.timeout(1500)]
SILENCE = 10.0
"""timeouts.node; more than among light ranks, because these ones take all cores."""
SETTINGS = ["stages.0.training.steps=60", "stages.0.training.checkpoint_every=10"]


@pytest.fixture(scope="module")
def net(namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with hosts.network(tmp_path_factory.mktemp("net"), 2) as made:
        yield made


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs"))


def start(net: Network, run_file: Path, name: str, runner: str) -> Launched:
    folder = run_file.parent / "runs" / name
    folder.parent.mkdir(exist_ok=True)
    return launch(
        net, folder, *words(run_file, name), "--cluster", str(cluster_file(net, runner, timeouts={"node": SILENCE}))
    )


def words(run_file: Path, name: str) -> list[str]:
    """Of ``distill run``; all runs share one prepared corpus."""
    shared = f"data.folder={run_file.parent / 'data'}"
    return ["-m", "launcher.cli", "run", str(run_file), f"name={name}", shared, *SETTINGS]


def weights(folder: Path) -> dict[str, str]:
    """SHA-256 of each stage's model."""
    names = [f"stages/{stage}/model/model.safetensors" for stage in ("01-teacher", "02-student")]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


@pytest.fixture(scope="module")
def whole(net: Network, run_file: Path) -> Path:
    """The folder of an undisturbed run, by DeepSpeed's runner."""
    began = time.monotonic()
    made = start(net, run_file, "whole", "deepspeed")
    status, text = made.output(1000)
    assert status == 0, text
    figure("whole run", runner="deepspeed", seconds=round(time.monotonic() - began), orphans=len(net.left_behind()))
    return made.folder


def test_a_whole_run_by_deepspeeds_runner(net: Network, whole: Path, run_file: Path) -> None:
    """From raw text: the hosts have prepared it, too."""
    assert (whole / "report.html").is_file()
    prepared = run_file.parent / "data" / "execution" / "shards" / "logs"
    assert sorted(path.name for path in prepared.iterdir()) == ["rank-0.log", "rank-1.log"]
    for rank in range(4):
        assert f"rank {rank} of 4 ===" in (whole / "logs" / f"rank-{rank}.log").read_text()
    assert net.left_behind() == []


def test_a_link_taken_down_then_a_rank_asked_to_stop_then_the_end(net: Network, run_file: Path, whole: Path) -> None:
    """By ssh; each start goes on from the last one's checkpoint, to the bits of the undisturbed run."""
    made = start(net, run_file, "disturbed", "ssh")
    kept = made.folder / "stages" / "01-teacher" / "checkpoints"
    await_checkpoint(made, kept)
    began = time.monotonic()
    net[2].link("down")
    until(lambda: not made.pids(), "the ranks' ends", SILENCE + 10)
    seconds = time.monotonic() - began
    status, text = made.output()
    net[2].link("up")
    net.await_ssh(net[2])
    assert status == 69, text
    assert "Node host2 failed first" in text or "on host" in text
    assert seconds < SILENCE + 2 + KILL_GRACE
    assert net.left_behind() == []

    made = start(net, run_file, "disturbed", "ssh")
    before = {path.name for path in kept.glob("step-*")}
    await_checkpoint(made, kept, before)
    os.kill(made.pids()[3], signal.SIGTERM)
    status, text = made.output(300)
    assert status == 75, text
    assert "The state of the last step is in a checkpoint." in text
    stopped = sorted(path.name for path in kept.glob("step-*"))

    made = start(net, run_file, "disturbed", "ssh")
    status, text = made.output(1000)
    assert status == 0, text
    assert "continuing after step" in text
    figure("link down, SIGTERM to a rank, resumed", ended_after=round(seconds, 2), stopped_at=stopped[-1])
    assert weights(made.folder) == weights(whole)
    assert net.left_behind() == []


def await_checkpoint(made: Launched, folder: Path, before: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    def there() -> bool:
        if made.process.poll() is not None:
            pytest.fail(f"the launcher ended: {made.output()}")
        return bool({path.name for path in folder.glob("step-*")} - before)

    until(there, "a checkpoint", 600)


def test_torchrun_with_a_restart(net: Network, run_file: Path, whole: Path) -> None:
    """torchrun has started the ranks, and starts them again when one is killed."""
    folder = run_file.parent / "runs" / "torchrun"
    processes = [torchrun(net, number, words(run_file, "torchrun")) for number in (1, 2)]
    kept = folder / "stages" / "01-teacher" / "checkpoints"
    until(lambda: [*kept.glob("step-*")] or processes[0].poll() is not None, "a checkpoint", 600)
    os.kill(next(pid for pid in net[2].pids() if is_rank(pid, b"3")), signal.SIGKILL)
    texts = [process.communicate(timeout=900)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    assert "continuing after step" in texts[0]
    assert weights(folder) == weights(whole)


def torchrun(net: Network, number: int, command: list[str]) -> subprocess.Popen[str]:
    """As docs/clusters.md says."""
    block = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8").split("## torchrun")[1].split("```bash")[1]
    script = block.split("```")[0].replace("run RUN.yaml", shlex.join(command[2:]))
    bins = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {"HEAD": net[1].address, "OWN": net[number].address, "IS_HEAD": str(int(number == 1))}
    return subprocess.Popen(
        net[number].inside("bash", "-c", script),
        env=os.environ | variables | {"PATH": bins, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def is_rank(pid: int, number: bytes) -> bool:
    facts = hosts.variables(pid)
    return facts.get(b"RANK") == number and b"launcher.cli" in hosts.words(pid)

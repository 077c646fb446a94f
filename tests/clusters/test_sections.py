"""R12 with real ranks: killed and stopped while they load, ask the teacher, go backward, and save.

One launcher, started once: after each death it starts the ranks again, from the newest checkpoint. A rank is first
stopped, and looked at, so that it is surely where the test wants it.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from launcher.launch import prepare_data
from launcher.pulses import FACTS, HEAD, SIZE
from launcher.runfile import open_prep
from tests.clusters.conftest import Launched, cluster_file, figure, launch, until
from tests.clusters.hosts import Host, Network, variables
from tests.launcher.conftest import write_run

pytestmark = [pytest.mark.clusters, pytest.mark.timeout(900)]
LOAD, STEP, GRACE = 60.0, 12.0, 1.0
DEEDS = [
    *((section, signal.SIGKILL) for section in ("load", "teacher", "backward", "checkpoint")),
    *((section, signal.SIGSTOP) for section in ("teacher", "backward", "checkpoint", "load")),
]
ENDLESS = ["stages.1.training.steps=1000000", "stages.1.training.checkpoint_every=5", "launch.processes=1"]


class Place:
    """Where a rank is, as its agent reads it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        with open(os.fsdecode(variables(pid)[b"ZHENGLIU_PULSE"]), "r+b") as file:
            self._map = mmap.mmap(file.fileno(), SIZE, access=mmap.ACCESS_READ)

    def read(self) -> tuple[str, str, int]:
        """(stage, section, step)."""
        _, step, section, stage = FACTS.unpack_from(self._map, HEAD.size)
        texts = [text.rstrip(b"\0").decode() for text in (stage, section)]
        return texts[0], texts[1], step

    def stop_in(self, section: str) -> int:
        """Stop the rank within ``section`` of the student; the step it is in."""
        deadline = time.monotonic() + 120
        while True:
            while self.read()[:2] != ("student", section):
                assert time.monotonic() < deadline, f"the rank is in {self.read()}"
                time.sleep(0.0002)
            os.kill(self.pid, signal.SIGSTOP)
            while psutil.Process(self.pid).status() != psutil.STATUS_STOPPED:
                time.sleep(0.001)
            stage, found, step = self.read()
            if (stage, found) == ("student", section):
                return step
            os.kill(self.pid, signal.SIGCONT)


def second_rank(made: Launched, before: set[int]) -> Place:
    """The rank on host2, of a start after those of ``before``."""
    found: list[int] = []

    def begun() -> bool:
        if made.process.poll() is not None:
            pytest.fail(f"the launcher ended: {made.output()}")
        found[:] = [pid for pid in made.net[2].ranks().values() if pid not in before]
        return bool(found)

    until(begun, "a rank on host2", 120)
    before.update(found)
    return Place(found[0])


@pytest.fixture
def running(two: Network, tmp_path: Path) -> Iterator[Launched]:
    file, folder = write_run(tmp_path), tmp_path / "runs" / "small"
    config = open_prep(str(file))
    prepare_data(config.data, config.data_folder)  # else the first ranks on the hosts are those that prepare
    two.hostfile.write_text("".join(f"{host.name} slots=1\n" for host in two.hosts))
    timeouts = {"load": LOAD, "step": STEP, "checkpoint": STEP, "peer_grace": GRACE, "node": 20}
    cluster = cluster_file(two, "ssh", restarts=len(DEEDS) - 1, timeouts=timeouts)
    made = launch(two, folder, "-m", "launcher.cli", "run", str(file), *ENDLESS, "--cluster", str(cluster))
    yield made
    made.process.kill()
    made.process.wait()


def test_a_rank_in_each_section(running: Launched) -> None:
    seen: set[int] = set()
    expected = []
    for number, (section, deed) in enumerate(DEEDS):
        rank = second_rank(running, seen)
        step = rank.stop_in(section)
        if section == "backward":  # the ranks have met: no port of theirs, or of agents, is open to other networks
            assert [listening(host) for host in running.net.hosts] == [{host.address} for host in running.net.hosts]
        began = time.monotonic()
        if deed == signal.SIGKILL:
            os.kill(rank.pid, deed)
        until(lambda: len(verdicts(running)) > number, "a verdict", LOAD + 20)  # noqa: B023
        seconds = time.monotonic() - began
        limit = {"load": LOAD}.get(section, STEP) if deed == signal.SIGSTOP else GRACE
        figure("section", section=section, signal=deed.name, limit=limit, seconds=round(seconds, 2))
        assert seconds < limit + 2
        where = f"stage 'student', {'' if step < 0 else f'step {step}, '}section {section}"
        what = "it was killed by SIGKILL" if deed == signal.SIGKILL else "it is stuck; it has given no sign of life"
        expected.append(f"Rank 1 of 2 on host2 failed first, in {where}: {what}")
        assert verdicts(running)[-1]["exit_code"] == 69
        assert expected[-1] in verdicts(running)[-1]["message"]
        until(lambda: not psutil.pid_exists(rank.pid), "the rank's end", 10)  # noqa: B023
    status, text = running.output()
    assert status == 69, text
    assert [line for line in expected if line not in text] == []
    figure("sections", deaths=len(DEEDS), named=len(expected), orphans=len(running.net.left_behind()))
    assert running.net.left_behind() == []


def verdicts(made: Launched) -> list[dict[str, object]]:
    """Of all starts, in their order; of one that is being written, none."""
    found = []
    for path in sorted(made.folder.glob("launch/*/verdict.json")):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(path.read_text()))
    return found


def listening(host: Host) -> set[str]:
    """Addresses of all listening sockets of a host: of ranks (their store, gloo), agents, and sshd."""
    said = subprocess.run(host.inside("ss", "-Hltn"), capture_output=True, text=True, check=True).stdout
    return {line.split()[3].rpartition(":")[0] for line in said.splitlines()}

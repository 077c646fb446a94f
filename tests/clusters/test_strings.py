"""R22 over real ssh and real pdsh; Slurm's and mpirun's share stands in their own files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clusters.conftest import figure
from tests.clusters.hosts import Network
from tests.launcher.strings import COUNT, make

pytestmark = [pytest.mark.clusters, pytest.mark.timeout(200)]
FOLDER = "运行 $(touch zhengliu-trap) `id` 'a' \"b\"; %h\\ *\ntouch zhengliu-trap\n"
"""A run folder's name that no shell may see; hosts run their commands in / or in root's home."""


@pytest.mark.parametrize("runner", ["ssh", "deepspeed"])
def test_through_real_ssh_and_pdsh(two: Network, runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    facts: dict[str, object] = {
        "kind": "hosts",
        "hostfile": str(two.hostfile),
        "ssh_config": str(two.ssh_config),
        "runner": runner,
    }
    made = make(two.folder, FOLDER, monkeypatch, facts)
    made.backend.check(made.job)
    made.backend.run(made.job)
    made.check()
    for folder in (Path("/"), Path("/root"), Path()):
        assert not (folder / "zhengliu-trap").exists()
    figure("strings", runner=runner, count=COUNT, changed=0, side_effects=0, orphans=len(two.left_behind()))
    assert two.left_behind() == []

"""``distill doctor`` over real hosts: namespaces with addresses, names and sshd of their own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.clusters.conftest import cluster_file, figure, launch
from tests.clusters.hosts import Network

pytestmark = [pytest.mark.clusters, pytest.mark.timeout(300)]


def table(net: Network, tmp_path: Path) -> tuple[int, str]:
    config = cluster_file(net, "ssh")
    words = ["doctor", f"output={tmp_path / 'shared'}", "--cluster", str(config)]
    made = launch(net, net.folder / "doctor", "-P", "-m", "launcher.cli", words[0], "quickstart", *words[1:])
    return made.output(240)


def test_hosts_that_are_fit_and_hosts_that_are_not(two: Network, tmp_path: Path) -> None:
    status, text = table(two, tmp_path)
    assert status == 0, text
    found = re.search(r"([\d.]+) GB/s among 2 hosts by (gloo|nccl)", text)
    assert found is not None, text
    figure("doctor's all-reduce", gigabytes_per_second=float(found[1]), backend=found[2])
    assert two.left_behind() == []
    two[2].link("down")
    status, text = table(two, tmp_path)
    assert status == 1, text
    assert "ssh host2" in text
    assert "1 of 2 hosts answer" in text
    assert "These hosts are not fit for a run." in text

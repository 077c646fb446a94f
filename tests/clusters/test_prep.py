"""Preparation on two hosts by ssh, by DeepSpeed's runner, and by a real mpirun: the bytes of this machine's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.corpus import Corpus
from launcher.launch import prepare_data
from launcher.runfile import open_prep
from tests.clusters.conftest import NODE_TIMEOUT, ROOT, cluster_file, figure, launch, until
from tests.clusters.hosts import Network
from tests.clusters.hosts import words as words_of
from tests.clusters.test_mpi import program
from tests.data_prep.test_cluster import check_same
from tests.launcher.conftest import SENTENCES, write_run

pytestmark = [pytest.mark.clusters, pytest.mark.timeout(300)]
SETTINGS = ["data.workers=2"]
TWICE = "data.dedup={exact: true}"
"""Two phases, the survey and the shards."""
MPI = "kind: mpi\nlauncher: {kind}\nmpirun: {program}\nnodes: 2\nprocesses: 2\ninterface: lo\n"


def write_several(folder: Path, megabytes: float = 0.02) -> Path:
    """A run file over six texts, so that each host has some."""
    folder.mkdir(exist_ok=True)
    path = write_run(folder)
    texts = folder / "texts"
    texts.mkdir()
    for number in range(6):
        count = int(megabytes * 1e6 / 120)
        lines = [f"{SENTENCES[i % 4]}第{number}卷第{i}回，{SENTENCES[(i * 7 + 1) % 4]}" for i in range(count)]
        (texts / f"{number}.txt").write_text("\n\n".join(lines), encoding="utf-8")
    path.write_text(path.read_text(encoding="utf-8").replace(str(folder / "corpus.txt"), str(texts)), encoding="utf-8")
    return path


def prep_words(run_file: Path, folder: Path, *more: str) -> list[str]:
    return ["-m", "launcher.cli", "prep", str(run_file), f"data.folder={folder}", *SETTINGS, *more]


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_several(tmp_path_factory.mktemp("prep") / "a")


@pytest.fixture(scope="module")
def here(run_file: Path) -> Corpus:
    """Prepared by this machine's processes."""
    folder = run_file.parent / "here"
    config = open_prep(str(run_file), [f"data.folder={folder}", *SETTINGS, TWICE])
    prepare_data(config.data, folder)
    return Corpus.open(folder)


@pytest.mark.parametrize("runner", ["ssh", "deepspeed"])
def test_two_hosts_make_the_same_bytes(two: Network, runner: str, run_file: Path, here: Corpus) -> None:
    folder = two.folder / "data"
    began = time.monotonic()
    words = prep_words(run_file, folder, TWICE, "--cluster", str(cluster_file(two, runner)))
    made = launch(two, two.folder / "run", *words)
    status, text = made.output(200)
    assert status == 0, text
    figure("preparation on two hosts", runner=runner, seconds=round(time.monotonic() - began, 1))
    check_same(here, Corpus.open(folder))
    for rank in range(2):
        assert f"rank {rank} of 2 ===" in (folder / "execution" / "shards" / "logs" / f"rank-{rank}.log").read_text()
    assert len({path.parent.parent for path in folder.glob("execution/*/launch/*")}) == 2, "the survey, the shards"
    assert preparing(two) == [] == two.left_behind()


def test_a_host_that_is_lost_is_left_out_of_the_next_start(two: Network, tmp_path: Path) -> None:
    """A larger corpus, so that there is time to lose it."""
    run_file, folder = write_several(tmp_path / "large", megabytes=0.5), two.folder / "data"
    file = cluster_file(two, "ssh", restarts=1, min_nodes=1)
    made = launch(two, two.folder / "run", *prep_words(run_file, folder, "--cluster", str(file)))
    until(lambda: two[2].ranks() or made.process.poll() is not None, "a rank on host2")
    two[2].kill()
    began = time.monotonic()
    status, text = made.output(200)
    assert status == 0, text
    figure("a host lost in the preparation", timeout=NODE_TIMEOUT, seconds=round(time.monotonic() - began, 1))
    assert "Node host2 failed first" in text
    assert "Starting again (1 of 1), with 1 node(s)." in text
    local = tmp_path / "here"
    config = open_prep(str(run_file), [f"data.folder={local}", *SETTINGS])
    prepare_data(config.data, local)
    check_same(Corpus.open(local), Corpus.open(folder))
    assert preparing(two) == [] == two.left_behind()


def test_a_signal_ends_it_with_75_and_leaves_nobody(two: Network, tmp_path: Path) -> None:
    run_file, folder = write_several(tmp_path / "large", megabytes=0.5), two.folder / "data"
    file = cluster_file(two, "ssh")
    made = launch(two, two.folder / "run", *prep_words(run_file, folder, "--cluster", str(file)))
    until(lambda: (two[1].ranks() and two[2].ranks()) or made.process.poll() is not None, "ranks on both hosts")
    began = time.monotonic()
    made.process.send_signal(signal.SIGTERM)
    status, text = made.output(60)
    figure("preparation asked to stop", seconds=round(time.monotonic() - began, 1))
    assert status == 75, text
    assert "Stopped by SIGTERM, during the preparation." in text
    assert preparing(two) == [] == two.left_behind()


def preparing(net: Network) -> list[str]:
    """Processes of a preparation that still run on any host."""
    found = [(host, pid) for host in net.hosts for pid in host.pids()]
    return [f"{host.name}: {pid}" for host, pid in found if b"launcher.prep_rank" in words_of(pid)]


@pytest.mark.parametrize("kind", ["openmpi", "mpich"])
def test_mpirun_makes_the_same_bytes(kind: str, run_file: Path, here: Corpus, tmp_path: Path) -> None:
    cluster, folder = tmp_path / "cluster.yaml", tmp_path / "data"
    cluster.write_text(MPI.format(kind=kind, program=program(kind)))
    command = [sys.executable, *prep_words(run_file, folder, TWICE, "--cluster", str(cluster))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "data: shards on 2 node(s)" in done.stdout
    check_same(here, Corpus.open(folder))

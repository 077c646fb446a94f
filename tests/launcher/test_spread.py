"""Preparation by agents: two nodes on this machine, each started as ssh would do it. Real ones: ``tests/clusters``."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from configs.cluster import ClusterConfig, HostsCluster, KubernetesCluster, MpiCluster, load_cluster
from configs.errors import ConfigError, LaunchError, Requeue
from data_prep import pipeline
from data_prep.config import DataConfig, DedupConfig
from data_prep.corpus import Corpus
from launcher import launch, spread
from launcher.backends import BACKENDS, Backend
from launcher.follow import Beat, Shell, follow
from launcher.job import ROOT, Job
from launcher.node import encoded
from tests.data_prep.conftest import sample_config
from tests.data_prep.test_cluster import check_same, texts
from tests.launcher.test_kubernetes import FACTS, GOLDEN

TWO = ClusterConfig(kind="two", interface="lo")


class Two(Backend):
    """Two nodes on this machine."""

    def nodes(self) -> list[str]:
        return ["n1", "n2"]

    def preparing(self) -> Backend:
        return self

    def describe(self, job: Job) -> str:
        return job.shown()

    def run(self, job: Job) -> None:
        path = job.save()
        agent = [sys.executable, "-P", str(ROOT / "launcher" / "node.py"), encoded(path), "--node"]
        with Beat(job.place).beating() as beat:
            shells = [Shell.start(host, [*agent, str(node)], os.environ) for node, host in enumerate(job.hosts)]
            follow(job, shells, beat)


@pytest.fixture(autouse=True)
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS._entries, "two", Two)


def begun(config: DataConfig, folder: Path) -> pipeline.Job:
    with pipeline.locked(folder):
        return pipeline.begin(config, folder)


def on_nodes(config: DataConfig, folder: Path) -> None:
    """The last phase, by both."""
    carry_out = spread.on_nodes(config, folder, TWO)
    assert carry_out is not None
    carry_out(begun(config, folder), pipeline.phases(config)[-1])


def ranks_of(folder: Path) -> Iterator[psutil.Process]:
    """The ranks that prepare this folder."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "launcher.prep_rank" in words and str(folder) in words and "guard.py" not in " ".join(words):
            yield process


# ---------------------------------------------------------------- carried out


def test_two_nodes_make_the_same_bytes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also with the survey of duplicates, which is a phase of its own; paths of sources are relative to this folder."""
    config = texts(tmp_path).model_copy(update={"dedup": DedupConfig(exact=True), "workers": 2})
    relative = [source.model_copy(update={"path": Path(source.path).name}) for source in config.sources]
    config = config.model_copy(update={"sources": relative})
    with contextlib.chdir(tmp_path):
        here = pipeline.prepare(config.model_copy(update={"workers": 1}), tmp_path / "here")
        assert launch.prepare_data(config, tmp_path / "there", TWO) == []
    check_same(here, Corpus.open(tmp_path / "there"))
    said = capfd.readouterr().out
    for phase in ("survey", "shards"):
        place = tmp_path / "there" / "execution" / phase
        assert f"data: {phase} on 2 node(s); logs: {place / 'logs'}" in said
        assert sorted(path.name for path in (place / "logs").iterdir()) == ["rank-0.log", "rank-1.log"]
        (verdict,) = place.glob("launch/*/verdict.json")
        assert json.loads(verdict.read_text())["kind"] == "done"
    launch.prepare_data(config, tmp_path / "there", TWO)
    assert "execution" not in capfd.readouterr().out, "what is there is not made again"


def test_bad_data_is_65_with_the_rank_the_host_and_the_file(tmp_path: Path) -> None:
    config, folder = texts(tmp_path), tmp_path / "there"
    carry_out = spread.on_nodes(config, folder, TWO)
    assert carry_out is not None
    job = begun(config, folder)
    (tmp_path / "2.txt").unlink()
    with pytest.raises(LaunchError, match=r"Rank \d of 2 on n\d failed first, in stage 'shards'.*2\.txt") as error:
        carry_out(job, pipeline.phases(config)[0])
    assert error.value.exit_code == 65


def test_a_disk_that_cannot_be_written_is_74(tmp_path: Path) -> None:
    config, folder = texts(tmp_path), tmp_path / "there"
    job = begun(config, folder)
    job.shard(job.tasks[0]).write_text("in the way")
    with pytest.raises(LaunchError, match=r"on n\d failed first") as error:
        on_nodes(config, folder)
    assert error.value.exit_code == 74


def test_a_signal_keeps_what_is_finished(tmp_path: Path) -> None:
    config, folder = texts(tmp_path), tmp_path / "there"

    def stop() -> None:
        deadline = time.monotonic() + 60
        while not (folder / "execution/shards/logs/rank-1.log").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Requeue, match=r"Stopped by SIGTERM, during the preparation\. Finished blocks are kept"):
        launch.prepare_data(config, folder, TWO)
    thread.join()
    assert not (folder / "manifest.json").exists()
    launch.prepare_data(config, folder, TWO)
    check_same(pipeline.prepare(config, tmp_path / "here"), Corpus.open(folder))


def test_a_lost_rank_is_started_again(tmp_path: Path) -> None:
    """As of a run: `supervision.restarts`. The node that is killed at first finds its blocks to be done still."""
    config, folder = texts(tmp_path), tmp_path / "there"
    cluster = ClusterConfig.model_validate(
        {"kind": "two", "interface": "lo", "supervision": {"restarts": 1, "timeouts": {"peer_grace": 0}}}
    )

    def kill() -> None:
        while True:
            for process in ranks_of(folder):
                process.kill()
                return
            time.sleep(0.01)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    launch.prepare_data(config, folder, cluster)
    thread.join()
    assert len(list(folder.glob("execution/shards/launch/*/verdict.json"))) == 2
    check_same(pipeline.prepare(config, tmp_path / "here"), Corpus.open(folder))


def test_a_stopped_rank_is_found_soon(tmp_path: Path) -> None:
    """By its node's agent, after `timeouts.node`, and not only after `timeouts.prepare` (ten hours)."""
    config, folder = texts(tmp_path), tmp_path / "there"
    supervision = {"timeouts": {"peer_grace": 0, "node": 4}}
    cluster = ClusterConfig.model_validate({"kind": "two", "interface": "lo", "supervision": supervision})
    stopped: list[tuple[psutil.Process, float]] = []

    def stop() -> None:
        while not stopped:
            for process in ranks_of(folder):
                process.suspend()
                stopped.append((process, time.monotonic()))
                return
            time.sleep(0.01)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    words = r"Rank \d of 2 on n\d failed first.*somebody has stopped it \(SIGSTOP\), \d+ s ago"
    with pytest.raises(LaunchError, match=words) as error:
        launch.prepare_data(config, folder, cluster)
    ((process, since),) = stopped
    assert time.monotonic() - since < 4 + 20
    assert error.value.exit_code == 69 and not process.is_running()


def test_blocks_that_are_seen_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict is not enough: the shards must be in this folder."""
    config, folder = texts(tmp_path), tmp_path / "there"
    monkeypatch.setattr(Two, "run", lambda self, job: None)
    with pytest.raises(LaunchError, match=r"3 of 3 blocks are not in .*Do all nodes see the same folder"):
        on_nodes(config, folder)


# ---------------------------------------------------------------- what would be started


def test_a_phase_is_a_job_of_one_rank_a_node(tmp_path: Path) -> None:
    config = sample_config(workers=None)
    backend = spread.backend_of(HostsCluster(kind="hosts", hosts=["a", "b"], runner="ssh", processes=8))
    assert backend is not None
    job = spread.job_of(backend, config, tmp_path / "data", "survey")
    assert (job.ranks, job.nodes, job.hosts, job.followed) == (1, 2, ["a", "b"], True)
    assert job.folder == tmp_path / "data" / "execution" / "survey"
    words = ["launcher.prep_rank", str(tmp_path / "data"), "survey", "--where", os.getcwd()]
    assert job.argv() == [sys.executable, "-P", "-m", *words]
    assert Job.open(job.save()).argv() == job.argv()
    four = spread.job_of(backend, sample_config(workers=4), tmp_path / "data", "survey")
    assert four.argv()[-2:] == ["--workers", "4"]


@pytest.mark.parametrize("cluster", [MpiCluster(kind="mpi", hosts=["a", "b"]), HostsCluster(kind="hosts", hosts=["a"])])
def test_dry_run_shows_the_preparation_of_a_run(cluster: ClusterConfig, tmp_path: Path) -> None:
    config = sample_config(dedup=DedupConfig(exact=True))
    said = launch.describe_prep(config, tmp_path / "data", cluster)
    assert re.match(rf"# Preparation: \d+ blocks into {tmp_path}/data\n", said)
    for phase in ("survey", "shards"):
        assert f"# Phase {phase}\n# {tmp_path}/data/execution/{phase}/launch/" in said
        assert f'"launcher.prep_rank",\n  "{tmp_path}/data",\n  "{phase}",' in said
    assert said.count("node.py") >= 2
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("kind", ["job", "pytorchjob", "volcano"])
def test_pods_that_prepare_have_no_gpus(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden file holds the kind `job`; ``UPDATE_GOLDEN=1 pytest ...`` writes it anew."""
    monkeypatch.setattr("launcher.backends.base.mark", lambda: "20300102-030405-abcdef")
    monkeypatch.setattr("launcher.backends.base.passed_on", lambda *_: {})
    monkeypatch.setattr(os, "getcwd", lambda: "/home/me")
    cluster = KubernetesCluster(**{**FACTS, "job": kind})
    said = launch.describe_prep(sample_config(), Path("/runs/zh/data"), cluster).split("\n\n", 1)[1] + "\n"
    if kind == "job":
        path = GOLDEN / "kubernetes-prep.yaml"
        if os.environ.get("UPDATE_GOLDEN"):
            path.write_text(said, encoding="utf-8")
        assert said == path.read_text(encoding="utf-8")
    assert "nvidia.com/gpu: " not in said
    documents = list(yaml.safe_load_all(said.split("<<'END'\n")[1].split("# END")[0]))
    text = json.dumps(documents)
    path_of_job = "/runs/zh/data/execution/shards/launch/20300102-030405-abcdef/job.json"
    assert base64.urlsafe_b64encode(path_of_job.encode()).decode() in text
    assert documents[-1]["metadata"]["name"] == "shards-20300102-030405-abcdef"


@pytest.mark.parametrize("kind", ["hosts", "mpi", "kubernetes"])
def test_their_number_of_processes_is_the_run_files(kind: str, tmp_path: Path) -> None:
    text = (ROOT / "configs" / "clusters" / f"{kind}.yaml").read_text(encoding="utf-8")
    path = tmp_path / "cluster.yaml"
    path.write_text(f"{text}\nprep: {{tasks: 3}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="prep"):
        load_cluster(path)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data"
    pipeline.prepare(texts(tmp_path), folder)
    yield folder
    shutil.rmtree(folder)


def test_finished_data_needs_no_nodes(read_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be read-only, and the hosts may be away."""
    monkeypatch.setattr(Two, "check", lambda self, job: pytest.fail("the hosts were asked"))
    before = sorted(read_only.rglob("*"))
    assert launch.prepare_data(texts(tmp_path), read_only, TWO) == []
    assert sorted(read_only.rglob("*")) == before

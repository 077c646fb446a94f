"""What mpirun is called with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from configs.cluster import HostsCluster, MpiCluster, load_cluster
from configs.errors import ConfigError
from launcher.backends.hosts import Hosts
from launcher.backends.mpi import Mpi
from launcher.job import ROOT, Job, rank_environment
from launcher.node import encoded


def backend(**settings: object) -> Mpi:
    return Mpi(MpiCluster.model_validate({"kind": "mpi", **settings}))


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(sys, "executable", "/venv/bin/python")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return Job(tmp_path / "a b", 4, nodes=2, hosts=("n1", "n2"), mark="m1")


def agent(job: Job, number: str) -> list[str]:
    node = str(ROOT / "launcher" / "node.py")
    return ["/venv/bin/python", "-P", node, encoded(job.place / "job.json"), "--node", number]


def test_openmpi(job: Job) -> None:
    said = backend(hosts=["n1", "n2"], options=["--mca", "btl_tcp_if_include", "eth0"]).command(job)
    how = ["--map-by", "node", "--oversubscribe", "--bind-to", "none", "--mca", "btl_tcp_if_include", "eth0"]
    assert said == ["mpirun", "-np", "2", "--host", "n1,n2", *how, *agent(job, "OMPI_COMM_WORLD_RANK")]


def test_mpich(job: Job) -> None:
    said = backend(hosts=["n1", "n2"], launcher="mpich", mpirun="mpiexec.hydra").command(job)
    how = ["-ppn", "1", "-bind-to", "none"]
    assert said == ["mpiexec.hydra", "-np", "2", "-hosts", "n1,n2", *how, *agent(job, "PMI_RANK")]


def test_mpirun_gets_a_short_list_of_variables(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra passes on all that it has, OpenMPI likewise to the agent on its own host."""
    said = {"HOME": "/h", "PATH": "/bin", "PBS_NODEFILE": "/n", "SSH_AUTH_SOCK": "/s", "UCX_TLS": "tcp"}
    dropped = {"WANDB_API_KEY": "canary", "MY_SECRET": "canary", "I_MPI_PASSWORD": "canary", "PYTHONPATH": "/theirs"}
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in (said | dropped).items():
        monkeypatch.setenv(name, value)
    one = backend(hosts=["n1", "n2"], launcher="mpich")
    assert one.environment() == said
    shown = one.describe(job)
    front = 'cd / && env -i HOME="$HOME" PATH="$PATH" PBS_NODEFILE="$PBS_NODEFILE" SSH_AUTH_SOCK="$SSH_AUTH_SOCK" '
    assert f'{front}UCX_TLS="$UCX_TLS" mpirun -np 2 -hosts n1,n2 ' in shown
    assert "canary" not in shown


def test_an_mpirun_that_is_not_there(job: Job) -> None:
    with pytest.raises(ConfigError, match="There is no nonesuch on this machine"):
        backend(hosts=["n1", "n2"], mpirun="nonesuch").check(job)


@pytest.mark.parametrize("kind", ["mpi", "hosts"])
def test_a_host_is_named_once(kind: str) -> None:
    """As in a hostfile; two agents on one host would be two nodes."""
    for names, twice in ((["a", "b", "a"], "a"), (["::1", "b", "0::1"], "::1")):
        hosts = Hosts(HostsCluster(kind="hosts", hosts=names))
        one = Mpi(MpiCluster(kind="mpi", hosts=names)) if kind == "mpi" else hosts
        with pytest.raises(ConfigError, match=f"hosts: {twice} is there twice"):
            one.nodes()


def test_nodes_and_ranks(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("n1 slots=4\nn2 slots=4\n")
    assert backend(hostfile=str(file)).nodes() == ["n1", "n2"]
    assert backend(hostfile=str(file)).ranks(None) == 4
    assert backend(nodes=3).nodes() == ["", "", ""]
    assert backend(nodes=3, processes=2).ranks(None) == 2
    assert backend(nodes=3).ranks(5) == 5
    with pytest.raises(ConfigError, match="no host name"):
        backend(hosts=["-x"]).nodes()


@pytest.mark.parametrize("line", ["", "nodes: 2\nhosts: [a]", "nodes: 2\nmpirun: --version", "nodes: 2\noptions: ['']"])
def test_what_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "c.yaml").write_text(f"kind: mpi\n{line}\n")
    with pytest.raises(ConfigError):
        load_cluster(tmp_path / "c.yaml")


def test_ranks_do_not_take_the_agent_s_place_for_their_own(job: Job) -> None:
    """DeepSpeed compares OMPI_COMM_WORLD_LOCAL_RANK with LOCAL_RANK."""
    said = rank_environment(job, 5, "tcp://x:1", {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "PMI_RANK": "1", "HOME": "/h"})
    assert (said["LOCAL_RANK"], said["HOME"]) == ("1", "/h")
    assert not [name for name in said if name.startswith(("OMPI", "PMI"))]

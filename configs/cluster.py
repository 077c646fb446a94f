"""The cluster file: where work is carried out that this machine does not do by itself.

It says nothing about what is done, so that one file serves all runs on a cluster; results do not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs import loader
from configs.errors import ConfigError
from configs.loader import Config
from configs.registry import Registry

TIME = r"^(\d+-)?\d{1,2}:\d{2}:\d{2}$"
"""[days-]hours:minutes:seconds."""


class PrepJobs(Config):
    """How preparation is cut into tasks of the cluster. Its output does not depend on this."""

    tasks: int = Field(default=16, ge=1)
    """Processes in all; each takes its share of the blocks, one after another. Not more than there are blocks."""
    at_once: int | None = Field(default=None, ge=1)
    """Of those, how many may run at the same time; default: all."""
    memory_gb: int = Field(default=4, ge=1)
    """For each task."""
    time: str = Field(default="24:00:00", pattern=TIME)
    """Limit for each task, [days-]hours:minutes:seconds (slurm only)."""


class Timeouts(Config):
    """Seconds that a rank may stay in one section before it counts as hung. Ends and kills are seen at once."""

    load: float = Field(default=3600, gt=0)
    """Importing, loading models, preparing caches and references."""
    step: float = Field(default=900, gt=0)
    """Each section of a step; the first one compiles kernels."""
    evaluate: float = Field(default=7200, gt=0)
    checkpoint: float = Field(default=1800, gt=0)
    prepare: float = Field(default=36000, gt=0)
    """Between two finished blocks of a preparation on one node; a compressed file is one block."""
    end: float = Field(default=36000, gt=0)
    """Evaluation, export and report after the last stage (rank 0 alone)."""
    join: float = Field(default=300, gt=0)
    """For the agents of all nodes to start and to find each other."""
    node: float = Field(default=30, gt=0)
    """Without a word from another node, or from the launcher where it stays connected; or for a rank to be stopped
    (SIGSTOP), in whichever section."""
    stop: float = Field(default=300, gt=0)
    """For a step and its checkpoint, after SIGTERM or SIGUSR1, before the ranks are killed."""
    peer_grace: float = Field(default=1, ge=0)
    """For the other ranks to write their own message, after one has failed; of one that was killed they know less."""


class Supervision(Config):
    """What is done about ranks and nodes that are lost."""

    restarts: int = Field(default=0, ge=0)
    """How often a run that lost a rank or a node is started again, from its newest good checkpoint. Errors of the
    configuration, of data and of the disk are not tried again."""
    min_nodes: int | None = Field(default=None, ge=1)
    """Elastic: a node that was lost is left out of the next start while so many remain. Default: all are needed."""
    timeouts: Timeouts = Timeouts()


VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
WORD = r"^[A-Za-z0-9_][A-Za-z0-9_.,+:@-]*$"
"""Of a scheduler: names of partitions, accounts and the like; nothing that a shell or an option parser heeds."""
OPTION_VALUE = r"^[A-Za-z0-9_.,+:@=/%*&|()\[\]!-]*$"


class ClusterConfig(Config):
    """What the file of every kind of cluster has."""

    kind: str
    processes: int | None = Field(default=None, ge=1)
    """Ranks on each node; default: `launch.processes`, else one for each GPU, or 1 without GPUs."""
    interface: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,14}$")
    """Network interface of the ranks' traffic (eth0, ib0). Default: that by which nodes reach each other."""
    variables: dict[Annotated[str, Field(pattern=VARIABLE)], str] = {}
    """Environment variables for the ranks on all nodes. They travel in a file that only this user can read."""
    pass_variables: list[Annotated[str, Field(pattern=VARIABLE)]] = []
    """Names of further variables that are passed on from where the run is started (HF_TOKEN, say)."""
    supervision: Supervision = Supervision()


CLUSTERS: Registry[type[ClusterConfig]] = Registry("kind of cluster")


class TasksCluster(ClusterConfig):
    """One on which preparation is cut into tasks, by datatrove; elsewhere each node's agent has a process per core."""

    prep: PrepJobs = PrepJobs()


@CLUSTERS.add("local")
class LocalCluster(TasksCluster):
    """This machine, by the same executor program as a cluster: for trying a cluster's job out."""

    kind: Literal["local"]


@CLUSTERS.add("hosts")
class HostsCluster(ClusterConfig):
    """Machines that are reached by ssh; run folder, data and this checkout lie under the same paths on all of them."""

    kind: Literal["hosts"]
    hostfile: str | None = None
    """``NAME slots=N`` a line, as for DeepSpeed and MPI."""
    hosts: list[str] = []
    """Or their names here; the first one is where rank 0 runs."""
    runner: Literal["deepspeed", "ssh"] = "deepspeed"
    """``deepspeed``: DeepSpeed's own multi-node runner, by pdsh. ``ssh``: one ssh for each host."""
    python: str | None = Field(default=None, pattern=r"^/")
    """The Python on the hosts; default: the path of this one."""
    ssh_config: str | None = Field(default=None, pattern=r"^/")
    """For ssh's ``-F``."""

    @model_validator(mode="after")
    def _one_list(self) -> HostsCluster:
        if (self.hostfile is None) == (not self.hosts):
            raise ValueError("give either hostfile (a path) or hosts (a list of names)")
        return self


OURS = frozenset(
    {
        "account",
        "array",
        "chdir",
        "cpus-per-task",
        "dependency",
        "error",
        "export",
        "gpus-per-node",
        "job-name",
        "mem",
        "nodes",
        "no-requeue",
        "ntasks",
        "ntasks-per-node",
        "open-mode",
        "output",
        "parsable",
        "partition",
        "qos",
        "requeue",
        "signal",
        "time",
        "wrap",
    }
)
"""Options of sbatch that the keys of the cluster file or the launcher itself set."""


@CLUSTERS.add("slurm")
class SlurmCluster(TasksCluster):
    """A Slurm cluster whose nodes see run folder, data and sources under the same paths as this machine.

    A run is one job with one agent on each node. A job that Slurm preempts, or that comes near its time limit, writes
    a checkpoint and goes back into the queue.
    """

    kind: Literal["slurm"]
    partition: str = Field(pattern=WORD)
    qos: str | None = Field(default=None, pattern=WORD)
    account: str | None = Field(default=None, pattern=WORD)
    nodes: int = Field(default=1, ge=1)
    """Of a run. With supervision.min_nodes it also starts with fewer, when Slurm has no more."""
    gpus: int | None = Field(default=None, ge=1)
    """On each node; ``processes`` is as many unless it is set."""
    cpus: int | None = Field(default=None, ge=1)
    """Cores on each node; default: as the cluster says."""
    memory_gb: int | None = Field(default=None, ge=0)
    """On each node; 0: all of it; default: as the cluster says."""
    time: str | None = Field(default=None, pattern=TIME)
    """Limit of one start of the run, [days-]hours:minutes:seconds; default: the partition's."""
    notice: int = Field(default=300, ge=1, le=65535)
    """Seconds before that limit at which the ranks are asked for a checkpoint; must suffice for a step and for it."""
    requeues: int = Field(default=1000, ge=0)
    """How often a run that was stopped with a checkpoint asks to be put in the queue again. Preemptions by Slurm do
    not count; for lost ranks there is supervision.restarts."""
    environment: str | None = None
    """Shell command that gives a node the Python environment; default: the one this command runs in."""
    sbatch: dict[
        Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")],
        Annotated[str, Field(pattern=OPTION_VALUE)],
    ] = {}
    """Further ``--key=value`` for sbatch; an empty value for a mere ``--key``."""
    max_array_size: int = Field(default=1001, ge=1)
    """The cluster's MaxArraySize."""

    @model_validator(mode="after")
    def _not_ours(self) -> SlurmCluster:
        taken = sorted(OURS.intersection(self.sbatch))
        if taken:
            raise ValueError(f"sbatch: {', '.join(taken)}: these have keys of their own, or the launcher sets them")
        least = self.supervision.min_nodes
        if least is not None and least > self.nodes:
            raise ValueError(f"supervision.min_nodes is {least}, but nodes {self.nodes}")
        return self


@CLUSTERS.add("mpi")
class MpiCluster(ClusterConfig):
    """Machines on which MPI's launcher starts one agent each; they see the same paths as this one."""

    kind: Literal["mpi"]
    launcher: Literal["openmpi", "mpich"] = "openmpi"
    """Whose ``mpirun`` it is. ``mpich``: others of its kind (Intel MPI, MVAPICH) are untried."""
    mpirun: str = Field(default="mpirun", pattern=r"^[A-Za-z0-9_/][A-Za-z0-9_./+-]*$")
    """The program, where it is not on the path or has another name."""
    hostfile: str | None = None
    """``NAME slots=N`` a line."""
    hosts: list[str] = []
    """Or their names here."""
    nodes: int | None = Field(default=None, ge=2)
    """Or, within a scheduler's job from which mpirun knows the hosts, how many there are."""
    options: list[Annotated[str, Field(pattern=r"^\S+$")]] = []
    """Further words for mpirun, e.g. [--mca, btl_tcp_if_include, eth0]."""

    @model_validator(mode="after")
    def _one_list(self) -> MpiCluster:
        if (self.hostfile is not None) + bool(self.hosts) + (self.nodes is not None) != 1:
            raise ValueError("give one of hostfile (a path), hosts (a list of names), nodes (a number)")
        return self


LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""RFC 1123, as Kubernetes wants namespaces, queues and the like."""
SUBDOMAIN = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$"
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
DnsLabel = Annotated[str, Field(pattern=LABEL)]
DnsName = Annotated[str, Field(pattern=SUBDOMAIN, max_length=253)]
Quantity = Annotated[str, Field(pattern=QUANTITY)]


class Claim(Config):
    """A PersistentVolumeClaim, and where pods and the machine that launches see it."""

    claim: DnsName
    mount: str = Field(pattern=r"^/[^:\x00]+$")
    read_only: bool = False


class PodResources(Config):
    """Of each pod; requested and limited alike."""

    cpu: Quantity = "4"
    memory: Quantity = "16Gi"
    gpus: int = Field(default=0, ge=0)
    gpu_resource: str = Field(default="nvidia.com/gpu", pattern=r"^[a-z0-9.-]+/[a-z0-9.-]+$")
    shm: Quantity = "1Gi"
    """For /dev/shm, over which the ranks of a pod talk; a container's own has 64 MB. Counts as memory."""


class SecretKey(Config):
    """One value of a Secret that is in the cluster already."""

    secret: DnsName
    key: str = Field(pattern=r"^[-._a-zA-Z0-9]{1,253}$")


class Account(Config):
    """Numbers of the user and group that pods run as."""

    user: int = Field(ge=0)
    group: int = Field(ge=0)


@CLUSTERS.add("kubernetes")
class KubernetesCluster(ClusterConfig):
    """Pods of a Kubernetes cluster, one agent in each. The machine that launches mounts the volumes as the pods do."""

    kind: Literal["kubernetes"]
    job: Literal["job", "pytorchjob", "volcano"] = "job"
    """``job``: an indexed batch/v1 Job; ``pytorchjob``: Kubeflow's training operator (v1); ``volcano``: Volcano."""
    nodes: int = Field(default=1, ge=1)
    """Pods."""
    image: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]*$")
    """With this project installed."""
    python: str = Field(default="python3", pattern=r"^[A-Za-z0-9/][A-Za-z0-9._/+-]*$")
    """The Python in the image."""
    volumes: list[Claim] = Field(min_length=1)
    """One of them holds the run folder; further ones data and models."""
    resources: PodResources = PodResources()
    secrets: dict[Annotated[str, Field(pattern=VARIABLE)], SecretKey] = {}
    """Environment variables that are read from Secrets of the cluster; their values are never seen here."""
    namespace: DnsLabel | None = None
    context: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$")
    """Of kubectl's configuration; default: its current one."""
    kubectl: str = Field(default="kubectl", pattern=r"^[A-Za-z0-9/][A-Za-z0-9._/+-]*$")
    account: Account | None = None
    """Default: that of whoever launches, who owns the files in the run folder."""
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, str | int]] = []
    priority_class: DnsName | None = None
    queue: DnsLabel | None = None
    """Of Volcano."""

    @model_validator(mode="after")
    def _of_this_kind(self) -> KubernetesCluster:
        if self.supervision.min_nodes is not None:
            raise ValueError("supervision.min_nodes is not for Kubernetes: it replaces lost pods. Take it out")
        if self.queue is not None and self.job != "volcano":
            raise ValueError("queue belongs to `job: volcano`")
        if len({volume.mount for volume in self.volumes}) < len(self.volumes):
            raise ValueError("two volumes have the same `mount`")
        return self


@CLUSTERS.add("ray")
class RayCluster(TasksCluster):
    """A Ray cluster whose nodes see the data folder and the sources under the same paths as this machine."""

    kind: Literal["ray"]
    address: str | None = None
    """``auto`` or ``ray://HOST:PORT``; default: a Ray of its own on this machine."""


def load_cluster(path: str | Path, overrides: Sequence[str] = ()) -> ClusterConfig:
    """Read and check a cluster file, or a packaged one (``clusters/slurm``).

    Raises:
        ConfigError: with all problems at once.
    """
    tree, origins = loader.read_tree(path, overrides)
    kind = tree.get("kind")
    if not isinstance(kind, str):
        raise ConfigError(f"{path} is no cluster file: it has no `kind` ({', '.join(CLUSTERS)}).")
    return loader.validate(tree, CLUSTERS[kind], origins, str(path))

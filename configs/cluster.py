"""The cluster file: where work is carried out that this machine does not do by itself.

It says nothing about what is done, so that one file serves all runs on a cluster; results do not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from configs import loader
from configs.errors import ConfigError
from configs.loader import Config
from configs.registry import Registry


class PrepJobs(Config):
    """How preparation is cut into tasks of the cluster. Its output does not depend on this."""

    tasks: int = Field(default=16, ge=1)
    """Processes in all; each takes its share of the blocks, one after another. Not more than there are blocks."""
    at_once: int | None = Field(default=None, ge=1)
    """Of those, how many may run at the same time; default: all."""
    memory_gb: int = Field(default=4, ge=1)
    """For each task."""
    time: str = Field(default="24:00:00", pattern=r"^(\d+-)?\d{1,2}:\d{2}:\d{2}$")
    """Limit for each task, [days-]hours:minutes:seconds (slurm only)."""


class ClusterConfig(Config):
    """What the file of every kind of cluster has."""

    kind: str
    prep: PrepJobs = PrepJobs()


CLUSTERS: Registry[type[ClusterConfig]] = Registry("kind of cluster")


@CLUSTERS.add("local")
class LocalCluster(ClusterConfig):
    """This machine, by the same executor program as a cluster: for trying a cluster's job out."""

    kind: Literal["local"]


@CLUSTERS.add("slurm")
class SlurmCluster(ClusterConfig):
    """A Slurm cluster whose nodes see the data folder and the sources under the same paths as this machine."""

    kind: Literal["slurm"]
    partition: str
    qos: str | None = None
    account: str | None = None
    environment: str | None = None
    """Shell command that gives a node the Python environment; default: the one this command runs in."""
    sbatch: dict[str, str] = {}
    """Further ``--key=value`` for sbatch; an empty value for a mere ``--key``."""
    max_array_size: int = Field(default=1001, ge=1)
    """The cluster's MaxArraySize."""


@CLUSTERS.add("ray")
class RayCluster(ClusterConfig):
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

"""What a backend is: it carries the per-node agent to where the ranks run."""

from __future__ import annotations

from abc import ABC, abstractmethod

from configs.cluster import ClusterConfig
from configs.registry import Registry
from launcher.job import Job


class Backend(ABC):
    """One way of starting agents; ``cluster``: the cluster file, or an empty one of its kind."""

    restarts = False
    """Whether it starts lost ranks again by itself, so that the launcher does not."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self.cluster = cluster

    scheduled = False
    """Whether a scheduler holds the job, and not the process that starts it."""

    def nodes(self) -> list[str]:
        """The nodes' names; empty ones as far as they are not known beforehand, and for this machine."""
        return [""]

    def ranks(self, wanted: int | None) -> int:
        """Ranks on each node; ``wanted``: by the run file."""
        from launcher.launch import ranks

        return ranks(self.cluster.processes or wanted)

    def check(self, job: Job) -> None:
        """Before any work is done: that ``job`` could be started.

        Raises:
            LaunchError, ConfigError: what is missing, and on which host.
        """
        del job

    @abstractmethod
    def describe(self, job: Job) -> str:
        """What :meth:`run` would start, for ``--dry-run``: shell words that a person could paste."""

    @abstractmethod
    def run(self, job: Job) -> None:
        """Run ``job`` to its end.

        Raises:
            LaunchError: naming the first rank that failed.
        """


def comment(text: object) -> str:
    """``text`` behind ``#``, also where a path goes over several lines."""
    return "\n".join(f"# {line}" for line in str(text).split("\n"))


BACKENDS: Registry[type[Backend]] = Registry("launch backend")

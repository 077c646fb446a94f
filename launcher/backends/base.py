"""What a backend is: it carries the per-node agent to where the ranks run."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path

from configs.cluster import ClusterConfig
from configs.passing import passed_on
from configs.registry import Registry
from launcher.job import PLACED, Job, mark


class Backend(ABC):
    """One way of starting agents; ``cluster``: the cluster file, or an empty one of its kind."""

    restarts = False
    """Whether it starts lost ranks again by itself, so that the launcher does not."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self.cluster = cluster

    scheduled = False
    """Whether a scheduler holds the job, and not the process that starts it."""

    whole_machines = False
    """Whether each run takes all of the machines that it is given, so that two cannot run side by side."""

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

    def preparing(self) -> Backend | None:
        """The same without what only training needs, where its agents prepare data as well; else None."""
        return None

    def job(self, folder: Path, ranks: int) -> Job:
        """A start of ``ranks`` on each node with what the cluster file says of it; ``folder``: of logs and verdict.

        Raises:
            LaunchError, ConfigError: a variable or a host that is named is not there.
        """
        cluster, nodes = self.cluster, self.nodes()
        elsewhere = any(nodes) or len(nodes) > 1 or self.scheduled
        ours = {name: value for name, value in os.environ.items() if not (self.scheduled and name in PLACED)}
        return Job(
            folder=folder,
            ranks=ranks,
            nodes=len(nodes),
            hosts=nodes if any(nodes) else (),
            environment=cluster.variables | (passed_on(ours, cluster.pass_variables) if elsewhere else {}),
            interface=cluster.interface,
            timeouts=cluster.supervision.timeouts,
            mark=mark(),
            followed=elsewhere and not self.scheduled,
            scheduled=self.scheduled,
            hidden=cluster.pass_variables,
        )

    @abstractmethod
    def describe(self, job: Job) -> str:
        """What :meth:`run` would start, for ``--dry-run``: shell words that a person could paste."""

    @abstractmethod
    def run(self, job: Job) -> str | None:
        """Run ``job`` to its end, or (``scheduled``) put it into the queue and return its number there.

        Raises:
            LaunchError: naming the first rank that failed.
        """


def comment(text: object) -> str:
    """``text`` behind ``#``, also where a path goes over several lines."""
    return "\n".join(f"# {line}" for line in str(text).split("\n"))


BACKENDS: Registry[type[Backend]] = Registry("launch backend")

"""What a backend is: it carries the per-node agent to where the ranks run."""

from __future__ import annotations

from abc import ABC, abstractmethod

from configs.registry import Registry
from launcher.agent import Job


class Backend(ABC):
    """One way of starting agents."""

    @abstractmethod
    def describe(self, job: Job) -> str:
        """What :meth:`run` would start, for ``--dry-run``: shell words that a person could paste."""

    @abstractmethod
    def run(self, job: Job) -> None:
        """Run ``job`` to its end.

        Raises:
            LaunchError: naming the first rank that failed.
        """


BACKENDS: Registry[type[Backend]] = Registry("launch backend")

"""Hosts that are reached over the network: one agent on each, started by ssh or by DeepSpeed's own runner."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from configs.cluster import HostsCluster
from launcher import hosts as names
from launcher.backends.base import BACKENDS, Backend
from launcher.follow import Beat, Shell, follow
from launcher.job import ROOT, Job
from launcher.node import encoded

SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=10")


@BACKENDS.add("hosts")
class Hosts(Backend):
    """``runner: ssh`` or ``deepspeed``."""

    cluster: HostsCluster
    passes_on = ()

    def nodes(self) -> list[str]:
        return [host.name for host in self.hosts()]

    def ranks(self, wanted: int | None) -> int:
        """Whoever starts this need not have the hosts' GPUs."""
        said = names.slots(self.hosts(), self.cluster.processes, self.cluster.hostfile or "hosts")
        return said or wanted or super().ranks(None)

    def hosts(self) -> list[names.Host]:
        cluster = self.cluster
        if cluster.hostfile is not None:
            return names.read_hostfile(Path(cluster.hostfile))
        return [names.Host(names.checked_name(name, "hosts"), None) for name in cluster.hosts]

    def commands(self, job: Job) -> list[tuple[str, list[str]]]:
        """(host, words) of each local process."""
        return [(host, self._ssh(job, node, host)) for node, host in enumerate(job.hosts)]

    def _ssh(self, job: Job, node: int, host: str) -> list[str]:
        cluster = self.cluster
        python = cluster.python or sys.executable
        agent = [python, "-P", str(ROOT / "launcher" / "node.py"), encoded(job.place / "job.json"), "--node", str(node)]
        config = ["-F", cluster.ssh_config] if cluster.ssh_config else []
        return ["ssh", *config, *SSH_OPTIONS, "--", host, f"exec {shlex.join(agent)}"]

    def describe(self, job: Job) -> str:
        lines = [f"# {job.place / 'job.json'}"]
        return "\n".join([*lines, *(shlex.join(words) for _, words in self.commands(job))])

    def run(self, job: Job) -> None:
        job.save()
        with Beat(job.place).beating() as beat:
            shells: list[Shell] = []
            try:
                for name, words in self.commands(job):
                    shells.append(Shell.start(name, words, os.environ))
            except BaseException:
                for shell in shells:
                    shell.end()
                raise
            follow(job, shells, beat)

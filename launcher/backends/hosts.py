"""Hosts that are reached over the network: one agent on each, started by ssh or by DeepSpeed's own runner."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys

from configs.cluster import HostsCluster
from configs.errors import ConfigError
from configs.passing import USERS
from launcher import hosts as names
from launcher import shared
from launcher.backends.base import BACKENDS, Backend, comment
from launcher.follow import Beat, Shell, follow
from launcher.job import ROOT, Job, write_private
from launcher.node import encoded

SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=10")
PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./-]+")
"""Words that a shell and pdsh leave as they are."""
KEPT = tuple(sorted((*USERS, "SSH_AUTH_SOCK", "TMPDIR")))
"""What DeepSpeed's runner gets of this environment."""
UNSET = ("CUDA_VISIBLE_DEVICES", "PYTHONPATH", "MASTER_ADDR", "MASTER_PORT", "CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE")
"""What DeepSpeed sets for the process it starts, which is an agent and no rank: it is to see all of its node's GPUs."""


@BACKENDS.add("hosts")
class Hosts(Backend):
    """``runner: ssh`` or ``deepspeed``."""

    cluster: HostsCluster
    whole_machines = True

    def nodes(self) -> list[str]:
        return [host.name for host in self.hosts()]

    def ranks(self, wanted: int | None) -> int:
        """Whoever starts this need not have the hosts' GPUs."""
        said = names.slots(self.hosts(), self.cluster.processes, self.cluster.hostfile or "hosts")
        return said or wanted or super().ranks(None)

    def hosts(self) -> list[names.Host]:
        return names.listed(self.cluster.hostfile, self.cluster.hosts)

    def preparing(self) -> Hosts:
        return self

    @property
    def python(self) -> str:
        return self.cluster.python or sys.executable

    def check(self, job: Job) -> None:
        """The runner is installed, ssh reaches each host, and each sees the run folder."""
        self.check_runner(job)
        shared.check(job.folder, {host: self.shell(host) for host in job.hosts})

    def check_runner(self, job: Job) -> None:
        """Raises ConfigError: it is not installed here, or would spoil a word."""
        if self.cluster.runner == "deepspeed" and shutil.which("pdsh") is None:
            raise ConfigError(
                "DeepSpeed's runner needs pdsh, and it is not installed here. Install it, or set `runner: ssh` in the "
                "cluster file."
            )
        self.commands(job)

    def commands(self, job: Job) -> list[tuple[str, list[str]]]:
        """(name, words) of each local process."""
        if self.cluster.runner == "deepspeed":
            return [("DeepSpeed's runner", self._deepspeed(job))]
        return [
            (host, [*self.shell(host), f"exec {shlex.join(self._agent(job, str(node)))}"])
            for node, host in enumerate(job.hosts)
        ]

    def _agent(self, job: Job, node: str) -> list[str]:
        program = str(ROOT / "launcher" / "node.py")
        return [self.python, "-P", program, encoded(job.place / "job.json"), "--node", node]

    def shell(self, host: str) -> list[str]:
        """What a command for a shell on ``host`` is appended to."""
        config = ["-F", self.cluster.ssh_config] if self.cluster.ssh_config else []
        return ["ssh", *config, *SSH_OPTIONS, "--", host]

    # ------------------------------------------------------------ DeepSpeed's runner

    def _deepspeed(self, job: Job) -> list[str]:
        """One process for each node, an agent, whose number is the RANK that DeepSpeed gives it.

        Raises:
            ConfigError: a word that its runner would pass to the hosts' shells unquoted.
        """
        unset = [word for name in UNSET for word in ("-u", name)]
        program = ["/usr/bin/env", *unset, *self._agent(job, "RANK")]
        for word in (*program, *(self.cluster.ssh_config or "").split("\n")):
            if word and not PLAIN.fullmatch(word):
                raise ConfigError(
                    f"DeepSpeed's runner passes {word!r} to remote shells without quoting it. Set `runner: ssh` in the "
                    "cluster file, which quotes, or give a path without spaces and signs."
                )
        for host in job.hosts:
            if ":" in host:
                raise ConfigError(f"pdsh cannot be given the IPv6 address {host}. Use its name, or `runner: ssh`.")
        # The agents find each other through the run folder: address and port are never used, but it asks ssh for them.
        options = ["--hostfile", str(job.place / "hostfile"), "--launcher", "pdsh", "--force_multi", "--no_ssh_check"]
        options += ["--master_addr", job.hosts[0], "--master_port", "1", "--no_python", "--no_local_rank"]
        return [self.python, "-P", "-m", "deepspeed.launcher.runner", *options, *program]

    def _hostfile(self, job: Job) -> str:
        return "".join(f"{host} slots=1\n" for host in job.hosts)

    def environment(self) -> dict[str, str]:
        """Of the local processes. DeepSpeed's runner writes what it knows on the remote command line: it is told
        nothing, and no file of variables in the working or home folder is read."""
        if self.cluster.runner == "ssh":
            return dict(os.environ)
        return {name: os.environ[name] for name in KEPT if name in os.environ} | self._told()

    def _told(self) -> dict[str, str]:
        config = ("-F", self.cluster.ssh_config) if self.cluster.ssh_config else ()
        return {
            "DS_ACCELERATOR": "cpu",
            "DS_ENV_FILE": "/dev/null",
            "PDSH_SSH_ARGS_APPEND": " ".join((*config, *SSH_OPTIONS)),
        }

    # ------------------------------------------------------------ start

    def describe(self, job: Job) -> str:
        lines = [comment(job.place / "job.json"), job.shown()]
        front = ""
        if self.cluster.runner == "deepspeed":
            told = [f"{name}={shlex.quote(value)}" for name, value in self._told().items()]
            kept = [f'{name}="${name}"' for name in KEPT if name in os.environ]
            lines.append(comment("\n  ".join([f"{job.place / 'hostfile'}:", *self._hostfile(job).splitlines()])))
            front = f"cd / && env -i {' '.join([*kept, *told])} "
        return "\n".join([*lines, *(front + shlex.join(words) for _, words in self.commands(job))])

    def run(self, job: Job) -> None:
        job.save()
        if self.cluster.runner == "deepspeed":
            write_private(job.place / "hostfile", self._hostfile(job))
        with Beat(job.place).beating() as beat:
            shells: list[Shell] = []
            try:
                for name, words in self.commands(job):
                    shells.append(Shell.start(name, words, self.environment()))
            except BaseException:
                for shell in shells:
                    shell.end()
                raise
            follow(job, shells, beat)

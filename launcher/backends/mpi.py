"""MPI: ``mpirun`` carries one agent to each host. The ranks themselves know nothing of it: they meet as always."""

from __future__ import annotations

import os
import shlex
import shutil
import sys

from configs.cluster import MpiCluster
from configs.errors import ConfigError
from configs.passing import USERS, like_a_secret
from launcher import hosts as names
from launcher.backends.base import BACKENDS, Backend, comment
from launcher.follow import Beat, Shell, follow
from launcher.job import ROOT, Job
from launcher.node import encoded

KEPT = (*USERS, "KRB5CCNAME", "PE_HOSTFILE", "SSH_AUTH_SOCK", "TMPDIR")
OF_MPI = ("FI_", "HYDRA_", "I_MPI_", "MPICH_", "MV2_", "OMPI_", "OPAL_", "PMIX_", "PRTE_", "UCX_")
OF_SCHEDULERS = ("LSB_", "PBS_", "SLURM_")
"""What mpirun gets of this environment, and no more: it and its agents on this host pass on whatever they have."""
NUMBER = {"openmpi": "OMPI_COMM_WORLD_RANK", "mpich": "PMI_RANK"}
"""Where each agent reads the number of its node."""


@BACKENDS.add("mpi")
class Mpi(Backend):
    """``launcher: openmpi`` or ``mpich``; followed to its end, as hosts are."""

    cluster: MpiCluster
    whole_machines = True

    def nodes(self) -> list[str]:
        return [host.name for host in self.hosts()] or [""] * (self.cluster.nodes or 1)

    def ranks(self, wanted: int | None) -> int:
        """Whoever starts this need not have the hosts' GPUs."""
        listed = self.hosts()
        said = names.slots(listed, self.cluster.processes, self.cluster.hostfile or "hosts") if listed else None
        return said or self.cluster.processes or wanted or super().ranks(None)

    def hosts(self) -> list[names.Host]:
        return names.listed(self.cluster.hostfile, self.cluster.hosts)

    def preparing(self) -> Mpi:
        return self

    def command(self, job: Job) -> list[str]:
        """One process for each host, however many slots a hostfile gives it: they are for the ranks."""
        cluster, count, hosts = self.cluster, str(job.nodes), ",".join(job.hosts)
        if cluster.launcher == "openmpi":
            where = ["--host", hosts] if hosts else []
            root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
            # Of all nodes in turn, and not bound to one core, for the ranks inherit that.
            how = ["--map-by", "node", "--oversubscribe", "--bind-to", "none", *root]
        else:
            where = ["-hosts", hosts] if hosts else []
            how = ["-ppn", "1", "-bind-to", "none"] if hosts else ["-bind-to", "none"]
        path = encoded(job.place / "job.json")
        agent = [sys.executable, "-P", str(ROOT / "launcher" / "node.py"), path, "--node", NUMBER[cluster.launcher]]
        return [cluster.mpirun, "-np", count, *where, *how, *cluster.options, *agent]

    def check(self, job: Job) -> None:
        """mpirun is there."""
        if shutil.which(self.cluster.mpirun) is None:
            raise ConfigError(
                f"There is no {self.cluster.mpirun} on this machine. Install MPI, load its module, or say where it is "
                "with `mpirun` in the cluster file."
            )

    def environment(self) -> dict[str, str]:
        """Of mpirun; variables for the ranks travel in ``job.json``."""
        its_own = [name for name in os.environ if name.startswith(OF_MPI + OF_SCHEDULERS) and not like_a_secret(name)]
        return {name: os.environ[name] for name in sorted({*KEPT, *its_own}) if name in os.environ}

    def describe(self, job: Job) -> str:
        kept = " ".join(f'{name}="${name}"' for name in self.environment())
        command = f"cd / && env -i {kept} {shlex.join(self.command(job))}"
        return f"{comment(job.place / 'job.json')}\n{job.shown()}\n\n{command}"

    def run(self, job: Job) -> None:
        job.save()
        with Beat(job.place).beating() as beat:
            follow(job, [Shell.start("mpirun", self.command(job), self.environment())], beat)

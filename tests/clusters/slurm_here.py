"""A real Slurm on this machine alone: two nodes of it, one partition that another one preempts."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "sinfo")
SEARCH = f"/usr/sbin:/sbin:{os.environ.get('PATH', '')}"
CONF = """\
ClusterName=zhengliu
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket,cred_expire=10
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=100000
ReturnToService=1
KillWait=25
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldPidFile={place}/slurmctld.pid
SlurmctldLogFile={place}/slurmctld.log
StateSaveLocation={place}/state
SlurmdPidFile={place}/%n.pid
SlurmdLogFile={place}/%n.log
SlurmdSpoolDir={place}/spool-%n
NodeName=zl1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2 RealMemory=2000
NodeName=zl2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2 RealMemory=2000
PartitionName=low Nodes=zl1,zl2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=zl1,zl2 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


@dataclass
class Slurm:
    """A running one; its commands need ``environment``."""

    place: Path
    environment: Mapping[str, str]

    def call(self, *words: str) -> str:
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        """``scontrol show job``."""
        text = self.call("scontrol", "show", "job", "-o", job)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def wait(self, job: str, *states: str, seconds: float = 120) -> dict[str, str]:
        deadline = time.monotonic() + seconds
        while (facts := self.facts(job))["JobState"] not in states:
            assert time.monotonic() < deadline, f"job {job} is not {states} after {seconds} s: {facts}"
            time.sleep(0.3)
        return facts


@contextlib.contextmanager
def slurm_here() -> Iterator[Slurm]:
    """Start the daemons under a temporary folder of their own, and end them by their pid files."""
    place = Path(tempfile.mkdtemp(prefix="zhengliu-slurm-", dir="/tmp"))
    place.chmod(0o755)  # munged refuses a socket that others cannot reach
    (place / "state").mkdir()
    (place / "munge.key").write_bytes(secrets.token_bytes(1024))
    (place / "munge.key").chmod(0o400)
    host = socket.gethostname().split(".")[0]
    controller, first, second = free_ports(3)
    conf = place / "slurm.conf"
    conf.write_text(
        CONF.format(host=host, user=getpass.getuser(), place=place, controller=controller, first=first, second=second)
    )
    (place / "cgroup.conf").write_text("CgroupAutomount=no\n")
    environment = {**os.environ, "SLURM_CONF": str(conf), "PATH": SEARCH}
    for name in [name for name in environment if name.startswith(("SLURM_", "SBATCH_")) and name != "SLURM_CONF"]:
        del environment[name]
    slurm = Slurm(place, environment)
    munged = [f"--{name}-file={place}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    try:
        slurm.call("munged", "--force", f"--socket={place}/munge.socket", *munged)
        slurm.call("slurmctld", "-f", str(conf))
        for node in ("zl1", "zl2"):
            (place / f"spool-{node}").mkdir()
            slurm.call("slurmd", "-f", str(conf), "-N", node)
        deadline = time.monotonic() + 60
        while slurm.call("sinfo", "-h", "-N", "-p", "low", "-o", "%t").split() != ["idle", "idle"]:
            logs = "".join(path.read_text() for path in place.glob("*.log"))
            assert time.monotonic() < deadline, f"the nodes are not idle:\n{logs}"
            time.sleep(0.3)
        yield slurm
    finally:
        with contextlib.suppress(AssertionError, OSError):
            slurm.call("scancel", "--user", getpass.getuser())
            deadline = time.monotonic() + 30
            while slurm.call("squeue", "-h") and time.monotonic() < deadline:
                time.sleep(0.3)
        for name in ("zl1", "zl2", "slurmctld", "munge"):
            end_by_pid_file(place / f"{name}.pid")
        shutil.rmtree(place, ignore_errors=True)


def end_by_pid_file(path: Path, seconds: float = 20) -> None:
    try:
        number = int(path.read_text())
        os.kill(number, signal.SIGTERM)
    except (OSError, ValueError):
        return
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{number}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()

"""What is to be started: the ranks of a run on one node or on many, and the rules by which they are watched.

On several nodes a job travels as ``launch/MARK/job.json`` in the run folder, which all nodes see and only its owner
reads. So no argument, path or variable of the run ever goes through a remote shell or stands on a command line.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from configs.cluster import Timeouts
from configs.errors import ConfigError, LaunchError, output_error
from configs.passing import like_a_secret
from launcher import devices

ROOT = Path(__file__).resolve().parent.parent
PLACED = ("CUDA_VISIBLE_DEVICES",)
"""Of these, what a scheduler sets itself."""
HOSTS = "hosts"
OF_MPI = ("HYDI_", "HYDRA_", "MPI_", "OMPI_", "PMIX_", "PMI_")
"""What mpirun tells the agent about itself. DeepSpeed would take it for the rank's own place, and refuse."""


@dataclass(frozen=True)
class Job:
    """The ranks of one run."""

    folder: Path
    """The run folder; on several nodes, on a file system that all of them share."""
    ranks: int
    """On each node."""
    only: str | None = None
    command: Sequence[str] = ()
    """What each rank runs; default: ``program``."""
    nodes: int = 1
    hosts: Sequence[str] = ()
    """Names of the nodes, for messages; default: what each calls itself."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """For the ranks, over what their node has."""
    interface: str | None = None
    timeouts: Timeouts = Timeouts()
    mark: str = "local"
    """Of this start: ``launch/MARK/`` holds what the nodes tell each other."""
    followed: bool = False
    """Whether the launcher stays, so that its death is to end the ranks (not where a scheduler holds the job)."""
    scheduled: bool = False
    """Whether a scheduler holds the job: it may say SIGTERM more than once, and itself ends what takes too long."""
    program: Sequence[str] = ()
    """Module and arguments for each node's own Python; default: the rank program of ``distill_core``."""
    after: Sequence[str] = ()
    """Ids of a scheduler's jobs that must have ended well before."""
    behind: Sequence[str] = ()
    """And of those that must have ended, well or not."""
    hidden: Sequence[str] = ()
    """Names of variables whose values are shown nowhere."""

    def __post_init__(self) -> None:
        """Raises ConfigError: a text that no process can be given."""
        _check_text("The run folder", str(self.folder))
        for number, word in enumerate(self.command):
            _check_text(f"Word {number} of the command", word)
        for name, value in self.environment.items():
            _check_text(f"The name of the environment variable {name!r}", name)
            _check_text(f"The environment variable {name}", value, show=False)

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks

    @property
    def place(self) -> Path:
        return self.folder / "launch" / self.mark

    def argv(self) -> list[str]:
        if self.command:
            return list(self.command)
        # -P: what lies in the user's working folder must not shadow a library.
        only = ["--only", self.only] if self.only else []
        program = self.program or ["distill_core.run", str(self.folder.resolve()), *only]
        return [sys.executable, "-P", "-m", *program]

    def text(self) -> str:
        """Of ``job.json``."""
        facts = {
            "folder": str(self.folder.resolve()),
            "ranks": self.ranks,
            "nodes": self.nodes,
            "only": self.only,
            "command": list(self.command),  # empty: each node fills in its own Python
            "program": list(self.program),
            "hosts": list(self.hosts),
            "environment": dict(self.environment),
            "interface": self.interface,
            "timeouts": self.timeouts.model_dump(),
            "mark": self.mark,
            "followed": self.followed,
            "scheduled": self.scheduled,
        }
        return json.dumps(facts, ensure_ascii=False, indent=1)

    def shown(self) -> str:
        """The same for a terminal, without values that are hidden."""
        return self.for_show().text()

    def for_show(self) -> Job:
        """With ``***`` for the values of what was passed on by its name, or is called like a secret."""
        secret = {name for name in self.environment if like_a_secret(name)}
        hidden = dict.fromkeys(sorted(secret.union(self.hidden).intersection(self.environment)), "***")
        return replace(self, environment={**self.environment, **hidden})

    def save(self) -> Path:
        """Write ``job.json``; returns its path."""
        path = self.place / "job.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.parent.chmod(0o700)
            write_private(path, self.text())
        except OSError as error:
            raise output_error(path, error) from error
        return path

    @classmethod
    def open(cls, path: Path) -> Job:
        """Raises LaunchError: the file is not there, or is none."""
        try:
            facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
            timeouts = Timeouts(**facts.pop("timeouts"))
            job = cls(**{**facts, "folder": Path(facts["folder"])}, timeouts=timeouts)
            return job.with_nodes(hosts, job.mark) if (hosts := _hosts_of(path)) else job
        except OSError as error:
            raise LaunchError(
                f"{path} cannot be read on {socket.gethostname()} ({error.strerror}). The run folder must lie on a "
                "file system that all nodes share, under the same path."
            ) from None
        except (ValueError, TypeError, KeyError) as error:
            raise LaunchError(f"{path} is no description of a job ({error}). Start the run again.") from None

    def with_nodes(self, hosts: Sequence[str], mark: str) -> Job:
        return replace(self, nodes=len(hosts), hosts=hosts, mark=mark)


def mark() -> str:
    """A name for one start, in the order of time."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def _hosts_of(path: Path) -> list[str]:
    """The nodes' names that a scheduler's script has left beside the job: they are known when it starts, not before."""
    try:
        return path.with_name(HOSTS).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return []


def _check_text(what: str, text: str, show: bool = True) -> None:
    """``show``: whether a message may hold the text."""
    said = f", {text[:80]!r}," if show else ""
    if "\0" in text:
        raise ConfigError(f"{what}{said} holds a NUL, which no process can be given. Take it out.")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{what}{said} cannot be said in this machine's encoding, {error.encoding}. Take out the character at "
            f"place {error.start}, or set LANG to a UTF-8 locale."
        ) from None


def write_private(path: Path, text: str) -> None:
    """As a whole, and readable for this user alone. Bytes of a path or variable that are no UTF-8 stay as they are."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    try:
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def rank_environment(
    job: Job, rank: int, rendezvous: str, base: Mapping[str, str], interface: str = "lo", pulse: str = ""
) -> dict[str, str]:
    """``base`` and what a rank needs to find its peers; what the user set about threads and networks stays.

    Args:
        rank: its number on this node is ``rank % job.ranks``.
        interface: this node's, for the ranks' traffic.
        pulse: file in which the rank notes where it is.
    """
    environment = {name: value for name, value in base.items() if not name.startswith(OF_MPI)} | dict(job.environment)
    paths = [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p and p != str(ROOT)]
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *paths])
    environment.setdefault("OMP_NUM_THREADS", str(max(1, devices.cores() // job.ranks)))
    environment.setdefault("GLOO_SOCKET_IFNAME", interface)
    if job.nodes > 1:
        environment.setdefault("NCCL_SOCKET_IFNAME", interface)
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # bars fill a log file with one endless line
    environment.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:torch.distributed.c10d_logger")  # DeepSpeed's
    if devices.gpus(visible=environment.get("CUDA_VISIBLE_DEVICES")) == 0:
        environment.setdefault("DS_ACCELERATOR", "cpu")
    return environment | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank % job.ranks),
        "WORLD_SIZE": str(job.world_size),
        "LOCAL_WORLD_SIZE": str(job.ranks),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "ZHENGLIU_RENDEZVOUS": rendezvous,
        "ZHENGLIU_PULSE": pulse,
        "PYTHONUNBUFFERED": "1",
    }

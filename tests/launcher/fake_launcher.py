"""A launcher of fake ranks, as a process that can be killed: ``fake_launcher.py FOLDER local|hosts``.

Rank N does what FAKE_N says, see ``fake_rank.py``; of hosts there are two, node1 and node2, with a rank each.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from configs.cluster import ClusterConfig, HostsCluster, Timeouts
from launcher.backends import BACKENDS, Backend
from launcher.cli import status_of
from launcher.job import Job
from launcher.launch import carry_through

TIMEOUTS = Timeouts(step=1.5, node=5.0, stop=3.0, peer_grace=0.2)


def made(folder: Path, kind: str, command: list[str] | None = None) -> tuple[Backend, Job]:
    """Two ranks of ``command``, by default ``fake_rank.py``."""
    cluster = HostsCluster(kind="hosts", hosts=["node1", "node2"], runner="ssh") if kind == "hosts" else None
    backend = BACKENDS[kind](cluster or ClusterConfig(kind=kind))
    nodes = backend.nodes() if kind == "hosts" else [""]
    job = Job(
        folder,
        ranks=2 // len(nodes),
        command=command or [sys.executable, "-I", "-S", str(Path(__file__).with_name("fake_rank.py")), str(folder)],
        nodes=len(nodes),
        hosts=nodes if any(nodes) else (),
        environment={name: value for name, value in os.environ.items() if name.startswith("FAKE_")},
        interface="lo",
        timeouts=TIMEOUTS,
        mark="m1",
        followed=kind == "hosts",
    )
    return backend, job


if __name__ == "__main__":
    what = made(Path(sys.argv[1]), sys.argv[2])
    sys.exit(status_of(lambda: carry_through(*what)))

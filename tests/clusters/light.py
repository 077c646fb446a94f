"""A launcher of light ranks: ``light.py FOLDER CLUSTER.yaml``; a process of its own, so that it can be killed."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from configs.cluster import HostsCluster, load_cluster
from configs.errors import ZhengliuError
from launcher.backends import BACKENDS
from launcher.launch import carry_through
from launcher.signals import Stopped


def main(folder: Path, cluster_file: str) -> int:
    cluster = load_cluster(cluster_file)
    assert isinstance(cluster, HostsCluster)
    backend = BACKENDS[cluster.kind](cluster)
    program = str(Path(__file__).with_name("light_rank.py"))
    command = [sys.executable, "-I", program, str(folder)]
    job = replace(backend.job(folder, backend.ranks(None)), command=command)
    try:
        backend.check(job)
        carry_through(backend, job)
    except ZhengliuError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    except Stopped as stopped:
        return stopped.exit_code
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))

"""The launcher script: a run file -> prepared data -> ranks. ``distill run`` is the same code.

From a checkout without installation: ``python launcher/launch.py RUN.yaml [a.b=c ...] [--only STAGE]``.
"""

from __future__ import annotations

import itertools
import os
import secrets
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # as a script, the folder of this file is on the path instead of the project
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from configs import loader
from configs.cluster import ClusterConfig
from configs.errors import LaunchError, Requeue, output_error
from launcher import devices, environment
from launcher.job import PLACED, Job, passed_on
from launcher.lock import folder_lock
from launcher.signals import stop_signals

if TYPE_CHECKING:
    from data_prep.config import DataConfig
    from distill_core.config import RunConfig
    from launcher.backends import Backend


def launch(config: RunConfig, only: str | None = None, cluster: ClusterConfig | None = None) -> int:
    """Carry out ``config``: check it, prepare its data, run its stages; 0 when everything ended well.

    Raises:
        ZhengliuError: what went wrong, with its exit status. Whatever can be known beforehand comes before the
            preparation starts.
    """
    backend, job = plan_job(config, only, cluster)
    with stop_signals(), folder_lock(config.folder):
        write(config.folder / "config.yaml", loader.to_yaml(config))
        write(config.folder / "environment.json", environment.to_json())
        backend.check(job)
        before = prepare_data(config.data, config.data_folder, cluster if backend.scheduled else None)
        carry_through(backend, replace(job, after=before))
    return 0


def carry_through(backend: Backend, job: Job) -> None:
    """Run ``job``; start it again when a rank or node was lost, as often as the cluster file allows.

    Raises:
        LaunchError, Requeue: the last start's.
    """
    supervision = backend.cluster.supervision
    restarts = 0 if backend.restarts else supervision.restarts
    for restart in itertools.count():
        try:
            return backend.run(job)
        except Requeue:
            raise
        except LaunchError as error:
            if error.exit_code != LaunchError.exit_code or restart >= restarts:
                raise
            left = remaining(job, error.host, supervision.min_nodes)
            again = f"Starting again ({restart + 1} of {restarts}), with {max(1, len(left))} node(s)."
            print(f"{error}\n{again}", flush=True)
            job = job.with_nodes(left, mark()) if left else job


def remaining(job: Job, lost: str | None, min_nodes: int | None) -> list[str]:
    """The nodes of the next start: all of them, or without the lost one where the run is elastic."""
    left = [host for host in job.hosts if host != lost]
    return left if min_nodes is not None and len(left) >= max(1, min_nodes) else list(job.hosts)


def mark() -> str:
    """A name for one start, in the order of time."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def dry_run(config: RunConfig, only: str | None = None, cluster: ClusterConfig | None = None) -> str:
    """What :func:`launch` would start; every check is made, nothing is prepared or started."""
    backend, job = plan_job(config, only, cluster)
    return backend.describe(job)


def plan_job(config: RunConfig, only: str | None, cluster: ClusterConfig | None = None) -> tuple[Backend, Job]:
    """Check everything that can be known now, and say where the ranks will run."""
    from distill_core import preflight
    from launcher.backends import BACKENDS
    from launcher.runfile import check_stage

    check_stage([stage.name for stage in config.stages], only)
    where = ClusterConfig(kind=config.launch.backend) if cluster is None else cluster
    backend = BACKENDS[where.kind](where)
    nodes = backend.nodes()
    elsewhere = any(nodes) or len(nodes) > 1 or backend.scheduled
    ours = {name: value for name, value in os.environ.items() if not (backend.scheduled and name in PLACED)}
    job = Job(
        folder=config.folder,
        ranks=backend.ranks(config.launch.processes),
        only=only,
        nodes=len(nodes),
        hosts=nodes if any(nodes) else (),
        environment=where.variables | (passed_on(ours, where.pass_variables) if elsewhere else {}),
        interface=where.interface,
        timeouts=where.supervision.timeouts,
        mark=mark(),
        followed=elsewhere and not backend.scheduled,
        scheduled=backend.scheduled,
    )
    check_sources(config.data, config.data_folder)
    preflight.check(config, job.world_size)
    return backend, job


def ranks(wanted: int | None) -> int:
    """Processes on this machine: as asked for, but never two on one GPU; results do not depend on it."""
    gpus = devices.gpus()
    if wanted is None:
        return gpus or 1
    if 0 < gpus < wanted:
        print(f"launch.processes is {wanted}, but this machine has {gpus} GPU(s): starting {gpus}, one for each.")
        return gpus
    return wanted


def check_sources(data: DataConfig, folder: Path) -> None:
    """Raise DataError for a source that is missing or cannot be read, before any work is done.

    Not when the data is ready in ``folder``: it can be trained on without its sources.
    """
    from data_prep.readers import open_sources

    if not (folder / "manifest.json").is_file():
        open_sources(data)


def prepare_data(data: DataConfig, folder: Path, cluster: ClusterConfig | None = None) -> list[str]:
    """Raw files to shards; at once when they are there already.

    Returns:
        The ids of the jobs that will do it, where they are submitted to Slurm and not waited for.
    """
    from configs.cluster import SlurmCluster
    from data_prep import pipeline
    from launcher.preparing import Preparing

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # preparation has a process per core already
    if isinstance(cluster, SlurmCluster):
        jobs = pipeline.submit(data, folder, cluster)
        if jobs:
            print(
                f"data: submitted as Slurm jobs {', '.join(jobs)}; the last one makes {folder} complete. If one fails, "
                "the same command submits what is missing.",
                flush=True,
            )
            return jobs
    with Preparing() as shown:
        corpus = pipeline.prepare(data, folder, shown.update, None if isinstance(cluster, SlurmCluster) else cluster)
        shown.done(corpus)
    return []


def write(path: Path, text: str) -> None:
    """Replace ``path`` as a whole, so that a reader never sees half of it."""
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise output_error(path, error) from error


if __name__ == "__main__":
    from launcher.cli import main

    sys.argv[1:1] = ["run"]
    main()

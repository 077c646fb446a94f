"""The launcher script: a run file -> prepared data -> ranks. ``distill run`` is the same code.

Without installation: ``python launcher/launch.py RUN.yaml [a.b=c ...] [--only STAGE] [--cluster FILE]``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # as a script, the folder of this file is on the path instead of the project
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from launcher.cli import main

    sys.argv[1:1] = ["run"]
    main()

from configs import loader
from configs.cluster import ClusterConfig
from configs.errors import LaunchError, Requeue, output_error
from launcher import devices, environment, pins
from launcher.job import Job, mark
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
    begin(config, only, cluster)
    return 0


def begin(
    config: RunConfig,
    only: str | None = None,
    cluster: ClusterConfig | None = None,
    after: Sequence[str] | None = None,
    behind: Sequence[str] = (),
) -> list[str]:
    """:func:`launch`, to the end or, where a scheduler holds the job, until it is in the queue.

    Args:
        after: the jobs that prepare its data, where that has been seen to; None: it is prepared here.
        behind: jobs that are to have ended, well or not.

    Returns:
        The job's number in the queue; [] where there is none.
    """
    config = pins.settled(config)
    backend, job = plan_job(config, only, cluster)
    with stop_signals(), folder_lock(config.folder):
        write(config.folder / "config.yaml", loader.to_yaml(config))
        write(config.folder / "environment.json", environment.to_json(pins.record(config)))
        backend.check(job)
        if after is None:
            after = prepare_data(config.data, config.data_folder, prepares(backend))
        number = carry_through(backend, replace(job, after=after, behind=behind))
    return [] if number is None else [number]


def prepares(backend: Backend) -> ClusterConfig | None:
    """The cluster that prepares data for runs; None: this machine's processes do."""
    return backend.cluster if backend.scheduled or backend.preparing() is not None else None


def carry_through(backend: Backend, job: Job) -> str | None:
    """Run ``job``; start it again when a rank or node was lost, as often as the cluster file allows.

    Returns:
        Its number, where a scheduler holds it and this does not wait for its end.

    Raises:
        LaunchError, Requeue: the last start's.
    """
    supervision = backend.cluster.supervision
    restarts = 0 if backend.restarts else supervision.restarts
    restart = 0
    while True:
        try:
            return backend.run(job)
        except Requeue:
            raise
        except LaunchError as error:
            if error.exit_code != LaunchError.exit_code or restart >= restarts:
                raise
            left = remaining(job, error.host, supervision.min_nodes)
            restart += 1
            again = f"Starting again ({restart} of {restarts}), with {max(1, len(left))} node(s)."
            print(f"{error}\n{again}", flush=True)
            job = job.with_nodes(left, mark()) if left else replace(job, mark=mark())


def remaining(job: Job, lost: str | None, min_nodes: int | None) -> list[str]:
    """The nodes of the next start: all of them, or without the lost one where the run is elastic."""
    left = [host for host in job.hosts if host != lost]
    return left if min_nodes is not None and len(left) >= max(1, min_nodes) else list(job.hosts)


def dry_run(config: RunConfig, only: str | None = None, cluster: ClusterConfig | None = None) -> str:
    """What :func:`launch` would start; every check is made, nothing is prepared or started, no folder is left."""
    with leaving_no_folder(config.folder):
        config = pins.settled(config)
        backend, job = plan_job(config, only, cluster)
        if (config.data_folder / "manifest.json").is_file():
            return backend.describe(job)
        said = describe_prep(config.data, config.data_folder, prepares(backend))
        return f"{said}\n\n{backend.describe(replace(job, after=numbers_of_prep(config.data, backend)))}"


def numbers_of_prep(data: DataConfig, backend: Backend) -> list[str]:
    """What stands in a dry run for the numbers of the jobs that prepare ``data``, where a scheduler holds them."""
    if not backend.scheduled:
        return []
    from data_prep.executors.cluster import placeholders

    return placeholders(data)


@contextlib.contextmanager
def leaving_no_folder(*folders: Path) -> Iterator[None]:
    """Folders that are made within, only to see whether they can be written, are gone at its end."""
    new = {folder for path in folders for folder in (path, *path.parents) if not folder.exists()}
    try:
        yield
    finally:
        for folder in sorted(new, key=lambda path: -len(path.parts)):
            with contextlib.suppress(OSError):  # not made, or there is something in it
                folder.rmdir()


def plan_job(config: RunConfig, only: str | None, cluster: ClusterConfig | None = None) -> tuple[Backend, Job]:
    """Check everything that can be known now, and say where the ranks will run."""
    from distill_core import preflight
    from launcher.backends import BACKENDS
    from launcher.runfile import check_stage

    check_stage([stage.name for stage in config.stages], only)
    where = ClusterConfig(kind=config.launch.backend) if cluster is None else cluster
    backend = BACKENDS[where.kind](where)
    job = replace(backend.job(config.folder, backend.ranks(config.launch.processes)), only=only)
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
    from configs.cluster import SlurmCluster, TasksCluster
    from data_prep import pipeline
    from launcher import spread
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
        cluster = None  # all is done
    nodes = spread.on_nodes(data, folder, cluster)
    with Preparing(live=nodes is None) as shown:
        tasks = cluster if isinstance(cluster, TasksCluster) else None
        shown.done(pipeline.prepare(data, folder, shown.update, nodes or tasks))
    return []


def describe_prep(data: DataConfig, folder: Path, cluster: ClusterConfig | None) -> str:
    """What :func:`prepare_data` would start."""
    from data_prep import pipeline
    from launcher import spread

    backend = spread.backend_of(cluster)
    if backend is None:
        return pipeline.describe(data, folder, cluster)
    return spread.describe(backend, data, folder)


def write(path: Path, text: str) -> None:
    """Replace ``path`` as a whole, so that a reader never sees half of it."""
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise output_error(path, error) from error

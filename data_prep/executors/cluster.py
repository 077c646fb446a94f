"""Phases on a cluster, through datatrove's executors: local, Slurm, Ray.

datatrove starts processes and numbers them; what is done is decided by our own files alone. A rank that finds its
shards there does nothing, whatever datatrove's completion markers say, and every start asks all ranks again.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import data_prep
from configs.cluster import PrepJobs, RayCluster, SlurmCluster, TasksCluster
from configs.errors import ConfigError, DataError, LaunchError, ZhengliuError
from configs.passing import BY_SLURM, like_a_secret, passed_on
from data_prep.atomic import write_bytes
from data_prep.config import DataConfig
from data_prep.phases import Phase, phases
from data_prep.plan import Job

try:
    from datatrove.executor.base import PipelineExecutor
    from datatrove.pipeline.base import PipelineStep
except ImportError as error:
    raise DataError(
        f"Work on a cluster needs datatrove ({error}): `pip install zhengliu[cluster]`, or leave --cluster away."
    ) from None

ROOT = Path(str(data_prep.__path__[0])).parent


class Blocks(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    """Rank r of n does its share of the blocks of a phase."""

    name = "blocks"
    type = "Zhengliu"

    def __init__(self, folder: Path, phase: str, logs: Path) -> None:
        super().__init__()
        self.folder, self.phase, self.logs, self.where = folder, phase, logs, os.getcwd()

    def run(self, data: object, rank: int = 0, world_size: int = 1) -> None:
        """Carry out what is not done yet; the first error ends the rank and is left in a file."""
        from data_prep.executors.ranks import carry_out_share

        del data
        os.chdir(self.where)  # relative paths of sources start there
        try:
            for _ in carry_out_share(self.folder, self.phase, rank, world_size):
                pass
        except ZhengliuError as error:
            self.logs.mkdir(parents=True, exist_ok=True)
            write_bytes(self.logs / f"rank-{rank:05d}.error", str(error).encode())
            raise


class Close(PipelineStep):  # type: ignore[misc]
    """The end of a phase, after all ranks of it."""

    name = "close"
    type = "Zhengliu"

    def __init__(self, folder: Path, phase: str) -> None:
        super().__init__()
        self.folder, self.phase, self.where = folder, phase, os.getcwd()

    def run(self, data: object, rank: int = 0, world_size: int = 1) -> None:
        from data_prep.executors.ranks import close_phase

        del data, rank, world_size
        os.chdir(self.where)
        close_phase(self.folder, self.phase)


def carry_out(job: Job, phase: Phase, cluster: TasksCluster) -> None:
    """Do what is missing of ``phase`` on a local or Ray cluster and wait for it; not its end.

    Raises:
        DataError, OutputError: what the first failed rank said.
        LaunchError: ranks were lost without a word.
    """
    if not phase.missing(job):
        return
    folder = job.folder.absolute()
    logs = logs_of(folder, phase)
    executor = executor_of(cluster, [Blocks(folder, phase.name, logs)], tasks_of(job, cluster.prep), logs)
    with ray_of(cluster) if isinstance(cluster, RayCluster) else quiet():
        try:
            executor.run()
        except ZhengliuError:
            raise
        except Exception as error:  # whatever the engine raises when its processes die
            raise LaunchError(f"The ranks of phase {phase.name} failed ({error}). Logs: {logs}.") from error
    left = phase.missing(job)
    if left:
        said = [path.read_text(encoding="utf-8") for path in sorted(logs.glob("rank-*.error"))]
        what = said[0] if said else "The ranks that had them ended without a word (out of memory, most often)."
        raise LaunchError(
            f"{len(left)} of {len(job.tasks)} blocks are not done. {what} Logs: {logs}. Start again: what is finished "
            "is kept."
        )


def submit(job: Job, cluster: SlurmCluster) -> list[str]:
    """Hand all phases to Slurm, each after the one before it; returns the ids of the jobs.

    Raises:
        ConfigError: there is no sbatch, or a variable of ``pass_variables``.
        LaunchError: sbatch refuses.
    """
    folder = job.folder.absolute()
    chain = slurm_chain(job.config, cluster, folder / "execution", folder, len(job.tasks))
    with quiet():
        try:
            with only(for_sbatch(cluster)):
                chain[-1].run()  # it launches those that it depends on, first
        except FileNotFoundError as error:
            raise ConfigError(
                f"sbatch cannot be called ({error}). Start this on a login node of the cluster."
            ) from None
        except ZhengliuError:
            raise
        except Exception as error:
            raise LaunchError(f"sbatch refused the job: {error}. See what it said above.") from None
    return [str(executor.job_id) for executor in chain]


def for_sbatch(cluster: SlurmCluster) -> dict[str, str]:
    """The environment in which sbatch is called: datatrove has it export all of that to the jobs.

    Raises:
        ConfigError: a variable of ``pass_variables`` is not set.
    """
    kept = {name: os.environ[name] for name in (*BY_SLURM, "SLURM_CONF") if name in os.environ}
    named = passed_on(os.environ, cluster.pass_variables)
    return kept | named | {"TOKENIZERS_PARALLELISM": "false"} | cluster.variables


@contextmanager
def only(variables: Mapping[str, str]) -> Iterator[None]:
    """This process with no others."""
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(variables)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def placeholders(config: DataConfig) -> list[str]:
    """What stands for the numbers of the jobs that :func:`submit` would hand over."""
    return [f"ID-OF-zhengliu-{phase.name}{end}" for phase in phases(config) for end in ("", "-end")]


def scripts(config: DataConfig, job_folder: Path, blocks: int, cluster: SlurmCluster) -> str:
    """The batch scripts that :func:`submit` would hand over for so many blocks, and how; nothing is written there."""
    front, before = f"env -i {' '.join(shown(name, value, cluster) for name, value in for_sbatch(cluster).items())}", ""
    final = job_folder.absolute() / "execution"
    with tempfile.TemporaryDirectory() as place, quiet():
        chain = slurm_chain(config, cluster, Path(place), job_folder.absolute(), blocks)
        texts = []
        for executor in chain:
            arguments = executor.get_sbatch_args(min(executor.tasks, executor.max_array_size))
            pickled = executor.logging_dir.resolve_paths("executor.pik")
            text = executor.get_launch_file_contents(arguments, f"srun  -l -n 1 launch_pickled_pipeline {pickled}")
            after = f" --dependency=afterok:{before}" if before else ""
            script = shlex.quote(executor.logging_dir.resolve_paths("launch_script.slurm").replace(place, str(final)))
            how = f"# {front} sbatch --export=ALL,RUN_OFFSET=0{after} {script}"
            texts.append(f"# {executor.job_name}\n{how}\n{text}".replace(place, str(final)))
            before = f"ID-OF-{executor.job_name}"
    return "\n".join(texts)


def shown(name: str, value: str, cluster: SlurmCluster) -> str:
    """A variable for ``env``: of this shell, or with its value, if that is no secret."""
    if os.environ.get(name) == value and name not in cluster.variables:
        return f'{name}="${name}"'
    return f"{name}={'***' if like_a_secret(name) and name in cluster.variables else shlex.quote(value)}"


def slurm_chain(config: DataConfig, cluster: SlurmCluster, place: Path, folder: Path, blocks: int) -> list[Any]:
    """Two executors for each phase: its ranks, and its end."""
    chain: list[Any] = []
    for phase in phases(config):
        logs = place / f"{phase.name}-{stamp()}"
        tasks = min(cluster.prep.tasks, max(blocks, 1))
        for name, step, count in (
            ("", Blocks(folder, phase.name, logs), tasks),
            ("-end", Close(folder, phase.name), 1),
        ):
            executor = executor_of(cluster, [step], count, Path(f"{logs}{name}"), f"zhengliu-{phase.name}{name}")
            executor.depends = chain[-1] if chain else None
            chain.append(executor)
    return chain


def executor_of(
    cluster: TasksCluster, steps: list[PipelineStep], tasks: int, logs: Path, name: str = ""
) -> PipelineExecutor:
    """datatrove's executor for a kind of cluster; every rank runs at every start."""
    at_once = cluster.prep.at_once
    common: dict[str, Any] = {
        "pipeline": steps,
        "tasks": tasks,
        "logging_dir": str(logs),
        "skip_completed": False,
        "workers": -1 if at_once is None else min(at_once, tasks),
    }
    if isinstance(cluster, SlurmCluster):
        from data_prep.executors.slurm import QuotingExecutor

        return QuotingExecutor(
            **common,
            time=cluster.prep.time,
            partition=cluster.partition,
            mem_per_cpu_gb=cluster.prep.memory_gb,
            job_name=name,
            qos=cluster.qos or "",
            env_command=environment_of(cluster),
            sbatch_args={**({"account": cluster.account} if cluster.account else {}), **cluster.sbatch},
            max_array_size=cluster.max_array_size,
        )
    if isinstance(cluster, RayCluster):
        from datatrove.executor.ray import RayPipelineExecutor

        return RayPipelineExecutor(**common, mem_per_cpu_gb=cluster.prep.memory_gb)
    from datatrove.executor.local import LocalPipelineExecutor

    return LocalPipelineExecutor(**common, start_method="spawn")


def environment_of(cluster: SlurmCluster) -> str:
    """Shell lines after which a node finds this Python and this code."""
    programs, root = shlex.quote(str(Path(sys.executable).parent)), shlex.quote(str(ROOT))
    command = cluster.environment or f'export PATH={programs}:"$PATH"'
    return f'{command}\nexport PYTHONPATH={root}:"${{PYTHONPATH:-}}"'


def tasks_of(job: Job, prep: PrepJobs) -> int:
    return max(min(prep.tasks, len(job.tasks)), 1)


def logs_of(folder: Path, phase: Phase) -> Path:
    return folder / "execution" / f"{phase.name}-{stamp()}"


def stamp() -> str:
    return time.strftime("%Y%m%d-%H%M%S")


@contextmanager
def quiet() -> Iterator[None]:
    """Without datatrove's own messages on this process's terminal; the ranks' stay in their log files."""
    from loguru import logger

    logger.disable("datatrove")
    try:
        yield
    finally:
        logger.enable("datatrove")


@contextmanager
def ray_of(cluster: RayCluster) -> Iterator[None]:
    """A connection to Ray, unless there is one."""
    try:
        import ray
    except ImportError as error:
        raise DataError(f"kind: ray needs Ray ({error}): `pip install 'ray>=2.40'`.") from None
    ours = not ray.is_initialized()
    if ours:
        variables = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        try:
            ray.init(address=cluster.address, runtime_env=variables, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise LaunchError(f"There is no Ray to talk to at {cluster.address or 'this machine'}: {error}") from None
    try:
        with quiet():
            yield
    finally:
        if ours:
            ray.shutdown()

"""Preparation on the nodes of a cluster: the agents that carry runs there, with one rank on each node.

What comes before single blocks (the plan, the vocabulary) and what comes after all of them is done where the command is
given. In between, phase by phase, each rank (``prep_rank.py``) works on the blocks that are its share, with as many
processes as its node has cores (``data.workers``). Bytes do not depend on how many nodes there are; a node that is
lost, or starts again, finds what is finished.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from configs.cluster import ClusterConfig
from configs.errors import LaunchError, Requeue

if TYPE_CHECKING:
    from data_prep.config import DataConfig
    from data_prep.phases import Phase
    from data_prep.plan import Job as Preparation
    from launcher.backends import Backend
    from launcher.job import Job


def backend_of(cluster: ClusterConfig | None) -> Backend | None:
    """What carries agents that prepare to the nodes of ``cluster``; None where they are prepared on in another way."""
    from launcher.backends import BACKENDS

    if cluster is None or cluster.kind not in BACKENDS:
        return None
    return BACKENDS[cluster.kind](cluster).preparing()


def on_nodes(
    data: DataConfig, folder: Path, cluster: ClusterConfig | None
) -> Callable[[Preparation, Phase], None] | None:
    """What carries out a phase of the preparation in ``folder`` on the nodes of ``cluster``; None as above.

    Raises:
        LaunchError: a node does not see the folder, or cannot be reached.
    """
    backend = backend_of(cluster)
    if backend is None:
        return None
    if not (folder / "manifest.json").is_file():  # finished data may be read-only, and nothing will be started
        backend.check(job_of(backend, data, folder, "shards"))

    def carry_out(preparation: Preparation, phase: Phase) -> None:
        _carry_out(backend, preparation, phase, job_of(backend, data, folder, phase.name))

    return carry_out


def _carry_out(backend: Backend, preparation: Preparation, phase: Phase, job: Job) -> None:
    """Do what is missing of ``phase`` on the nodes, without its end.

    Raises:
        LaunchError: naming the first rank or node that failed, with its exit status.
        Requeue: stopped.
    """
    from launcher.launch import carry_through

    if not phase.missing(preparation):
        return
    print(f"data: {phase.name} on {job.nodes} node(s); logs: {job.folder / 'logs'}", flush=True)
    try:
        carry_through(backend, job)
    except Requeue as stop:
        why = str(stop).split(". ")[0].rstrip(".")
        raise Requeue(f"{why}, during the preparation. Finished blocks are kept: the same command continues.") from None
    left = phase.missing(preparation)
    if left:
        raise LaunchError(
            f"All ranks of phase {phase.name} say that they are done, but {len(left)} of {len(preparation.tasks)} "
            f"blocks are not in {preparation.folder}. Do all nodes see the same folder under this path?"
        )


def job_of(backend: Backend, data: DataConfig, folder: Path, phase: str) -> Job:
    """The ranks of a phase. Their logs and verdict lie in ``DATA/execution/PHASE``."""
    folder = folder.resolve()
    program = ["launcher.prep_rank", str(folder), phase, "--where", os.getcwd()]
    program += [] if data.workers is None else ["--workers", str(data.workers)]
    return replace(backend.job(folder / "execution" / phase, 1), program=program)


def describe(backend: Backend, data: DataConfig, folder: Path) -> str:
    """What would be started for each phase; nothing is written."""
    from data_prep.phases import phases
    from data_prep.pipeline import count_blocks

    parts = [f"# Preparation: {count_blocks(data)} blocks into {folder}"]
    for phase in phases(data):
        parts.append(f"# Phase {phase.name}\n{backend.describe(job_of(backend, data, folder, phase.name))}")
    return "\n\n".join(parts)

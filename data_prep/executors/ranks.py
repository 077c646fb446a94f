"""What a rank of a cluster does. It knows nothing but the data folder: the plan there tells it everything."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path

from data_prep.block import Task
from data_prep.executors.here import in_processes
from data_prep.phases import phase_of
from data_prep.plan import Job, block_size


def share(tasks: list[Task], rank: int, ranks: int) -> list[Task]:
    """The tasks of ``rank`` of ``ranks``: the largest first, each to whom had least before it.

    A pure function of the plan: ranks that start at different times must agree on it, so what is finished counts too.
    """
    loads = [(0, number) for number in range(ranks)]
    own = []
    for task in sorted(tasks, key=lambda task: (-block_size(task), task.ordinal)):
        load, number = heapq.heappop(loads)
        heapq.heappush(loads, (load + max(block_size(task), 1), number))
        if number == rank:
            own.append(task)
    return own


def carry_out_share(folder: Path, name: str, rank: int, ranks: int, workers: int = 1) -> Iterator[int]:
    """Do the rank's part of a phase, as far as it is not done, in ``workers`` processes; yields how many blocks are."""
    job = Job.open(folder)
    phase = phase_of(name, job.config)
    missing = [task for task in share(job.tasks, rank, ranks) if phase.facts(job, task) is None]
    for done, _ in enumerate(in_processes(phase, missing, workers), 1):
        yield done


def close_phase(folder: Path, name: str) -> None:
    """The end of a phase."""
    job = Job.open(folder)
    phase_of(name, job.config).close(job)

"""The phases of preparation that work on each block by itself, and what is done once after all of them.

Between ``plan.json`` and ``tasks.json`` (plan.py) and the manifest (manifest.py) every phase has the same form, so that
all executors carry out all of them: ``work`` on the blocks that have no ``facts`` yet, in any order, on any machine,
more than once if it happens; then ``close`` in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data_prep.block import Task, prepare_block
from data_prep.config import DataConfig
from data_prep.dedup import found_already, merge
from data_prep.manifest import get_ready, write_corpus
from data_prep.plan import Job
from data_prep.sources import whole_shard
from data_prep.survey import survey_block, survey_facts

Facts = dict[str, Any]


@dataclass(frozen=True)
class Phase:
    """One pass over the blocks."""

    name: str
    facts: Callable[[Job, Task], Facts | None]
    """What the finished work on a block has left on disk (``counts`` and more); None: it is to be done."""
    work: Callable[[Task], Facts]
    """Does it, and returns the same. A function of a module: it is sent to other processes by its name."""
    close: Callable[[Job], None]
    """After all blocks, in one process; harmless when it is done again."""
    get_ready: Callable[[], None] = lambda: None
    """Loads what ``close`` needs: for a process that waits for others until then. Not needed otherwise."""

    def missing(self, job: Job) -> list[Task]:
        return [task for task in job.tasks if self.facts(job, task) is None]


def shard_facts(job: Job, task: Task) -> Facts | None:
    """The manifest of the shard, if that and its further parts are whole."""
    return whole_shard(job.shard(task))


def surveyed(job: Job, task: Task) -> Facts | None:
    """The survey of the block, if that is whole; surveys are removed when the duplicates of all blocks are known."""
    return survey_facts(task) or ({"ordinal": task.ordinal, "counts": {}} if found_already(job.tasks) else None)


def phases(config: DataConfig) -> list[Phase]:
    """In the order in which they are carried out."""
    shards = Phase("shards", shard_facts, prepare_block, write_corpus, get_ready)
    if not (config.dedup.wanted and config.sources):
        return [shards]
    return [Phase("survey", surveyed, survey_block, lambda job: merge(job.tasks)), shards]


def phase_of(name: str, config: DataConfig) -> Phase:
    return next(phase for phase in phases(config) if phase.name == name)

"""This machine's processes: one per core by default.

A worker of its own pays about a second for starting: Python, numba and its registries, the tables of the tokenizer and
of words, the compiled kernels. All of that is in the preparing process already, so workers are forked from it where
that is safe, which is where it has a single thread: then no lock can be held, and nothing can be half done, by a
thread that does not live on in the child. Elsewhere (numpy's BLAS, torch or a reader keeps threads) they are spawned.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from configs.errors import DataError
from data_prep.block import Task, get_ready
from data_prep.phases import Facts, Phase
from data_prep.plan import Job, block_size
from data_prep.progress import OnProgress, Tally

THREADS = Path("/proc/self/task")
"""Has an entry for each thread of this process, also those that Python does not know (Linux)."""


def carry_out(job: Job, phase: Phase, workers: int | None, on_progress: OnProgress | None) -> None:
    """Do what is missing of ``phase``, without its end.

    Raises:
        DataError: a worker was killed, or a source cannot be read on.
        OutputError: the folder cannot be written, or the disk is full.
    """
    missing = phase.missing(job)
    tally = Tally(job, phase, [task.ordinal for task in missing], on_progress)
    for facts in in_processes(phase, missing, workers, phase.get_ready):
        tally.add(facts)


def in_processes(
    phase: Phase, tasks: list[Task], workers: int | None, meanwhile: Callable[[], None] = lambda: None
) -> Iterator[Facts]:
    """Results of the work as they come; a worker that dies is an error, not a hang.

    Args:
        meanwhile: called once, while workers are at work; not where this process does the work itself.
    """
    count = min(workers or os.cpu_count() or 1, len(tasks))
    if count <= 1:
        yield from map(phase.work, tasks)
        return
    if start_method() == "fork":
        get_ready(tasks[0])
    context = multiprocessing.get_context(start_method())  # a tool may have started threads
    with ProcessPoolExecutor(count, context, initializer=begin_worker, initargs=(os.getpid(),)) as pool:
        # The largest blocks first, so that no worker is left alone with one at the end.
        running: dict[Future[Facts], Task] = {
            pool.submit(phase.work, task): task for task in sorted(tasks, key=block_size, reverse=True)
        }
        try:
            meanwhile()
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    yield future.result()
        except BrokenProcessPool:
            raise DataError(
                f"A preparation worker was killed while it worked on {task.block.path} or a block beside it (out of "
                "memory, most often). Lower data.workers or data.block_megabytes and start again: finished shards are "
                "kept."
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def start_method() -> str:
    """``fork`` while this process has one thread, else ``spawn``."""
    return "fork" if THREADS.is_dir() and len(list(THREADS.iterdir())) == 1 else "spawn"


def begin_worker(parent: int) -> None:
    """In a worker: let signals end it at once, and end when the preparing process ends, even by SIGKILL (Linux; it
    would wait for work forever)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # a handler of the preparing process was forked with it
            signal.signal(number, signal.SIG_DFL)
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)

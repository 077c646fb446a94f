"""Runs of a sweep at the same time: as processes that share this machine's devices, or in a scheduler's queue.

Each run is what ``distill run FOLDER`` makes of its own folder, with its own launch folder, rendezvous and logs. The
corpora are prepared first, each once.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs import loader
from configs.cluster import ClusterConfig
from configs.errors import ConfigError, LaunchError, Requeue, ZhengliuError, output_error
from launcher import devices, launch
from launcher.agent import POLL_SECONDS, Asked
from launcher.job import ROOT
from launcher.signals import Stopped

if TYPE_CHECKING:
    from distill_core.config import RunConfig
    from launcher.backends import Backend
    from launcher.job import Job

Ended = tuple["RunConfig", ZhengliuError | None]
"""A run that has come to its end, or is in the queue; and why it failed."""


@dataclass(frozen=True)
class Runs:
    """Those of a sweep that are to be carried out."""

    configs: Sequence[RunConfig]
    titles: Mapping[str, str]
    """Of each by its name, for a person."""
    jobs: Mapping[str, tuple[Backend, Job]]
    at_once: int
    only: str | None = None
    cluster: ClusterConfig | None = None
    cluster_file: str | None = None


def refuse(at_once: int, backend: Backend) -> None:
    """Raises ConfigError: each run takes all of the machines."""
    if at_once > 1 and backend.whole_machines:
        raise ConfigError(
            f"sweep.at_once is {at_once}, but a run on a cluster of kind {backend.cluster.kind} takes all hosts: "
            "set it to 1, or divide the hosts among several cluster files and the runs among several sweeps."
        )


# ---------------------------------------------------------------- corpora


def prepared(runs: Runs) -> tuple[list[RunConfig], dict[Path, list[str]], list[Ended]]:
    """(runs whose corpus stands or will, the jobs that each corpus waits for, runs whose corpus failed)."""
    waits: dict[Path, list[str]] = {}
    broken: dict[Path, ZhengliuError] = {}
    for config in runs.configs:
        folder = config.data_folder
        if folder in waits or folder in broken:
            continue
        backend, _ = runs.jobs[config.name]
        try:
            waits[folder] = launch.prepare_data(config.data, folder, launch.prepares(backend))
        except Requeue:
            raise
        except ZhengliuError as error:
            broken[folder] = error
    good = [config for config in runs.configs if config.data_folder in waits]
    return good, waits, [(c, broken[c.data_folder]) for c in runs.configs if c.data_folder in broken]


# ---------------------------------------------------------------- a scheduler's queue


def in_queue(runs: Runs) -> Iterator[Ended]:
    """Submit all; each waits for the end, good or bad, of the one ``at_once`` before it."""
    good, waits, failed = prepared(runs)
    yield from failed
    numbers: list[str] = []
    for config in good:
        print(f"\n{runs.titles[config.name]}", flush=True)
        behind = numbers[-runs.at_once :][:1] if len(numbers) >= runs.at_once else []
        try:
            numbers += launch.begin(config, runs.only, runs.cluster, waits[config.data_folder], behind)
            yield config, None
        except ZhengliuError as error:
            yield config, error


# ---------------------------------------------------------------- processes of this machine


@dataclass
class Slot:
    """A share of this machine; without GPUs and cores where runs only follow what is at work elsewhere."""

    gpus: Sequence[str] = ()
    """By the words of CUDA_VISIBLE_DEVICES."""
    cores: int | None = None

    def environment(self, ranks: int) -> dict[str, str]:
        """For a launcher of ``ranks``, which takes at most one for each GPU that it sees."""
        found = dict(os.environ)
        if self.gpus:
            found["CUDA_VISIBLE_DEVICES"], ranks = ",".join(self.gpus), min(ranks, len(self.gpus))
        if self.cores is not None:
            found.setdefault("OMP_NUM_THREADS", str(max(1, self.cores // ranks)))
        paths = [p for p in found.get("PYTHONPATH", "").split(os.pathsep) if p and p != str(ROOT)]
        return found | {"PYTHONPATH": os.pathsep.join([str(ROOT), *paths])}


def slots(at_once: int) -> list[Slot]:
    """This machine in equal parts: as many as are wanted, but with GPUs not more than there are."""
    count = devices.gpus()
    listed = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    gpus = (listed or [str(number) for number in range(count)])[:count]
    parts = min(at_once, len(gpus)) if gpus else at_once
    share = len(gpus) // parts
    cores = max(1, devices.cores() // parts)
    return [Slot(gpus[number * share : (number + 1) * share], cores) for number in range(parts)]


@dataclass
class Child:
    """``distill run`` of one run."""

    config: RunConfig
    slot: Slot
    process: subprocess.Popen[bytes]
    log: Path
    began_at: int

    @classmethod
    def start(cls, config: RunConfig, slot: Slot, runs: Runs) -> Child:
        """Raises OutputError: its folder cannot be written."""
        launch.write(config.folder / "config.yaml", loader.to_yaml(config))
        _, job = runs.jobs[config.name]
        guard = [sys.executable, "-I", "-S", str(ROOT / "launcher" / "guard.py"), str(os.getpid())]
        words = [*guard, *command(config, runs)]
        path = config.folder / "logs" / "launch.log"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as log:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=slot.environment(job.ranks),
                    start_new_session=True,
                )
                return cls(config, slot, process, path, log.tell())
        except OSError as error:
            raise output_error(path, error) from error

    def ask_to_stop(self) -> None:
        """As a signal to the command would; a second time: at once."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    def error(self) -> ZhengliuError | None:
        """Of a process that has ended."""
        status = self.process.returncode
        if status == 0:
            return None
        error: ZhengliuError = Requeue(self._said()) if status == Requeue.exit_code else LaunchError(self._said())
        if 0 < status < 256:
            error.exit_code = status
        return error

    def _said(self) -> str:
        """What the command complained of."""
        with self.log.open("rb") as file:
            file.seek(max(self.began_at, self.log.stat().st_size - 65536))
            text = file.read().decode("utf-8", errors="replace").strip()
        *found, message = re.split(r"^distill: ", text, flags=re.MULTILINE)
        status = self.process.returncode
        return message if found else f"its launcher ended with status {status}, without a word. See {self.log}."


def command(config: RunConfig, runs: Runs) -> list[str]:
    """Of one run: the launcher's own, on its folder."""
    only = ["--only", runs.only] if runs.only else []
    cluster = ["--cluster", runs.cluster_file] if runs.cluster_file else []
    return [sys.executable, "-P", "-m", "launcher.cli", "run", str(config.folder), *only, *cluster]


def in_processes(runs: Runs) -> Iterator[Ended]:
    """Carry out all, at most ``at_once`` at the same time.

    Raises:
        Requeue: one was stopped, or this process was asked to stop; all have ended.
        Stopped: by Ctrl-C, likewise.
    """
    good, _, failed = prepared(runs)
    yield from failed
    elsewhere = any(job.followed for _, job in runs.jobs.values())
    count = min(runs.at_once, max(1, len(good)))
    places = [Slot() for _ in range(count)] if elsewhere else slots(count)
    if len(places) < count:
        print(f"sweep: {len(places)} at once instead of {count}, one for each GPU.", flush=True)
    waiting, running, asked, told = list(good), list[Child](), Asked(), 0
    with asked.heeded():
        try:
            while (waiting and asked.who is None) or running:
                free = [slot for slot in places if all(child.slot is not slot for child in running)]
                while waiting and free and asked.who is None:
                    config = waiting.pop(0)
                    try:
                        running.append(Child.start(config, free[0], runs))
                    except ZhengliuError as error:
                        yield config, error
                        continue
                    del free[0]
                    print(f"{runs.titles[config.name]}; its lines: {running[-1].log}", flush=True)
                yield from _ended(running, asked)
                if told < (asked.who is not None) + asked.at_once:
                    told += 1
                    for child in running:
                        child.ask_to_stop()
                time.sleep(POLL_SECONDS)
        finally:
            for child in running:
                child.process.kill()  # an error of this process itself; ranks end with their launcher
                child.process.wait()
    if asked.interrupted is not None:
        raise Stopped(asked.interrupted)
    if asked.who is not None:
        raise Requeue(f"The sweep was stopped by {asked.who}. All runs have ended; the same command continues.")


def _ended(running: list[Child], asked: Asked) -> Iterator[Ended]:
    """Those that have ended since, taken out of ``running``; a stop of one is passed on to all."""
    for child in [child for child in running if child.process.poll() is not None]:
        running.remove(child)
        error = child.error()
        stopped = isinstance(error, Requeue) or (asked.who is not None and error is not None)
        if stopped and asked.who is None:
            asked.who = f"the stop of {child.config.name}"
        print(f"sweep: {child.config.name} {'was stopped' if stopped else 'has ended'}.", flush=True)
        if not stopped:
            yield child.config, error

"""One per node: starts the ranks, watches them, names the one that failed first, leaves none behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from configs.errors import LaunchError, output_error
from launcher import devices
from launcher.signals import Stopped, stop_signals
from launcher.watch import Watch

POLL_SECONDS = 0.1
LAST_LINES = 15
PEER_LOST = 69
# Signals that end a process by no fault of its peers. Its sockets close, and its peers complain, a moment before
# the kernel reports its end; so such an end counts as this much earlier than it was seen.
PRIMARY = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
PRIMARY_HEAD_START = 1.0


@dataclass(frozen=True)
class Job:
    """The ranks of one run on this machine."""

    folder: Path
    """The run folder."""
    ranks: int
    only: str | None = None
    command: Sequence[str] = ()
    """What each rank runs; default: the rank program of ``distill_core``."""
    peer_grace: float = 5.0
    """Seconds that the other ranks get to notice a failed peer, and write their own message, before SIGTERM."""
    stop_grace: float = 30.0
    """Seconds between SIGTERM and SIGKILL."""

    def argv(self) -> list[str]:
        if self.command:
            return list(self.command)
        # -P: what lies in the user's working folder must not shadow a library.
        only = ["--only", self.only] if self.only else []
        return [sys.executable, "-P", "-m", "distill_core.run", str(self.folder.resolve()), *only]


@dataclass
class Started:
    """One rank's process. It is not reaped before the end, so that its group's number stays ours."""

    rank: int
    process: subprocess.Popen[bytes]
    log: Path
    began_at: int
    """Length of the log when this launch began."""
    status: int | None = None
    """Exit status, negative for a signal; None while it runs."""
    ended: float = 0.0
    stopped: bool = False
    """Ended by us, after a peer had failed."""
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._wait, daemon=True)
        self.thread.start()

    def _wait(self) -> None:
        result = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        self.ended = time.time()
        assert result is not None
        self.status = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    def signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # only a zombie is left in it
            os.killpg(self.process.pid, number)


@dataclass(frozen=True)
class Failure:
    """How one rank ended when it did not end well."""

    rank: int
    time: float
    status: int
    facts: Mapping[str, Any]
    """Its ``rank-R.error.json``; empty when it could not write one."""
    log: Path
    lines: list[str]

    @property
    def exit_code(self) -> int:
        return PEER_LOST if self.status < 0 else int(self.facts.get("exit_code") or self.status)


def rank_environment(job: Job, rank: int, rendezvous: str, base: Mapping[str, str]) -> dict[str, str]:
    """``base`` and what a rank needs to find its peers; what the user set about threads and networks stays."""
    environment = dict(base)
    root = str(Path(__file__).resolve().parent.parent)
    paths = [p for p in base.get("PYTHONPATH", "").split(os.pathsep) if p and p != root]
    environment["PYTHONPATH"] = os.pathsep.join([root, *paths])
    environment.setdefault("OMP_NUM_THREADS", str(max(1, devices.cores() // job.ranks)))
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # bars fill a log file with one endless line
    environment.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:torch.distributed.c10d_logger")  # DeepSpeed's
    if devices.gpus(visible=base.get("CUDA_VISIBLE_DEVICES")) == 0:
        environment.setdefault("DS_ACCELERATOR", "cpu")
    return environment | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(job.ranks),
        "LOCAL_WORLD_SIZE": str(job.ranks),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "ZHENGLIU_RENDEZVOUS": rendezvous,
        "PYTHONUNBUFFERED": "1",
    }


def run(job: Job) -> None:
    """Start the ranks of ``job`` and return when all of them have ended well.

    Raises:
        LaunchError: naming the first rank that failed; its ``exit_code`` is that rank's.
        Stopped: after a signal, when every rank has ended.
    """
    logs = job.folder / "logs"
    started: list[Started] = []
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for stale in [*logs.glob("rank-*.error.json"), *logs.glob(".rendezvous-*"), logs / "progress.json"]:
            stale.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(logs, error) from error
    # A file instead of a port: nobody on the network can join, and the folder is the user's own.
    store = logs.resolve() / f".rendezvous-{uuid.uuid4().hex}"
    with stop_signals():
        try:
            for rank in range(job.ranks):
                started.append(_start(job, rank, store.as_posix(), logs))
            _watch(job, started, logs)
        finally:
            _end(job, started)
            store.unlink(missing_ok=True)
    failures = [f for f in (_failure(one, logs) for one in started) if f is not None]
    if failures:
        raise launch_error(min(failures, key=lambda f: f.time), job.ranks)


def _start(job: Job, rank: int, store: str, logs: Path) -> Started:
    path = logs / f"rank-{rank}.log"
    environment = rank_environment(job, rank, f"file://{store}", os.environ)
    guard = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py")), str(os.getpid())]
    try:
        with path.open("ab") as log:
            _header(log, rank, job.ranks)
            process = subprocess.Popen(
                [*guard, *job.argv()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            return Started(rank, process, path, log.tell())
    except OSError as error:
        raise output_error(path, error) from error


def _header(log: BinaryIO, rank: int, ranks: int) -> None:
    log.write(f"=== {time.strftime('%Y-%m-%d %H:%M:%S')} rank {rank} of {ranks} ===\n".encode())
    log.flush()


def _watch(job: Job, started: Sequence[Started], logs: Path) -> None:
    """Return when all ranks have ended, or the grace after the first failure is over."""
    first_failure: float | None = None
    with Watch(started[0].log, started[0].began_at, logs / "progress.json") as watch:
        while any(one.status is None for one in started):
            now = time.monotonic()
            if first_failure is None and any(one.status for one in started):
                first_failure = now
            if first_failure is not None and now - first_failure > job.peer_grace:
                break
            watch.refresh()
            time.sleep(POLL_SECONDS)


def _end(job: Job, started: Sequence[Started]) -> None:
    """End what still runs: SIGTERM, then SIGKILL to the groups; a second signal from outside skips the wait."""
    running = [one for one in started if one.status is None]
    try:
        for one in running:
            one.stopped = True
            one.signal_group(signal.SIGTERM)
        deadline = time.monotonic() + job.stop_grace
        while time.monotonic() < deadline and any(one.status is None for one in running):
            time.sleep(POLL_SECONDS / 2)
    except Stopped:
        pass
    finally:
        for one in started:
            one.signal_group(signal.SIGKILL)  # also what a rank itself left running in its group
        for one in started:
            one.thread.join()
            one.process.wait()


# ---------------------------------------------------------------- what went wrong


def _failure(one: Started, logs: Path) -> Failure | None:
    """None when the rank ended well, or only because :func:`_end` ended it."""
    facts = _facts(logs / f"rank-{one.rank}.error.json")
    if not facts and (one.stopped or not one.status):
        return None
    status = one.status if one.status else 70
    when = float(facts.get("time") or one.ended)
    if not facts and status < 0 and -status in PRIMARY:
        when -= PRIMARY_HEAD_START
    return Failure(one.rank, when, status, facts, one.log, last_lines(one.log, one.began_at))


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return facts if isinstance(facts, dict) else {}
    except (OSError, ValueError):
        return {}


def last_lines(log: Path, began_at: int, count: int = LAST_LINES) -> list[str]:
    """The last lines that this launch wrote into ``log``."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(began_at, size - 65536))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.rstrip()[:500] for line in text.splitlines() if line.strip()][-count:]


def launch_error(failure: Failure, ranks: int) -> LaunchError:
    """The error that names the rank, its stage, its message and its last lines."""
    where = f", in stage {failure.facts['stage']!r}" if failure.facts.get("stage") else ""
    message = f"Rank {failure.rank} of {ranks} failed first{where}: {_what(failure)}"
    if failure.lines:
        message += f"\nIts last lines ({failure.log}):\n" + "\n".join(f"    {line}" for line in failure.lines)
    error = LaunchError(message)
    error.exit_code = failure.exit_code
    return error


def _what(failure: Failure) -> str:
    if failure.facts:
        kind = failure.facts.get("kind", "Error")
        known = f"{kind}: " if failure.exit_code == 70 else ""
        return f"{known}{failure.facts.get('message', '')}"
    if failure.status >= 0:
        return f"it ended with status {failure.status}."
    name = signal.Signals(-failure.status).name
    if -failure.status == signal.SIGKILL:
        return (
            f"it was killed by {name}. That is most often the kernel when memory runs out (see `dmesg`): lower "
            "training.micro_batch_tokens or launch.processes. The run continues from its last checkpoint."
        )
    return f"it was killed by {name}. The run continues from its last checkpoint."

"""One rank's process: how it is started, watched and ended, and what is known when it has failed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from configs.errors import output_error
from launcher.job import Job
from launcher.pulses import NO_LIFE_SECONDS, PulseFile, Stillness, Whereabouts

LAST_LINES = 15
PEER_LOST = 69
REQUEUE = 75
DEFECT = 70
STATUSES = (64, 65, PEER_LOST, DEFECT, 74)
"""Of ranks that failed; any other one (1 of an import that failed, say) is a defect."""
# Signals that end a process by no fault of its peers. Its sockets close, and its peers complain, a moment before
# the kernel reports its end; so such an end counts as this much earlier than it was seen.
PRIMARY = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
PRIMARY_HEAD_START = 1.0
GOES_ON = "What is finished is kept: the same command continues."
ASKED = (-signal.SIGUSR1, -signal.SIGTERM)
"""Of a rank that was asked to stop before it could heed signals: it had nothing to keep."""


@dataclass
class Started:
    """One rank's process. It is not reaped before the end, so that its group's number stays ours."""

    rank: int
    process: subprocess.Popen[bytes]
    log: Path
    began_at: int
    """Length of the log when this launch began."""
    pulse: PulseFile
    status: int | None = None
    """Exit status, negative for a signal; None while it runs."""
    ended: float = 0.0
    stopped: bool = False
    """Ended by us, after a peer had failed."""
    asked: bool = False
    """To end after its step."""
    thread: threading.Thread = field(init=False)
    still: Stillness = field(init=False)

    def __post_init__(self) -> None:
        self.still = Stillness(self.process.pid)
        self.thread = threading.Thread(target=self._wait, daemon=True)
        self.thread.start()

    def _wait(self) -> None:
        result = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        self.ended = time.time()
        assert result is not None
        self.status = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    def where(self) -> Whereabouts:
        """Where it is now. Its process is not reaped, so that its number is nobody else's."""
        return replace(self.pulse.read(), stopped=self.still.seconds())

    def signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # only a zombie is left in it
            os.killpg(self.process.pid, number)

    def ask_to_stop(self) -> None:
        """SIGUSR1 to the rank itself: end after this step, with a checkpoint."""
        self.asked = True
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGUSR1)


def start(job: Job, rank: int, environment: Mapping[str, str], pulse: PulseFile, inherited: Sequence[int]) -> Started:
    """Start a rank in a process group of its own; ``inherited``: open files that it gets."""
    path = job.folder / "logs" / f"rank-{rank}.log"
    try:
        with path.open("ab") as log:
            _header(log, rank, job.world_size)
            process = subprocess.Popen(
                guarded(job.argv(), str(os.getpid())),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=tuple(inherited),
            )
            return Started(rank, process, path, log.tell(), pulse)
    except OSError as error:
        raise output_error(path, error) from error


def guarded(words: Sequence[str], agent: str) -> list[str]:
    """``words``, which die with the process of this number."""
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py")), agent, *words]


def _header(log: BinaryIO, rank: int, ranks: int) -> None:
    log.write(f"=== {time.strftime('%Y-%m-%d %H:%M:%S')} rank {rank} of {ranks} ===\n".encode())
    log.flush()


# ---------------------------------------------------------------- what went wrong


@dataclass(frozen=True)
class Failure:
    """How one rank, or one node, ended when it did not end well."""

    rank: int | None
    """None: the node itself was lost."""
    host: str
    age: float
    """Seconds since it happened, when this was written down."""
    status: int
    where: Whereabouts
    message: str
    """Without rank and place."""
    exit_code: int
    log: str = ""
    lines: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Failure:
        return cls(**{**facts, "where": Whereabouts.from_json(facts["where"])})

    def text(self, world_size: int, nodes: int) -> str:
        """The error that names rank, host, stage, step and section, with its last lines."""
        who = f"Node {self.host}" if self.rank is None else f"Rank {self.rank} of {world_size}"
        host = f" on {self.host}" if nodes > 1 and self.rank is not None else ""
        where = self.where.words()
        message = f"{who}{host} failed first{f', in {where}' if where else ''}: {self.message}"
        if self.lines:
            message += f"\nIts last lines ({self.log}):\n" + "\n".join(f"    {line}" for line in self.lines)
        return message


def failure_of(one: Started, logs: Path, host: str) -> Failure | None:
    """None when the rank ended well, or only because we ended it."""
    facts = _facts(logs / f"rank-{one.rank}.error.json")
    fine = one.stopped or one.status in (0, REQUEUE) or (one.asked and one.status in ASKED)
    if one.status is None or (not facts and fine):
        return None
    status = one.status or DEFECT
    when = float(facts.get("time") or one.ended)
    if not facts and status < 0 and -status in PRIMARY:
        when -= PRIMARY_HEAD_START
    where = one.pulse.read()
    if facts.get("stage"):
        where = Whereabouts(str(facts["stage"]), where.step, where.section)
    code = PEER_LOST if status < 0 else int(facts.get("exit_code") or status)
    code = code if code in STATUSES else DEFECT
    lines = last_lines(one.log, one.began_at)
    message = _what(status, code, facts, where.section)
    return Failure(one.rank, host, time.time() - when, status, where, message, code, str(one.log), lines)


def hung(one: Started, where: Whereabouts, host: str) -> Failure:
    """A rank that made no progress for longer than its section may take."""
    lines = last_lines(one.log, one.began_at)
    return Failure(one.rank, host, 0.0, 0, where, standstill(where), PEER_LOST, str(one.log), lines)


def waited_for(rank: int, where: Whereabouts, host: str, log: Path) -> Failure:
    """A rank behind all others, one of which has waited for it too long; its own node has not called it stuck (yet)."""
    return Failure(rank, host, 0.0, 0, where, standstill(where, waiting=True), PEER_LOST, str(log), last_lines(log, 0))


def standstill(where: Whereabouts, waiting: bool = False) -> str:
    """What is known of a rank that does not go on; ``waiting``: others wait, though its own time is not up."""
    if where.lifeless > NO_LIFE_SECONDS:
        silent = f"it has given no sign of life for {where.lifeless:.0f} s"
        return f"it is stuck; {silent}: it was stopped, or its machine is in trouble. {GOES_ON}"
    if where.stopped > NO_LIFE_SECONDS:
        return f"it is stuck; somebody has stopped it (SIGSTOP), {where.stopped:.0f} s ago. {GOES_ON}"
    there = f"it has been there for {max(where.unchanged, where.lifeless):.0f} s"
    return f"{there}, and others wait. {GOES_ON}" if waiting else f"it is stuck; {there}, while it is alive. {GOES_ON}"


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


def _what(status: int, exit_code: int, facts: Mapping[str, Any], section: str) -> str:
    lower = "data.workers" if section == "prepare" else "training.micro_batch_tokens or launch.processes"
    if facts:
        known = f"{facts.get('kind', 'Error')}: " if exit_code == DEFECT else ""
        return f"{known}{facts.get('message', '')}"
    if status >= 0:
        return f"it ended with status {status}."
    name = signal.Signals(-status).name
    if -status == signal.SIGKILL:
        return (
            f"it was killed by {name}. That is most often the kernel when memory runs out (see `dmesg`): lower "
            f"{lower}. {GOES_ON}"
        )
    return f"it was killed by {name}. {GOES_ON}"

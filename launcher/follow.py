"""The launcher's side of a job whose agents it has started elsewhere: it shows, waits, and passes signals on.

Exit statuses of remote shells and of other launchers are not believed: a run is done when the agent of node 0 has
written so into the launch's folder, and never else.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from configs.errors import ConfigError
from launcher import link
from launcher.agent import POLL_SECONDS, Asked
from launcher.job import Job, write_private
from launcher.ranks import PEER_LOST, STATUSES
from launcher.signals import Stopped
from launcher.verdict import Verdict, read_verdict
from launcher.watch import Watch

BEAT_SECONDS = 0.5
LINGER_SECONDS = 5.0
"""For remote shells to end after the verdict, and for a verdict after the last of them has ended."""


@dataclass
class Shell:
    """A local process (ssh, pdsh, DeepSpeed's runner, mpirun) behind which agents run."""

    name: str
    program: str
    process: subprocess.Popen[bytes]
    said: IO[bytes]
    """What it printed."""

    @classmethod
    def start(cls, name: str, argv: Sequence[str], environment: Mapping[str, str]) -> Shell:
        """Raises ConfigError: there is no such program."""
        said = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            raise ConfigError(f"{argv[0]} cannot be started ({error.strerror}). Is it installed?") from None
        return cls(name, Path(argv[0]).name, process, said)

    def last_words(self, count: int = 5) -> str:
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").splitlines()
        return "\n".join(f"    {line[:500]}" for line in lines[-count:])

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.said.close()


class Beat:
    """``launcher.json``: a number that grows while the launcher lives, and whether it asks the ranks to stop."""

    def __init__(self, place: Path) -> None:
        self.stop: str | None = None
        self.at_once = False
        """Asked a second time: not even the step is to be ended."""
        self._path = place / "launcher.json"
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._number = 0

    @contextlib.contextmanager
    def beating(self) -> Iterator[Beat]:
        self.write()
        thread = threading.Thread(target=self._run, daemon=True, name="beat")
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()

    def _run(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self._try_to_write()

    def _try_to_write(self) -> None:
        with contextlib.suppress(OSError):  # a full disk: the agents will say so, and the next beat may get through
            self.write()

    def ask_to_stop(self, why: str) -> None:
        self.stop = self.stop or why
        self._try_to_write()

    def write(self) -> None:
        with self._lock:
            self._number += 1
            write_private(self._path, json.dumps({"beat": self._number, "stop": self.stop, "at_once": self.at_once}))


def follow(job: Job, shells: Sequence[Shell], beat: Beat) -> None:
    """Show rank 0's lines until there is a verdict.

    Raises:
        LaunchError, Requeue: the verdict, or a shell that ended without one.
        Stopped: Ctrl-C, after the ranks have ended.
    """
    asked = Asked()
    log = job.folder / "logs" / "rank-0.log"
    began_at = log.stat().st_size if log.exists() else 0
    with asked.heeded(), Watch(log, began_at, job.folder / "logs" / "progress.json") as watch:
        try:
            verdict = _await(job, shells, beat, asked, watch)
        finally:
            for shell in shells:
                shell.end()
    if asked.interrupted is not None and verdict.kind == "stopped":
        raise Stopped(asked.interrupted)
    verdict.raise_unless_done()


def _await(job: Job, shells: Sequence[Shell], beat: Beat, asked: Asked, watch: Watch) -> Verdict:
    """Until node 0 has spoken and the shells have ended, or they have ended without a word."""
    lost: Shell | None = None
    ended: float | None = None
    first = FirstAgent(job)
    while True:
        watch.refresh()
        first.warn()
        verdict = read_verdict(job)
        running = [shell for shell in shells if shell.process.poll() is None]
        if asked.who is not None and beat.stop is None:
            beat.ask_to_stop(asked.who)
        if asked.at_once and not beat.at_once:
            beat.at_once = True
            beat.ask_to_stop(str(asked.who))
        broken = [shell for shell in shells if shell.process.poll() not in (None, 0)]
        if broken and lost is None:
            verdict = read_verdict(job)  # again: an agent leaves its own before its shell ends
        if broken and lost is None and verdict is None:
            lost = broken[0]
            beat.ask_to_stop(f"the loss of {lost.name}")
        if ended is None and (verdict is not None or not running or asked.at_once):
            ended = time.monotonic()
        if ended is not None:
            waited = time.monotonic() - ended
            over = waited > LINGER_SECONDS
            if verdict is not None and (over or not running):
                return _final(verdict, lost, asked)
            if verdict is None and over and beat.stop is None:  # a runner that went with status 0
                beat.ask_to_stop(f"the loss of {shells[0].name}")
            # Agents outlive a shell: while node 0's is there, its ranks are being stopped, and nothing may start anew.
            if first.at_work() and not asked.at_once and waited < LINGER_SECONDS + job.timeouts.stop:
                over = False
            if verdict is None and over and asked.at_once:
                return Verdict.stopped(str(asked.who), complete=False)
            if verdict is None and over and (verdict := read_verdict(job)) is None:  # it may just have ended
                return _silence(lost, shells)
        time.sleep(POLL_SECONDS)


class FirstAgent:
    """What the launcher can tell of node 0's agent without reaching it: the file that it writes again and again."""

    def __init__(self, job: Job) -> None:
        self._file, self._patience = job.place / link.FILE, job.timeouts.node
        self._text: str | None = None
        self._heard = 0.0
        self._seen = False

    def _said(self) -> str | None:
        try:
            return self._file.read_text(encoding="utf-8")
        except OSError:
            return None

    def warn(self) -> None:
        """Say once what it warns of: what it prints itself goes to nobody."""
        text = None if self._seen else self._said()
        if text is not None:
            self._seen = True
            if warning := json.loads(text).get("warning"):
                print(warning, flush=True)

    def at_work(self) -> bool:
        """Whether it has begun, has not ended, and was not killed: then its file stays, and stays as it is."""
        text = self._said()
        if text is None:
            return False
        if text != self._text:
            self._text, self._heard = text, time.monotonic()
        return time.monotonic() - self._heard < self._patience


def _final(verdict: Verdict, lost: Shell | None, asked: Asked) -> Verdict:
    """A stop that only we asked for, because a shell had ended, is that shell's failure."""
    if lost is not None and asked.who is None and verdict.stopped_by(f"the loss of {lost.name}"):
        return _silence(lost, [lost])
    return verdict


def _silence(lost: Shell | None, shells: Sequence[Shell]) -> Verdict:
    """Of a shell that ended without a verdict. A status of ours says why no word could be written (a full disk)."""
    shell = lost or shells[0]
    words, status = shell.last_words(), shell.process.poll()
    said = f" It said:\n{words}" if words else ""
    message = f"{shell.name}: `{shell.program}` ended with status {status}, and its agent without a word.{said}"
    code = status if status in STATUSES else PEER_LOST
    return Verdict("failed", message, code, lost.name if lost else None)

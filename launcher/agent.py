"""One per node: starts the ranks, watches them, names the one that failed first, leaves none behind."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import time
import types
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.errors import LaunchError, OutputError, Requeue, explained, output_error
from launcher import network, ranks
from launcher.council import Chief, Council, Member, Report
from launcher.job import Job, rank_environment
from launcher.link import FILE, Hub, Sign, Spoke
from launcher.lock import agent_lock
from launcher.pulses import PulseFile, Whereabouts
from launcher.signals import Stopped
from launcher.verdict import Verdict
from launcher.watch import Watch

POLL_SECONDS = 0.1
LOST_LAUNCHER = "the loss of the launcher"
KILL_GRACE = 1.0
"""Between SIGTERM and SIGKILL to ranks whose job has failed."""


def run(job: Job, node: int = 0, show: bool = True) -> None:
    """Start this node's ranks of ``job`` and return when all ranks of all nodes have ended well.

    Args:
        show: rank 0's log lines on this terminal (node 0 only).

    Raises:
        LaunchError: naming the first rank or node that failed; its ``exit_code`` is that rank's. Or the agents of an
            earlier start are still at work in the run folder.
        Requeue: stopped by SIGTERM or SIGUSR1, after a checkpoint.
        Stopped: by SIGINT or SIGHUP.
    """
    agent = Agent(job, node)
    with agent.asked.heeded(), agent.holding_the_folder():
        try:
            verdict = agent.carry_through(show and node == 0)
        except Exception as error:
            agent.tell(error)
            raise
        finally:
            agent.end()
    if node == 0 and job.place.is_dir():
        # On a full disk a failure stays what it is; a run whose end nobody can read is not done.
        with contextlib.suppress(OutputError) if verdict.kind != "done" else contextlib.nullcontext():
            verdict.save(job.place)
    if agent.asked.interrupted is not None and verdict.kind == "stopped":
        raise Stopped(agent.asked.interrupted)
    verdict.raise_unless_done()


class Asked:
    """What signals have asked for: the first one for the end of the step, the second one for the end at once.

    ``patient``: the second one too has time until SIGKILL, which a scheduler sends itself.
    """

    PLEASE = (signal.SIGTERM, signal.SIGUSR1)
    INTERRUPT = (signal.SIGINT, signal.SIGHUP)

    def __init__(self, patient: bool = False) -> None:
        self.patient = patient
        self.who: str | None = None
        self.at_once = False
        self.interrupted: int | None = None

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self.at_once = self.who is not None and number != signal.SIGUSR1 and not self.patient
        self.who = self.who or signal.Signals(number).name
        if number in self.INTERRUPT:
            self.interrupted = number

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """A signal that was ignored on entry stays ignored: that is how ``nohup`` works."""
        numbers = [n for n in (*self.PLEASE, *self.INTERRUPT) if signal.getsignal(n) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(frozen=True)
class Meeting:
    """Where ranks find their store; rank 0 may have an address of its own."""

    for_all: str
    for_first: str | None = None

    def of(self, rank: int) -> str:
        return self.for_first if rank == 0 and self.for_first is not None else self.for_all


class Agent:
    """The ranks of one node."""

    def __init__(self, job: Job, node: int) -> None:
        self.job, self.node = job, node
        self.host = job.hosts[node] if node < len(job.hosts) else socket.gethostname()
        self.asked = Asked(patient=job.scheduled)
        self.logs = job.folder / "logs"
        self.started: list[ranks.Started] = []
        self.council: Council | None = None
        self._store: Path | None = None
        self._sign: Sign | None = None
        self._told = False
        self._launcher = ("", time.monotonic())
        self._stop_words: str | None = None

    def holding_the_folder(self) -> contextlib.AbstractContextManager[None]:
        """Each start has one first agent, so that no two starts have ranks at work in one folder."""
        if self.node > 0:
            return contextlib.nullcontext()
        return agent_lock(self.job.folder, self.job.timeouts.join, self._unwanted)

    # ------------------------------------------------------------ from start to verdict

    def carry_through(self, show: bool) -> Verdict:
        numbers = range(self.node * self.job.ranks, (self.node + 1) * self.job.ranks)
        self._clear(numbers)
        meeting, interface, inherited = self._meet()
        for rank in numbers:
            pulse = PulseFile()
            environment = rank_environment(
                self.job, rank, meeting.of(rank), os.environ, interface, pulse.path.as_posix()
            )
            self.started.append(ranks.start(self.job, rank, environment, pulse, inherited if rank == 0 else ()))
        for number in inherited:
            os.close(number)
        return self._watch(show)

    def _clear(self, numbers: range) -> None:
        """What an earlier launch left of these ranks."""
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            stale = [self.logs / f"rank-{rank}.error.json" for rank in numbers]
            if self.node == 0:
                stale += [*self.logs.glob(".rendezvous-*"), self.logs / "progress.json"]
            for path in stale:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise output_error(self.logs, error) from error

    def _watch(self, show: bool) -> Verdict:
        assert self.council is not None
        first = self.started[0]
        watch = Watch(first.log, first.began_at, self.logs / "progress.json") if show else contextlib.nullcontext()
        with watch as shown:
            while True:
                verdict = self.council.hear(self.report())
                if verdict is not None:
                    return verdict
                if self.asked.at_once:
                    return Verdict.stopped(str(self.asked.who), complete=False)
                if self.council.stop is not None and not self._told:
                    self._told = True
                    for one in self.started:
                        one.ask_to_stop()
                if shown is not None:
                    shown.refresh()
                time.sleep(POLL_SECONDS)

    def report(self) -> Report:
        """Of this node's ranks, now."""
        places = {one.rank: one.where() for one in self.started}
        statuses = {one.rank: one.status for one in self.started}
        failures = [f for one in self.started if (f := ranks.failure_of(one, self.logs, self.host)) is not None]
        stuck = [
            ranks.hung(one, places[one.rank], self.host)
            for one in self.started
            if statuses[one.rank] is None and places[one.rank].stuck(self.job.timeouts)
        ]
        return Report(self.host, statuses, places, failures, stuck, self._unwanted())

    def _unwanted(self) -> str | None:
        """Who asks for the end."""
        return self.asked.who or self._launcher_says()

    def _launcher_says(self) -> str | None:
        """Whether the launcher, somewhere else, asks for the end, or is gone itself."""
        if not self.job.followed or self._stop_words == LOST_LAUNCHER:
            return self._stop_words
        try:
            text = (self.job.place / "launcher.json").read_text(encoding="utf-8")
            if text != self._launcher[0]:
                self._launcher = (text, time.monotonic())
                facts = json.loads(text)
                self._stop_words = facts["stop"]
                if facts.get("at_once"):
                    self.asked.who, self.asked.at_once = self.asked.who or self._stop_words, True
        except (OSError, ValueError):
            pass
        if self._stop_words is None and time.monotonic() - self._launcher[1] > self.job.timeouts.node:
            self._stop_words = LOST_LAUNCHER
        return self._stop_words

    def tell(self, error: Exception) -> None:
        """Node 0, why this node leaves: it would be taken for lost."""
        if isinstance(self.council, Member):
            known = explained(error)
            message = f"{type(error).__name__}: {error}" if known is None else str(known)
            code = ranks.DEFECT if known is None else known.exit_code
            self.council.tell(ranks.Failure(None, self.host, 0.0, 0, Whereabouts(section=""), message, code))

    # ------------------------------------------------------------ meeting the other nodes

    def _meet(self) -> tuple[Meeting, str, list[int]]:
        """(where each rank finds the store, this node's interface, open files for rank 0)."""
        if self.job.nodes == 1:
            # A file instead of a port: nobody on the network can join, and the folder is the user's own.
            self._store = self.logs.resolve() / f".rendezvous-{uuid.uuid4().hex}"
            self.council = Chief(self.job, None)
            if self.job.followed:
                self._sign = Sign(self.job.place / FILE, {})
            return Meeting(f"file://{self._store.as_posix()}"), self.job.interface or "lo", []
        return self._invite() if self.node == 0 else self._join()

    def _invite(self) -> tuple[Meeting, str, list[int]]:
        """Node 0: wait for the others, then tell them where the ranks' store is."""
        address = network.own_address(self.job.interface, self.job.hosts[1:])
        warning = network.public_warning(address)
        if warning and not self.job.followed:  # there the launcher says it: nobody sees what is printed here
            print(warning, flush=True)
        hub = Hub(self.job.place, address, warning)
        self.council = Chief(self.job, hub)
        limit = self.job.timeouts.join
        deadline = time.monotonic() + limit
        while len(hub.lines) < self.job.nodes - 1:
            missing = [number for number in range(1, self.job.nodes) if number not in hub.lines]
            if time.monotonic() > deadline:
                names = [self.job.hosts[n] if self.job.hosts else f"node {n}" for n in missing]
                error = LaunchError(
                    f"No agent has reported within {limit:.0f} s (supervision.timeouts.join) from: {', '.join(names)}."
                )
                error.host = names[0]
                raise error
            if self._unwanted() is not None:
                raise Requeue(f"Stopped by {self._unwanted()} before the ranks had started.")
            time.sleep(POLL_SECONDS)
        # Rank 0 gets the listening socket itself: the port is never free in between, and bound to this address alone.
        with network.listen(address) as server:
            where = f"tcp://{_bracketed(address)}:{server.getsockname()[1]}"
            inherited = os.dup(server.fileno())
        hub.send_all({"go": where, "host": self.host})
        interface = self.job.interface or network.interface_of(address)
        return Meeting(where, f"{where}?fd={inherited}"), interface, [inherited]

    def _join(self) -> tuple[Meeting, str, list[int]]:
        spoke = Spoke(self.job.place, self.node, self.host, self.job.timeouts.join)
        deadline = time.monotonic() + self.job.timeouts.join
        message = None
        while message is None and time.monotonic() < deadline and self.asked.who is None:
            with contextlib.suppress(queue.Empty):
                message = spoke.inbox.get(timeout=POLL_SECONDS)
                if message is None:
                    break
        if message is None or "go" not in message:
            spoke.close()
            if self.asked.who is not None:
                raise Requeue(f"Stopped by {self.asked.who} before the ranks had started.")
            raise LaunchError(f"{self.host}: the first node ended, or did not answer, before the ranks were started.")
        self.council = Member(self.job, spoke, str(message["host"]))
        interface = self.job.interface or network.interface_of(spoke.address)
        return Meeting(str(message["go"])), interface, []

    # ------------------------------------------------------------ the end

    def end(self) -> None:
        """End what still runs, and leave nothing behind; a signal from outside skips the wait."""
        running = [one for one in self.started if one.status is None]
        for one in running:
            one.stopped = True
            one.signal_group(signal.SIGTERM)
        deadline = time.monotonic() + KILL_GRACE
        while time.monotonic() < deadline and any(one.status is None for one in running) and not self.asked.at_once:
            time.sleep(POLL_SECONDS / 2)
        for one in self.started:
            one.signal_group(signal.SIGKILL)  # also what a rank itself left running in its group
        for one in self.started:
            one.thread.join()
            one.process.wait()
            one.pulse.close()
        if self.council is not None:
            self.council.close()
        if self._sign is not None:
            self._sign.close()
        if self._store is not None:
            self._store.unlink(missing_ok=True)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address

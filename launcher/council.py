"""What becomes of a job whose ranks run on one node or on many.

Each agent makes a :class:`Report` of its own ranks. Node 0 (:class:`Chief`) gathers the reports and comes to one
verdict for all; the others (:class:`Member`) do as it says, and come to their own when it has not been heard for
``timeouts.node`` seconds.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from launcher.job import Job
from launcher.link import Hub, Spoke
from launcher.pulses import Whereabouts
from launcher.ranks import GOES_ON, PEER_LOST, PRIMARY, REQUEUE, Failure, waited_for
from launcher.verdict import Verdict

REPORT_SECONDS = 0.25
A_RANK = "a signal to a rank"


@dataclass
class Report:
    """One node's ranks: their exit statuses (None: running) and where they are, by rank."""

    host: str
    statuses: dict[int, int | None]
    places: dict[int, Whereabouts]
    failures: list[Failure] = field(default_factory=list)
    stuck: list[Failure] = field(default_factory=list)
    stop: str | None = None
    """Who asked for the end: a signal's name, or words."""

    @property
    def ended(self) -> bool:
        return all(status is not None for status in self.statuses.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "host": self.host,
            "statuses": {str(rank): status for rank, status in self.statuses.items()},
            "places": {str(rank): where.to_json() for rank, where in self.places.items()},
            "failures": [failure.to_json() for failure in self.failures],
            "stuck": [failure.to_json() for failure in self.stuck],
            "stop": self.stop,
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Report:
        return cls(
            facts["host"],
            {int(rank): status for rank, status in facts["statuses"].items()},
            {int(rank): Whereabouts.from_json(where) for rank, where in facts["places"].items()},
            [Failure.from_json(failure) for failure in facts["failures"]],
            [Failure.from_json(failure) for failure in facts["stuck"]],
            facts["stop"],
        )


class Council(Protocol):
    """An agent's view of all nodes."""

    stop: str | None
    """Why the ranks are to end after their step; None: they go on."""

    def hear(self, own: Report) -> Verdict | None:
        """Exchange words; a verdict when there is one. Called some ten times a second."""

    def close(self) -> None: ...


class Chief:
    """Node 0, also when it is alone (``hub`` None)."""

    def __init__(self, job: Job, hub: Hub | None) -> None:
        self.stop: str | None = None
        self._job, self._hub = job, hub
        self._reports: dict[int, Report] = {}
        self._heard = {node: time.monotonic() for node in range(1, job.nodes)}
        self._hosts = {node: f"node {node}" for node in range(1, job.nodes)}
        self._failed: dict[int | str, tuple[float, Failure]] = {}
        """By rank or host: when it happened, by this node's clock."""
        self._noticed: float | None = None
        self._gone: set[int] = set()
        """Nodes whose agent has hung up without a word."""
        self._sent = 0.0
        self._deadline: float | None = None

    def hear(self, own: Report) -> Verdict | None:
        now = time.monotonic()
        self._reports[0] = own
        self._read(now)
        for report in self._reports.values():
            for failure in report.failures:
                self._note(failure, now)
        verdict = self._failure(now) or self._standstill() or self._lost(now) or self._end()
        self._ask_to_stop(now)
        if verdict is None and self._deadline is not None and now > self._deadline:
            verdict = Verdict.stopped(str(self.stop), complete=False)
        if self._hub is not None and (verdict is not None or now - self._sent > REPORT_SECONDS):
            self._sent = now
            said = None if verdict is None else verdict.to_json()
            self._hub.send_all({"stop": self.stop, "verdict": said})
        return verdict

    def _read(self, now: float) -> None:
        while self._hub is not None:
            try:
                node, message = self._hub.inbox.get_nowait()
            except queue.Empty:
                return
            if message.get("gone"):
                self._gone.add(node)
                continue
            self._heard[node] = now
            if "left" in message:
                self._note(Failure.from_json(message["left"]), now)
                continue
            if "statuses" in message:
                self._reports[node] = Report.from_json(message)
            self._hosts[node] = message["host"]

    def _note(self, failure: Failure, now: float) -> None:
        key = failure.host if failure.rank is None else failure.rank
        if key not in self._failed:
            self._failed[key] = (now - failure.age, failure)
            self._noticed = self._noticed or now

    def _failure(self, now: float) -> Verdict | None:
        """The first of the failures: at once when it was a kill, else after the peers had time to say theirs."""
        if self._noticed is None:
            return None
        if any(status == REQUEUE for report in self._reports.values() for status in report.statuses.values()):
            return Verdict.stopped(self.stop or A_RANK, complete=False)  # its peers complain that it is gone
        first = min(self._failed.values(), key=lambda noted: noted[0])[1]
        killed = -first.status in PRIMARY
        if not killed and now - self._noticed < self._job.timeouts.peer_grace and not self._nothing_to_wait_for():
            return None
        return Verdict.failure(first, self._job)

    def _nothing_to_wait_for(self) -> bool:
        return len(self._reports) == self._job.nodes and all(report.ended for report in self._reports.values())

    def _standstill(self) -> Verdict | None:
        """Ranks wait for each other, so that many seem stuck when one is: the one that is furthest behind."""
        if not any(report.stuck for report in self._reports.values()):
            return None
        places = [
            (where.progress(), rank, report)
            for report in self._reports.values()
            for rank, where in report.places.items()
            if report.statuses[rank] is None
        ]
        _, rank, report = min(places, key=lambda place: place[0])
        where = report.places[rank]
        said = [failure for failure in report.stuck if failure.rank == rank]
        if said:
            return Verdict.failure(said[0], self._job)
        log = self._job.folder / "logs" / f"rank-{rank}.log"
        return Verdict.failure(waited_for(rank, where, report.host, log), self._job)

    def _lost(self, now: float) -> Verdict | None:
        silent = {
            node: now - heard
            for node, heard in self._heard.items()
            if (node in self._gone or now - heard > self._job.timeouts.node)
            and self._hosts[node] not in self._failed  # it has said why
        }
        if not silent:
            return None
        if asked_for(self.stop):
            return Verdict.stopped(str(self.stop), complete=False)
        node = max(silent, key=lambda number: silent[number])
        places = list(self._reports[node].places.values()) if node in self._reports else []
        return Verdict.failure(lost_node(self._hosts[node], silent[node], places), self._job)

    def _end(self) -> Verdict | None:
        if not self._nothing_to_wait_for():
            return None
        statuses = [status for report in self._reports.values() for status in report.statuses.values()]
        if all(status == 0 for status in statuses):
            return Verdict("done")
        return Verdict.stopped(self.stop or A_RANK, complete=set(statuses) <= {0, REQUEUE})

    def _ask_to_stop(self, now: float) -> None:
        """As somebody asks, or as one rank was asked and has ended: its peers would wait for it."""
        asked = [report.stop for report in self._reports.values() if report.stop is not None]
        if any(report.statuses[rank] == REQUEUE for report in self._reports.values() for rank in report.statuses):
            asked.append(A_RANK)
        if asked and self.stop is None:
            self.stop = asked[0]
            self._deadline = now + self._job.timeouts.stop

    def close(self) -> None:
        if self._hub is not None:
            self._hub.close()


class Member:
    """Any other node."""

    def __init__(self, job: Job, spoke: Spoke, chief: str) -> None:
        self.stop: str | None = None
        self._job, self._spoke, self._chief = job, spoke, chief
        self._heard = time.monotonic()
        self._sent = 0.0
        self._last = ""

    def hear(self, own: Report) -> Verdict | None:
        now = time.monotonic()
        gone = False
        while not self._spoke.inbox.empty():
            message = self._spoke.inbox.get_nowait()
            if message is None:
                gone = True
                continue
            self._heard = now
            if message.get("verdict") is not None:
                return Verdict.from_json(message["verdict"])
            self.stop = message.get("stop")
        news = f"{own.statuses} {own.stop} {len(own.failures)} {len(own.stuck)}"
        if news != self._last or now - self._sent > REPORT_SECONDS:
            self._last, self._sent = news, now
            self._spoke.line.send(own.to_json())
        if gone and asked_for(self.stop or own.stop):
            return Verdict.stopped(str(self.stop or own.stop), complete=False)
        if gone or now - self._heard > self._job.timeouts.node:
            failure = lost_node(self._chief, now - self._heard, list(own.places.values()))
            return Verdict.failure(failure, self._job)
        return None

    def tell(self, failure: Failure) -> None:
        """That this node leaves, and why."""
        self._spoke.line.send({"left": failure.to_json()})

    def close(self) -> None:
        self._spoke.close()


def asked_for(stop: str | None) -> bool:
    """Whether somebody wants the end, so that a node that leaves has not failed: a second signal ends it at once."""
    return stop is not None and not stop.startswith("the loss of")


def lost_node(host: str, seconds: float, places: list[Whereabouts]) -> Failure:
    """A node whose agent is not heard any more: the machine, the network, or the agent is gone."""
    where = min(places, key=Whereabouts.progress, default=Whereabouts(section=""))
    message = (
        f"nothing has been heard of it for {seconds:.1f} s: the machine, its network or its agent is gone. {GOES_ON}"
    )
    return Failure(None, host, seconds, 0, where, message, PEER_LOST)

"""From reports of nodes to one verdict, with a clock and a line that the test holds."""

from __future__ import annotations

import queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.cluster import Timeouts
from launcher import council
from launcher.council import Chief, Member, Report
from launcher.job import Job
from launcher.pulses import Whereabouts
from launcher.ranks import PEER_LOST, Failure

TIMEOUTS = Timeouts(node=10, peer_grace=1.5, stop=20, step=30)


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class FakeLine:
    """Stands for Hub and Spoke: what is put into ``inbox`` was received, ``sent`` is what was sent."""

    def __init__(self) -> None:
        self.inbox: queue.Queue[Any] = queue.Queue()
        self.sent: list[dict[str, Any]] = []
        self.line = SimpleNamespace(send=self.sent.append)

    def send_all(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    def close(self) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(council, "time", clock)
    return clock


@pytest.fixture
def line() -> FakeLine:
    return FakeLine()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path, 2, nodes=2, hosts=["a", "b"], timeouts=TIMEOUTS)


def report(host: str, first: int, *statuses: int | None, **more: Any) -> Report:
    places = {first + place: Whereabouts("student", 3, "backward", 0.1, 0.1) for place in range(len(statuses))}
    return Report(host, {first + place: status for place, status in enumerate(statuses)}, places, **more)


def failure(
    rank: int | None, host: str, age: float = 0.0, message: str = "it broke.", status: int = PEER_LOST
) -> Failure:
    return Failure(rank, host, age, status, Whereabouts("student", 3, "teacher"), message, 69, "log", ["last"])


def theirs(line: FakeLine, said: Report) -> None:
    line.inbox.put((1, said.to_json()))


def test_reports_travel_as_json() -> None:
    said = report("b", 2, 0, None, failures=[failure(2, "b")], stuck=[failure(3, "b")], stop="SIGTERM")
    assert Report.from_json(said.to_json()) == said


def test_done_only_when_all_ranks_of_all_nodes_have_ended_well(clock: Clock, line: FakeLine, job: Job) -> None:
    chief = Chief(job, line)  # type: ignore[arg-type]
    assert chief.hear(report("a", 0, 0, 0)) is None
    theirs(line, report("b", 2, 0, None))
    assert chief.hear(report("a", 0, 0, 0)) is None
    theirs(line, report("b", 2, 0, 0))
    verdict = chief.hear(report("a", 0, 0, 0))
    assert verdict is not None
    assert verdict.kind == "done"
    assert line.sent[-1]["verdict"] == verdict.to_json()


def test_the_first_failure_is_named_after_the_grace(clock: Clock, line: FakeLine, job: Job) -> None:
    """A peer's complaint may be heard before the cause, which lies on another node."""
    chief = Chief(job, line)  # type: ignore[arg-type]
    assert chief.hear(report("a", 0, None, 70, failures=[failure(1, "a", 0.1, "a peer is gone")])) is None
    clock.now += 1
    theirs(line, report("b", 2, None, 69, failures=[failure(3, "b", 2.0)]))
    assert chief.hear(report("a", 0, None, 70)) is None
    clock.now += 0.6
    verdict = chief.hear(report("a", 0, None, 70))
    assert verdict is not None
    assert verdict.kind == "failed"
    assert verdict.exit_code == 69
    assert verdict.host == "b"
    assert verdict.message.startswith(
        "Rank 3 of 4 on b failed first, in stage 'student', step 3, section teacher: it broke."
    )
    assert "    last" in verdict.message


def test_a_kill_is_named_at_once(clock: Clock, line: FakeLine, job: Job) -> None:
    """Nobody can have caused it that would still have to say so."""
    chief = Chief(job, line)  # type: ignore[arg-type]
    assert chief.hear(report("a", 0, None, 70, failures=[failure(1, "a", 0.1, "a peer is gone")])) is None
    theirs(line, report("b", 2, None, -9, failures=[failure(3, "b", 1.0, status=-9)]))
    verdict = chief.hear(report("a", 0, None, 70))
    assert verdict is not None
    assert verdict.message.startswith("Rank 3 of 4 on b failed first")


def test_a_node_that_is_not_heard(clock: Clock, line: FakeLine, job: Job) -> None:
    chief = Chief(job, line)  # type: ignore[arg-type]
    theirs(line, report("b", 2, None, None))
    assert chief.hear(report("a", 0, None, None)) is None
    clock.now += 10.1
    verdict = chief.hear(report("a", 0, None, None))
    assert verdict is not None
    assert verdict.message.startswith("Node b failed first, in stage 'student', step 3, section backward: nothing has")
    assert (verdict.exit_code, verdict.host) == (69, "b")


def test_a_node_whose_agent_hung_up(clock: Clock, line: FakeLine, job: Job) -> None:
    chief = Chief(job, line)  # type: ignore[arg-type]
    theirs(line, report("b", 2, None, None))
    line.inbox.put((1, {"gone": True}))
    verdict = chief.hear(report("a", 0, None, None))
    assert verdict is not None
    assert verdict.host == "b"


def test_of_a_standstill_the_rank_that_is_behind(clock: Clock, line: FakeLine, job: Job) -> None:
    chief = Chief(job, line)  # type: ignore[arg-type]
    behind = report("b", 2, None, None)
    behind.places[3] = Whereabouts("student", 3, "teacher", 29.0, 0.2)
    theirs(line, behind)
    waits = report("a", 0, None, None, stuck=[failure(0, "a")])
    verdict = chief.hear(waits)
    assert verdict is not None
    assert verdict.message.startswith("Rank 3 of 4 on b failed first, in stage 'student', step 3, section teacher")


def test_the_rank_that_was_stopped_is_said_to_be_so_by_whoever_notices_first(
    clock: Clock, line: FakeLine, job: Job
) -> None:
    chief = Chief(job, line)  # type: ignore[arg-type]
    (job.folder / "logs").mkdir()
    (job.folder / "logs" / "rank-3.log").write_text("its last words\n")
    behind = report("b", 2, None, None)  # does not call its rank stuck, which is about to be
    behind.places[3] = Whereabouts("student", 3, "teacher", 29.9, 29.9)
    theirs(line, behind)
    verdict = chief.hear(report("a", 0, None, None, stuck=[failure(0, "a")]))
    assert verdict is not None
    where = "Rank 3 of 4 on b failed first, in stage 'student', step 3, section teacher"
    assert verdict.message.startswith(f"{where}: it is stuck; it has given no sign of life for 30 s")
    assert "its last words" in verdict.message


def test_a_stop_that_anyone_asks_for_reaches_everyone(clock: Clock, line: FakeLine, job: Job) -> None:
    chief = Chief(job, line)  # type: ignore[arg-type]
    theirs(line, report("b", 2, None, None, stop="SIGUSR1"))
    assert chief.hear(report("a", 0, None, None)) is None
    assert chief.stop == "SIGUSR1"
    assert line.sent[-1] == {"stop": "SIGUSR1", "verdict": None}
    theirs(line, report("b", 2, 75, 75))
    verdict = chief.hear(report("a", 0, 75, 75))
    assert verdict is not None
    assert (verdict.kind, verdict.exit_code) == ("stopped", 75)
    assert "Stopped by SIGUSR1. The state of the last step is in a checkpoint." in verdict.message


def test_a_stop_has_an_end(clock: Clock, line: FakeLine, job: Job) -> None:
    chief = Chief(job, line)  # type: ignore[arg-type]
    theirs(line, report("b", 2, None, None))
    assert chief.hear(report("a", 0, None, None, stop="SIGTERM")) is None
    for _ in range(4):
        clock.now += 5.1
        theirs(line, report("b", 2, None, None))
        verdict = chief.hear(report("a", 0, None, None))
    assert verdict is not None
    assert (verdict.kind, verdict.exit_code) == ("stopped", 75)
    assert "were killed" in verdict.message


def test_a_rank_that_stopped_alone_asks_its_peers_to_stop(clock: Clock, line: FakeLine, job: Job) -> None:
    """They wait for it, at a rendezvous or for its gradients."""
    chief = Chief(job, line)  # type: ignore[arg-type]
    theirs(line, report("b", 2, None, 75))
    assert chief.hear(report("a", 0, None, None)) is None
    assert chief.stop == "a signal to a rank"
    assert line.sent[-1] == {"stop": "a signal to a rank", "verdict": None}
    clock.now += TIMEOUTS.stop - 10.5
    assert chief.hear(report("a", 0, None, None)) is None
    clock.now += 10.6
    theirs(line, report("b", 2, None, 75))
    verdict = chief.hear(report("a", 0, None, None))
    assert verdict is not None
    assert (verdict.kind, verdict.exit_code) == ("stopped", 75)


def test_peers_of_a_rank_that_stopped_do_not_fail(clock: Clock, line: FakeLine, job: Job) -> None:
    """One rank got a signal before training steps and is gone; the others complain about it."""
    chief = Chief(job, line)  # type: ignore[arg-type]
    theirs(line, report("b", 2, None, 75))
    verdict = chief.hear(report("a", 0, 70, None, failures=[failure(0, "a")]))
    assert verdict is not None
    assert (verdict.kind, verdict.exit_code) == ("stopped", 75)


def test_a_member_does_as_the_chief_says(clock: Clock, line: FakeLine, job: Job) -> None:
    member = Member(job, line, "a")  # type: ignore[arg-type]
    assert member.hear(report("b", 2, None, None)) is None
    assert Report.from_json(line.sent[-1]).host == "b"
    line.inbox.put({"stop": "SIGTERM", "verdict": None})
    assert member.hear(report("b", 2, None, None)) is None
    assert member.stop == "SIGTERM"
    line.inbox.put({"stop": None, "verdict": {"kind": "done", "message": "", "exit_code": 0, "host": None}})
    verdict = member.hear(report("b", 2, 0, 0))
    assert verdict is not None
    assert verdict.kind == "done"


@pytest.mark.parametrize("hung_up", [True, False])
def test_a_member_without_a_chief(clock: Clock, line: FakeLine, job: Job, hung_up: bool) -> None:
    member = Member(job, line, "a")  # type: ignore[arg-type]
    assert member.hear(report("b", 2, None, None)) is None
    if hung_up:
        line.inbox.put(None)
    else:
        clock.now += 10.1
    verdict = member.hear(report("b", 2, None, None))
    assert verdict is not None
    assert (verdict.kind, verdict.host) == ("failed", "a")


def test_news_are_sent_at_once_and_nothing_else_more_often_than_needed(clock: Clock, line: FakeLine, job: Job) -> None:
    member = Member(job, line, "a")  # type: ignore[arg-type]
    for _ in range(3):
        member.hear(report("b", 2, None, None))
    assert len(line.sent) == 1
    member.hear(report("b", 2, None, -9))
    assert len(line.sent) == 2
    clock.now += council.REPORT_SECONDS + 0.01
    member.hear(report("b", 2, None, -9))
    assert len(line.sent) == 3


def test_a_node_that_says_why_it_leaves_is_not_taken_for_lost(clock: Clock, line: FakeLine, job: Job) -> None:
    chief = Chief(job, line)  # type: ignore[arg-type]
    theirs(line, report("b", 2, None, None))
    assert chief.hear(report("a", 0, None, None)) is None
    why = Failure(None, "b", 0.0, 0, Whereabouts(section=""), "Cannot write /x: the disk is full.", 74)
    Member(job, line, "a").tell(why)  # type: ignore[arg-type]
    line.inbox.put((1, line.sent.pop()))
    line.inbox.put((1, {"gone": True}))
    assert chief.hear(report("a", 0, None, None)) is None
    clock.now += TIMEOUTS.peer_grace + 0.1
    verdict = chief.hear(report("a", 0, None, None))
    assert verdict is not None
    assert (verdict.kind, verdict.exit_code, verdict.host) == ("failed", 74, "b")
    assert "Node b failed first: Cannot write /x" in verdict.message

"""How far a preparation is: counted from what finished blocks report."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from data_prep.documents import Counts
from data_prep.phases import Facts, Phase
from data_prep.plan import Job, block_size

WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class Progress:
    """``blocks``: finished so far, of ``total_blocks``, with those of an earlier start. The rest is of this start:
    ``documents``, ``megabytes`` of text, ``dropped`` documents by reason, ``seconds``; and ``remaining`` seconds,
    None before the first block."""

    phase: str
    blocks: int
    total_blocks: int
    documents: int
    megabytes: float
    seconds: float
    remaining: float | None = None
    dropped: dict[str, int] = field(default_factory=dict)


OnProgress = Callable[[Progress], None]


class Tally:
    """Adds up the blocks of one phase and passes it on."""

    def __init__(self, job: Job, phase: Phase, missing: list[int], on_progress: OnProgress | None) -> None:
        """``missing``: ordinals of the blocks that are still to be done."""
        self._phase, self._total = phase, len(job.tasks)
        self._sizes = {ordinal: max(block_size(job.tasks[ordinal]), 1) for ordinal in missing}
        self._work, self._done = sum(self._sizes.values()), 0
        self._began = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._on_progress = on_progress
        if missing:
            self._show()

    def add(self, facts: Facts) -> None:
        """One more block is finished: its facts."""
        self._counts.update(facts["counts"])
        self._done += self._sizes.pop(facts["ordinal"], 0)
        self._show()

    def _show(self) -> None:
        if self._on_progress is None:
            return
        seconds = time.monotonic() - self._began
        counts = Counts(self._counts)
        self._on_progress(
            Progress(
                self._phase.name,
                self._total - len(self._sizes),
                self._total,
                counts["documents"],
                counts["bytes"] / 1e6,
                seconds,
                seconds * (self._work - self._done) / self._done if self._done else None,
                counts.dropped,
            )
        )


@contextmanager
def watching(job: Job, phase: Phase, on_progress: OnProgress | None) -> Iterator[None]:
    """Look again and again at what others finish in the job's folder, while they are at work elsewhere."""
    waiting = {task.ordinal: task for task in phase.missing(job)}
    tally = Tally(job, phase, list(waiting), on_progress)
    ended = threading.Event()

    def look() -> None:
        for ordinal, task in list(waiting.items()):
            facts = phase.facts(job, task)
            if facts is not None:
                del waiting[ordinal]
                tally.add(facts)

    def again() -> None:
        while not ended.wait(WATCH_SECONDS):
            look()

    thread = threading.Thread(target=again, daemon=True)
    if on_progress is not None:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if on_progress is not None:
            thread.join()
            look()

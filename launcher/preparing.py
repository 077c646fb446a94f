"""What a person sees while data is prepared: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from launcher.watch import duration

if TYPE_CHECKING:
    from data_prep.corpus import Corpus
    from data_prep.progress import Progress as State

LINE_SECONDS = 10.0
REASONS = 3
"""Of so many reasons the live line tells how many documents they cost; the end and the report tell of all."""


class Preparing:
    """A context around ``prepare``; :meth:`update` is its ``on_progress``."""

    def __init__(self, console: Console | None = None, live: bool = True) -> None:
        """``live``: whether the terminal, if it is one, is this line's; else plain lines."""
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._lively = live and self.console.is_terminal
        self._began = self._last = time.monotonic()
        self._worked = False
        self._live: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Preparing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, state: State) -> None:
        self._worked = True
        now = time.monotonic()
        if self._lively:
            self._draw(state)
        elif now - self._last >= LINE_SECONDS:
            self._last = now
            line = f"data: {state.phase} {state.blocks}/{state.total_blocks} blocks, {facts(state)}"
            print(line, file=self.console.file, flush=True)

    def done(self, corpus: Corpus) -> None:
        """One line on the finished data, with what was dropped and why."""
        if self._live is not None:
            self._live.stop()
        if not corpus.has_text:
            line = f"data: no corpus, a tokenizer of {corpus.vocab_size:,} entries; in {corpus.folder}"
            self.console.print(line, markup=False, soft_wrap=True)
            return
        splits = corpus.manifest["splits"]
        counted = ", ".join(f"{split['sequences']:,} {name}" for name, split in splits.items())
        dropped = ", ".join(f"{n:,} {reason}" for reason, n in corpus.manifest["dropped"].items()) or "none"
        how = f"prepared in {duration(time.monotonic() - self._began)}" if self._worked else "ready"
        self.console.print(
            f"data: {how}: sequences {counted}; vocabulary {corpus.vocab_size:,}; documents dropped: {dropped}; "
            f"in {corpus.folder}",
            markup=False,
            soft_wrap=True,
        )

    def _draw(self, state: State) -> None:
        if self._live is None:
            columns = (TextColumn("[bold]data"), BarColumn(), TextColumn("{task.fields[facts]}", markup=False))
            self._live = Progress(*columns, console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        if self._task is None:
            self._task = self._live.add_task("", facts="")
        self._live.update(
            self._task, total=state.total_blocks, completed=state.blocks, facts=f"{state.phase} {facts(state)}"
        )
        self._live.refresh()


def facts(state: State) -> str:
    """Documents, speed, what is left and what was dropped so far, for a person."""
    rate = state.megabytes / state.seconds if state.seconds > 0 else 0.0
    words = [f"{state.documents:,} documents", f"{rate:.1f} MB/s"]
    if state.remaining:
        words.append(f"{duration(state.remaining)} left")
    if state.dropped:
        most = sorted(state.dropped.items(), key=lambda item: (-item[1], item[0]))
        shown = [f"{count:,} {reason}" for reason, count in most[:REASONS]]
        words.append(f"dropped: {', '.join([*shown, '...'] if len(most) > REASONS else shown)}")
    return ", ".join(words)

"""What a person sees while the ranks work: rank 0's new log lines and, on a terminal, a live progress line."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

MAX_READ = 1 << 20
HEADER = re.compile(r"=== \S+ \S+ rank 0 of \d+ ===")
"""What the agent writes above the lines of each start."""


def duration(seconds: float) -> str:
    """``3:05`` or ``1:02:03``."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Watch:
    """A context; call :meth:`refresh` a few times a second.

    No thread refreshes the line: the launcher starts processes, and a fork in the middle of a redraw is trouble.
    """

    def __init__(self, log: Path, offset: int, progress: Path, console: Console | None = None) -> None:
        self.console = console or Console()
        self._log, self._offset, self._progress_file = log, offset, progress
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._partial = ""
        self._stamp = 0
        self._live: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Watch:
        if self.console.is_terminal:
            self._live = Progress(
                TextColumn("[bold]{task.fields[stage]}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[facts]}"),
                console=self.console,
                auto_refresh=False,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._read_log():
            pass
        if self._partial:
            self._show(self._partial)
        if self._live is not None:
            self._live.stop()

    def refresh(self) -> None:
        self._read_log()
        if self._live is not None:
            self._read_progress(self._live)

    def _read_log(self) -> bool:
        try:
            with self._log.open("rb") as file:
                file.seek(self._offset)
                new = file.read(MAX_READ)
        except OSError:
            return False
        self._offset += len(new)
        *lines, self._partial = (self._partial + self._decoder.decode(new)).split("\n")
        for line in lines:
            self._show(line)
        return bool(new)

    def _show(self, line: str) -> None:
        if HEADER.fullmatch(line):
            return
        if self._live is not None:
            self.console.print(Text.from_ansi(line), soft_wrap=True)
        else:
            print(line, file=self.console.file, flush=True)

    def _read_progress(self, live: Progress) -> None:
        try:
            stamp = self._progress_file.stat().st_mtime_ns
            if stamp == self._stamp:
                return
            facts = json.loads(self._progress_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not there yet
            return
        self._stamp = stamp
        stage, shown = describe(facts)
        if self._task is None:
            self._task = live.add_task("", stage="", facts="")
        total, done = facts.get("steps") or 1, facts.get("step") or 0
        live.update(self._task, total=total, completed=done, stage=stage, facts=shown)
        live.refresh()


def describe(facts: dict[str, Any]) -> tuple[str, str]:
    """The two texts of the live line: where the run is, and how fast."""
    stage = str(facts.get("stage") or "")
    if facts.get("stages"):
        stage = f"{stage} ({int(facts.get('stage_index') or 0) + 1}/{facts['stages']})"
    words = []
    if facts.get("loss") is not None:
        words.append(f"loss {facts['loss']:.4g}")
    if facts.get("tokens_per_second") is not None:
        words.append(f"{facts['tokens_per_second']:,.0f} tokens/s")
    if facts.get("utilization") is not None:
        words.append(f"{facts['utilization']:.0%} of the peak")
    if facts.get("seconds_left") is not None:
        words.append(f"{duration(facts['seconds_left'])} left")
    return stage, "  ".join(words)

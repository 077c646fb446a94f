"""What the ranks of this machine are doing: the agent's side of ``distill_core/pulse.py``.

The layout is said twice, because this floor's agent must start without importing torch; a test compares the two.
"""

from __future__ import annotations

import mmap
import struct
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.cluster import Timeouts

SIZE = 256
HEAD, FACTS = struct.Struct("<QQ"), struct.Struct("<dq32s128s")
STEP_SECTIONS = ("data", "teacher", "student", "backward", "optimizer")
ORDER = ("start", "load", "prepare", *STEP_SECTIONS, "evaluate", "checkpoint", "end")
"""Of sections within a step, and of a stage: who is first in it is furthest behind."""
NO_LIFE_SECONDS = 3.0
"""Without a life sign for so long, a rank that is stuck was stopped from outside, or its machine is in trouble."""
LOOK_SECONDS = 1.0
"""Longest time between two looks that counts: an agent that was stopped itself has not seen what its ranks did."""


@dataclass(frozen=True)
class Whereabouts:
    """Where a rank is: ages in seconds, of its last change of section, of its last life sign, and of being stopped."""

    stage: str = ""
    step: int | None = None
    section: str = "start"
    unchanged: float = 0.0
    lifeless: float = 0.0
    stopped: float = 0.0
    """For so long the kernel has called it stopped (SIGSTOP), which no work looks like."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Whereabouts:
        return cls(**facts)

    def limit(self, timeouts: Timeouts) -> float:
        """How long its section may take."""
        if self.section in STEP_SECTIONS:
            return timeouts.step
        named = ("prepare", "evaluate", "checkpoint", "end")
        return float(getattr(timeouts, self.section if self.section in named else "load"))

    def stuck(self, timeouts: Timeouts) -> bool:
        """For longer than its section may take. A missing life sign alone is no proof before that: a long call may keep
        the thread that gives them from running, and ranks of a preparation have none. Being stopped is one."""
        return max(self.unchanged, self.lifeless) > self.limit(timeouts) or self.stopped > timeouts.node

    def progress(self) -> tuple[bool, int, int, float]:
        """Sorts ranks: the one to blame for a standstill comes first."""
        place = ORDER.index(self.section) if self.section in ORDER else 0
        return (max(self.lifeless, self.stopped) < NO_LIFE_SECONDS, self.step or 0, place, -self.unchanged)

    def words(self) -> str:
        """``stage 'student', step 12, section backward``; of a rank that has not begun, what is known."""
        parts = [
            f"stage {self.stage!r}" if self.stage else "",
            "" if self.step is None else f"step {self.step}",
            f"section {self.section}" if self.section not in ("", "start") else "",
        ]
        return ", ".join(part for part in parts if part)


class Stillness:
    """How long the kernel has called a process stopped, by looks that are taken often."""

    def __init__(self, pid: int) -> None:
        self._stat = Path(f"/proc/{pid}/stat")
        self._looked = time.monotonic()
        self._seconds = 0.0

    def seconds(self) -> float:
        """0 while it runs, where it is gone, and where there is no /proc."""
        now = time.monotonic()
        since, self._looked = min(now - self._looked, LOOK_SECONDS), now
        self._seconds = self._seconds + since if self._stopped() else 0.0
        return self._seconds

    def _stopped(self) -> bool:
        try:
            return self._stat.read_bytes().rpartition(b")")[2].split()[0] == b"T"
        except (OSError, IndexError):
            return False


class PulseFile:
    """One rank's file, in this machine's temporary folder."""

    def __init__(self) -> None:
        with tempfile.NamedTemporaryFile(prefix="zhengliu-pulse-", delete=False) as file:
            file.write(bytes(SIZE))
            file.flush()
            self._map = mmap.mmap(file.fileno(), SIZE)
            self.path = Path(file.name)
        self._began = time.monotonic()
        self._signs, self._heard = 0, self._began
        self._facts = Whereabouts()
        self._since = self._began

    def read(self) -> Whereabouts:
        now = time.monotonic()
        signs, changes = HEAD.unpack_from(self._map)
        if signs != self._signs:
            self._signs, self._heard = signs, now
        if changes % 2 == 0 and changes:
            since, step, section, stage = FACTS.unpack_from(self._map, 16)
            if HEAD.unpack_from(self._map)[1] == changes:  # nobody wrote meanwhile
                texts = [text.rstrip(b"\0").decode(errors="replace") for text in (stage, section)]
                self._facts = Whereabouts(texts[0], None if step < 0 else step, texts[1])
                self._since = since
        # Until its first sign a rank imports its libraries, and is not lifeless.
        lifeless = now - self._heard if self._signs else 0.0
        where = self._facts
        return Whereabouts(where.stage, where.step, where.section, now - self._since, lifeless)

    def close(self) -> None:
        self._map.close()
        self.path.unlink(missing_ok=True)

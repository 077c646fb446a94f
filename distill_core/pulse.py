"""Where a rank is, for the agent that watches it: a small mapped file that outlives the rank.

The loop notes each section as it enters it (a few hundred nanoseconds, no system call); a thread adds life signs, so
that a rank that was stopped can be told from one that waits for it. The reader is ``launcher/pulses.py``.

Layout, little-endian, 256 bytes: life signs uint64, changes uint64 (odd while a change is being written), time of the
change float64 (CLOCK_MONOTONIC, which processes of a machine share), step int64 (-1: none), section 32 bytes, stage 128
bytes (UTF-8, filled up with zeros).
"""

from __future__ import annotations

import mmap
import struct
import threading
import time
from typing import Literal

Section = Literal[
    "start", "load", "prepare", "data", "teacher", "student", "backward", "optimizer", "evaluate", "checkpoint", "end"
]
SIZE = 256
LIFE, CHANGES, FACTS = struct.Struct("<Q"), struct.Struct("<Q"), struct.Struct("<dq32s128s")
LIFE_SECONDS = 0.25


class Pulse:
    """The rank's own side. Without a file (tests, notebooks) it only remembers."""

    def __init__(self) -> None:
        self.section: Section = "start"
        self.stage = ""
        self.step: int | None = None
        self._changes = 0
        self._map: mmap.mmap | None = None

    def open(self, path: str, living: bool = True) -> None:
        """Begin to write into the file that the agent has made, and (``living``) to give life signs by a thread."""
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), SIZE)
        self.at(self.section)
        if living:
            threading.Thread(target=self._live, args=(self._map,), daemon=True, name="pulse").start()

    def at(self, section: Section, step: int | None = None, stage: str | None = None) -> None:
        """Enter ``section``; ``step`` counts from 1; ``stage`` None: as before."""
        self.section, self.step = section, step
        if stage is not None:
            self.stage = stage
        if self._map is None:
            return
        name = self.stage.encode()[:128]
        self._changes += 2
        CHANGES.pack_into(self._map, 8, self._changes - 1)
        FACTS.pack_into(self._map, 16, time.monotonic(), -1 if step is None else step, section.encode(), name)
        CHANGES.pack_into(self._map, 8, self._changes)

    def _live(self, file: mmap.mmap) -> None:
        signs = 0
        while True:
            signs += 1
            LIFE.pack_into(file, 0, signs)
            time.sleep(LIFE_SECONDS)


pulse = Pulse()
"""Of this process."""

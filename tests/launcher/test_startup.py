"""What the collector of garbage does in our programs, and what it leaves undone at their end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count() > 1000))  # handlers run in reverse
from launcher.startup import OBJECTS, collect_less
collect_less()
class Knot:
    freed = 0
    def __init__(self):
        self.knot = self
    def __del__(self):
        Knot.freed += 1
for _ in range(3 * OBJECTS):
    Knot()
print(OBJECTS <= Knot.freed <= 3 * OBJECTS)
"""


def test_garbage_is_still_collected_and_nothing_at_the_end() -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["True", "True"], done.stdout

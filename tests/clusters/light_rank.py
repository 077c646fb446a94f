"""A rank without torch, for what happens around ranks: it has a pulse, takes steps, and heeds signals as ranks do.

``light_rank.py FOLDER``: 600 steps of 0.1 s, in which the sections of a step follow each other; the step is kept in
FOLDER/state-RANK, so that a next start can be seen to continue. With FOLDER/finish it ends well, with
FOLDER/exit-RANK with the status that stands there, and with FOLDER/hang-RANK-SECTION it stays in that section,
and leaves FOLDER/hangs-RANK-SECTION.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from distill_core.pulse import Section, pulse

FOLDER, RANK = Path(sys.argv[1]), int(os.environ["RANK"])
SECTIONS: tuple[Section, ...] = ("data", "teacher", "student", "backward", "optimizer")
wanted: list[int] = []


def note(number: int, frame: types.FrameType | None) -> None:
    del frame
    wanted.append(number)


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, note)
    pulse.open(os.environ["ZHENGLIU_PULSE"])
    state = FOLDER / f"state-{RANK}"
    begun = int(state.read_text()) if state.exists() else 0
    (FOLDER / "starts").open("a").write(f"{RANK} of {os.environ['WORLD_SIZE']} from {begun}\n")
    for step in range(begun + 1, begun + 601):
        for section in SECTIONS:
            pulse.at(section, step=step, stage="student")
            time.sleep(0.02)
            while (FOLDER / f"hang-{RANK}-{section}").exists():
                (FOLDER / f"hangs-{RANK}-{section}").touch()
                time.sleep(0.1)
        if (FOLDER / f"exit-{RANK}").exists():
            return int((FOLDER / f"exit-{RANK}").read_text())
        if wanted:
            pulse.at("checkpoint", step=step)
            state.write_text(str(step))
            return 75
        if (FOLDER / "finish").exists():
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())

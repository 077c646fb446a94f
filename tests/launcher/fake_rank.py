"""A rank program for tests of the agent: each rank does the acts that FAKE_<RANK> names, one after another."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(sys.argv[1])
RANK = int(os.environ["RANK"])


def note(exit_code: int, kind: str, message: str) -> None:
    facts = {"time": time.time(), "stage": "student", "kind": kind, "message": message, "exit_code": exit_code}
    (FOLDER / "logs" / f"rank-{RANK}.error.json").write_text(json.dumps(facts))


def act(word: str) -> None:
    name, _, value = word.partition(":")
    if name == "print":
        print(value, flush=True)
    elif name == "sleep":
        time.sleep(float(value))
    elif name == "fail":  # as distill_core.run does for an error of the family
        note(int(value), "DataError", f"message of rank {RANK}")
        os._exit(int(value))
    elif name == "crash":
        note(70, "RuntimeError", f"Connection closed by peer, says rank {RANK}")
        os._exit(70)
    elif name == "exit":
        os._exit(int(value))
    elif name == "kill":
        os.kill(os.getpid(), getattr(signal, value))
    elif name == "ignore":
        signal.signal(getattr(signal, value), signal.SIG_IGN)
    elif name == "heed":  # as real ranks do, at the end of a step
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda *_: os._exit(75))
    elif name == "import":
        importlib.import_module(value)
    elif name == "pulse":
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
        pulse = importlib.import_module("distill_core.pulse").pulse
        pulse.open(os.environ["ZHENGLIU_PULSE"])
        pulse.at(value, step=3, stage="student")
    elif name == "child":  # a process of the rank's own, in its group
        child = subprocess.Popen(["sleep", "300"])
        (FOLDER / f"child-{RANK}.pid").write_text(str(child.pid))
    elif name == "ready":
        (FOLDER / f"ready-{RANK}.part").write_text(str(os.getpid()))
        (FOLDER / f"ready-{RANK}.part").rename(FOLDER / f"ready-{RANK}")
    elif name == "await":
        while not (FOLDER / value).exists():
            time.sleep(0.01)
    elif name == "environment":
        (FOLDER / f"environment-{RANK}.json").write_text(json.dumps(dict(os.environ)))
    elif name == "progress":
        (FOLDER / "logs" / "progress.json").write_text(value)
    else:
        raise AssertionError(word)


for each in os.environ.get(f"FAKE_{RANK}", "").split(";"):
    if each:
        act(each)

"""How a start of a job ended, as the nodes tell it to each other and to the launcher."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from configs.errors import LaunchError, Requeue, output_error
from launcher.job import Job, write_private
from launcher.ranks import REQUEUE, Failure

Kind = Literal["done", "failed", "stopped"]
FILE = "verdict.json"


@dataclass(frozen=True)
class Verdict:
    """``stopped``: asked to, by a signal or by a launcher that is gone; the run can go on."""

    kind: Kind
    message: str = ""
    exit_code: int = 0
    host: str | None = None
    """Of the failure."""

    @classmethod
    def failure(cls, failure: Failure, job: Job) -> Verdict:
        return cls("failed", failure.text(job.world_size, job.nodes), failure.exit_code, failure.host)

    @classmethod
    def stopped(cls, why: str, complete: bool) -> Verdict:
        kept = (
            "The state of the last step is in a checkpoint."
            if complete
            else "Not all ranks reached the end of their step in time (supervision.timeouts.stop) and were killed."
        )
        return cls("stopped", f"Stopped by {why}. {kept} The same command continues.", REQUEUE)

    def stopped_by(self, why: str) -> bool:
        """Whether that was the reason, and not somebody's wish that came before it."""
        return self.kind == "stopped" and self.message.startswith((f"Stopped by {why}. ", f"Stopped by {why} before "))

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "message": self.message, "exit_code": self.exit_code, "host": self.host}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Verdict:
        return cls(facts["kind"], facts["message"], int(facts["exit_code"]), facts.get("host"))

    def raise_unless_done(self) -> None:
        """Raises LaunchError (failed) or Requeue (stopped), with the exit status that the command ends with."""
        if self.kind == "done":
            return
        error: LaunchError = Requeue(self.message) if self.kind == "stopped" else LaunchError(self.message)
        if 0 < self.exit_code < 256:  # nothing else is seen as a failure by whoever waits for the command
            error.exit_code = self.exit_code
        error.host = self.host
        raise error

    def save(self, folder: Path, node: int | None = None) -> None:
        """``node`` None: what node 0 decided for all; else what this node saw.

        Raises:
            OutputError: the run folder cannot be written.
        """
        path = folder / (FILE if node is None else f"node-{node}.json")
        try:
            write_private(path, json.dumps(self.to_json()))
        except OSError as error:
            raise output_error(path, error) from error


def forget(folder: Path, node: int) -> None:
    """What this node said when a scheduler had started it before."""
    for name in (f"node-{node}.json", *([FILE] if node == 0 else [])):
        (folder / name).unlink(missing_ok=True)


def read_verdict(job: Job) -> Verdict | None:
    """What the nodes left: node 0's word for all, else that of whichever node saw a failure."""
    names = [FILE, *(f"node-{node}.json" for node in range(job.nodes))]
    found = [_read(job.place / name) for name in names]
    if found[0] is not None:
        return found[0]
    said = [verdict for verdict in found[1:] if verdict is not None and verdict.kind != "done"]
    return min(said, key=lambda verdict: verdict.kind == "stopped", default=None)


def _read(path: Path) -> Verdict | None:
    try:
        return Verdict.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None

"""What a rank that fails leaves for its agent."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path


def note_failure(path: Path, stage: str | None, error: Exception, exit_code: int) -> None:
    """Write to ``path`` what happened here and when, so that the rank that failed first can be named."""
    facts = {
        "time": time.time(),
        "stage": stage,
        "kind": type(error).__name__,
        "message": str(error),
        "exit_code": exit_code,
    }
    with contextlib.suppress(OSError):  # a full disk is already the message; the exit status still tells
        path.write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")

"""``environment.json``: which versions and which machine made a run. No host name, no environment variables."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launcher import devices

ROOT = Path(__file__).resolve().parent.parent


def describe() -> dict[str, Any]:
    return {
        "launched": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": revision(ROOT),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": processor(),
        "cores": devices.cores(),
        "memory_gigabytes": round(devices.memory_bytes() / 1e9, 1),
        "gpus": devices.gpus(),
        "packages": versions(),
    }


def versions() -> dict[str, str]:
    """Installed version of every distribution of this Python."""
    found = {str(d.metadata["Name"]): d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def revision(folder: Path) -> str | None:
    """The git revision of the checkout in ``folder``, ``+changes`` when it has some; None outside of one."""
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changes else commit


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.processor()


def to_json(hub: Mapping[str, Any] | None = None) -> str:
    """``hub``: the commits of what the run takes from there (pins.py)."""
    return json.dumps(describe() | {"hub": dict(hub or {})}, indent=2, ensure_ascii=False) + "\n"

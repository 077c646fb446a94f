"""What this machine has, without importing torch: cores, memory, GPUs."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path


def cores() -> int:
    """Cores that this process may use: its affinity, and the container's quota."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cores()
    return max(1, available if quota is None else min(available, math.ceil(quota)))


def cgroup_cores(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The container's CPU quota in cores, None without one."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or the container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return total


def free_bytes(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that is free now, or could be freed without harm; not more than the container's limit leaves."""
    free = memory_bytes()
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB$", proc.read_text(encoding="ascii"), re.MULTILINE)
        if found:
            free = min(free, 1024 * int(found.group(1)))
    except OSError:
        pass
    try:
        limit = int((cgroup / "memory.max").read_text())
        return max(0, min(free, limit - int((cgroup / "memory.current").read_text())))
    except (OSError, ValueError):
        return free


def gpus(dev: Path = Path("/dev"), visible: str | None = None) -> int:
    """NVIDIA GPUs that the ranks could use, by their device files; ``visible``: CUDA_VISIBLE_DEVICES.

    Whether torch was built for them is the rank's question: it falls back to the CPU by itself.
    """
    found = sum(re.fullmatch(r"nvidia\d+", p.name) is not None for p in dev.glob("nvidia*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
    if visible is None or not found:
        return found
    listed = [word.strip() for word in visible.split(",") if word.strip()]
    if "-1" in listed:  # CUDA ignores what stands after an invalid index
        listed = listed[: listed.index("-1")]
    return min(found, len(listed))

"""What one host says of itself: ``python -P launcher/doctor_host.py``, over ssh, with the standard library alone.

Standard input: one JSON object, ``{"packages": [names], "peers": [names], "folder": path, "probe": code}``, then any
number of lines ``clock``, each answered with this host's time, then the end. Standard output: one JSON object a line,
the last one with all facts. Nothing stands on the command line.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

SPEED_BYTES = 32 << 20
SECONDS = 120


def say(facts: dict[str, Any]) -> None:
    print(json.dumps(facts), flush=True)


def packages(names: list[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def driver() -> str | None:
    """The NVIDIA driver's version; None without one."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def resolved(peers: list[str]) -> dict[str, list[str]]:
    """Addresses of each name, as this host knows them; none for an unknown one."""
    found: dict[str, list[str]] = {}
    for name in peers:
        try:
            found[name] = sorted({str(where[4][0]) for where in socket.getaddrinfo(name, None)})
        except OSError:
            found[name] = []
    return found


def disk(folder: Path) -> dict[str, Any]:
    """Free bytes, and bytes a second of a file written through to the disk, and read again past this host's cache."""
    path = folder / f".doctor-{uuid.uuid4().hex}"
    block = os.urandom(1 << 20)
    try:
        began = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(SPEED_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        written = time.perf_counter()
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while file.read(1 << 20):
                pass
        read = time.perf_counter()
        return {
            "free": shutil.disk_usage(folder).free,
            "write": SPEED_BYTES / (written - began),
            "read": SPEED_BYTES / (read - written),
        }
    except OSError as error:
        return {"error": f"{folder}: {error.strerror}"}
    finally:
        path.unlink(missing_ok=True)


def shm() -> int | None:
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return None


def torch_facts(probe: str) -> dict[str, Any]:
    """What the probe prints: torch's version and device, and GFLOP/s of a matrix product."""
    try:
        command = [sys.executable, "-P", "-c", probe]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
        facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return facts
    except subprocess.CalledProcessError as error:
        return {"error": (error.stderr.strip().splitlines() or [f"status {error.returncode}"])[-1][:200]}
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)[:200]}


def main() -> None:
    asked = json.loads(sys.stdin.readline())
    say({"ready": True})
    for line in sys.stdin:
        if line.strip() == "clock":
            say({"clock": time.time()})
    say(
        {
            "host": socket.gethostname(),
            "python": platform.python_version(),
            "packages": packages(asked["packages"]),
            "driver": driver(),
            "resolved": resolved(asked["peers"]),
            "disk": disk(Path(asked["folder"])),
            "shm": shm(),
            "torch": torch_facts(asked["probe"]),
        }
    )


if __name__ == "__main__":
    main()

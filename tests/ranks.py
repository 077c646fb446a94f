"""Start a program as several ranks on this machine, as the launcher does, and wait for them."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def start(
    program: Path, world_size: int, *arguments: str, timeout: float = 240.0, extra: dict[str, str] | None = None
) -> None:
    """Run ``program`` as ``world_size`` ranks; raise with their output unless all end with status 0.

    ``extra``: environment variables over the usual ones.
    """
    rendezvous = Path(os.environ.get("TMPDIR", "/tmp")) / f"zhengliu-{uuid.uuid4().hex}"
    processes = []
    for rank in range(world_size):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "GLOO_SOCKET_IFNAME": "lo",
            "ZHENGLIU_RENDEZVOUS": f"file://{rendezvous}",
            "PYTHONPATH": str(ROOT),
            **(extra or {}),
        }
        command = [sys.executable, str(program), *arguments]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True))
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
        rendezvous.unlink(missing_ok=True)
    failed = [i for i, process in enumerate(processes) if process.returncode != 0]
    assert not failed, f"rank {failed[0]} ended with {processes[failed[0]].returncode}:\n{outputs[failed[0]][-3000:]}"

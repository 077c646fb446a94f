"""Start a program as several ranks on this machine, as the launcher does, and wait for them."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def start(
    program: Path,
    world_size: int,
    *arguments: str,
    timeout: float = 240.0,
    extra: dict[str, str] | None = None,
    status: int = 0,
) -> list[str]:
    """Run ``program`` as ``world_size`` ranks; raise with their output unless all end with ``status``.

    ``extra``: environment variables over the usual ones.

    Returns:
        What each rank wrote.
    """
    rendezvous = Path(os.environ.get("TMPDIR", "/tmp")) / f"zhengliu-{uuid.uuid4().hex}"
    processes, logs = [], []
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
        logs.append(rendezvous.with_suffix(f".rank-{rank}.log"))
        with logs[-1].open("wb") as log:  # a pipe would fill up while another rank is waited for
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        for process in processes:
            process.wait(timeout=timeout)
    finally:
        for process in processes:
            process.kill()
        outputs = [log.read_text(encoding="utf-8", errors="replace") for log in logs]
        for path in (rendezvous, *logs):
            path.unlink(missing_ok=True)
    failed = [i for i, process in enumerate(processes) if process.returncode != status]
    assert not failed, f"rank {failed[0]} ended with {processes[failed[0]].returncode}:\n{outputs[failed[0]][-3000:]}"
    return outputs

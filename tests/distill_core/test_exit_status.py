"""How a rank ends, by what went wrong in it; each error is a real one where a machine can be made to give it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from configs.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LaunchError,
    OutputError,
    Requeue,
    TrainingError,
)
from distill_core import run
from distill_core.run import rank_program


def raising(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def full_disk() -> None:
    with open("/dev/full", "w") as file:
        file.write("x")


def no_peer() -> None:
    """A store whose other rank never comes."""
    import datetime

    dist.TCPStore("127.0.0.1", 0, 2, True, timeout=datetime.timedelta(seconds=0.2))


GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:525] Connection closed by peer [10.0.0.2]:33210"
WAYS: dict[str, tuple[Callable[[], object], int, str]] = {
    "done": (lambda: None, 0, ""),
    "usage": (raising(ConfigError("m")), 64, "m"),
    "data": (raising(DataError("m")), 65, "m"),
    "checkpoint": (raising(CheckpointError("m")), 65, "m"),
    "lost": (raising(LaunchError("m")), 69, "m"),
    "training": (raising(TrainingError("m")), 70, "m"),
    "output": (raising(OutputError("m")), 74, "m"),
    "another turn": (raising(Requeue("m")), 75, ""),
    "a full disk": (full_disk, 74, "The disk is full"),
    "a disk over its quota": (raising(OSError(errno.EDQUOT, "Disk quota exceeded", "/x")), 74, "Cannot write /x"),
    "a broken disk": (raising(OSError(errno.EIO, "Input/output error")), 74, "Input/output error"),
    "a file that we forgot": (lambda: Path("/no/such/file").read_text(), 70, "No such file"),
    "an import that fails": (lambda: __import__("no_such_module"), 70, "no_such_module"),
    "a defect": (lambda: [][0], 70, "list index"),
    "out of memory": (lambda: bytearray(1 << 62), 64, "There is not enough memory"),
    "out of memory in torch": (lambda: torch.empty(1 << 55), 64, "There is not enough memory (["),
    "out of memory on a GPU": (raising(torch.OutOfMemoryError("CUDA out of memory. Tried")), 64, "(CUDA out of memory"),
    "a peer closed the connection": (raising(RuntimeError(GLOO)), 69, "The connection to another rank broke"),
    "no peer came": (no_peer, 69, "The connection to another rank broke"),
}


@pytest.mark.parametrize("way", WAYS)
def test_how_a_rank_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    work, status, message = WAYS[way]
    monkeypatch.setattr(run.stopping, "heed", lambda: None)
    monkeypatch.setenv("RANK", "3")
    (tmp_path / "logs").mkdir()
    assert rank_program(tmp_path, work) == status  # type: ignore[arg-type]
    path = tmp_path / "logs" / "rank-3.error.json"
    assert path.exists() == (status not in (0, 75))
    if path.exists():
        facts = json.loads(path.read_text())
        assert facts["exit_code"] == status
        assert message in facts["message"]


def test_a_full_disk_still_has_its_status(tmp_path: Path) -> None:
    """When not even the message can be written."""
    (tmp_path / "logs").mkdir()
    os.symlink("/dev/full", tmp_path / "logs" / "rank-0.error.json")
    assert rank_program(tmp_path, full_disk) == 74

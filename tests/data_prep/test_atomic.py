"""What is removed of unfinished work: only what is surely nobody's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import atomic


def ended() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_what_dead_processes_of_this_machine_left_goes(tmp_path: Path) -> None:
    host, dead = os.uname().nodename, ended()
    gone = tmp_path / f"{atomic.ASIDE}{atomic.machine()}-{dead}-00ff"
    kept = [
        tmp_path / f"{atomic.ASIDE}{atomic.machine()}-{os.getppid()}-00ff",
        tmp_path / f"{atomic.ASIDE}elsewhere-0123456789ab-{dead}-00ff",
        tmp_path / f"{atomic.ASIDE}{host}-0123456789ab-{dead}-00ff",  # another machine of the same name
    ]
    for path in (gone, *kept):
        path.mkdir()
    atomic.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    atomic.sweep(tmp_path, everything=True)
    assert not list(tmp_path.iterdir())


def test_a_machine_is_the_same_for_all_its_processes(tmp_path: Path) -> None:
    code = "from data_prep.atomic import aside_of; from pathlib import Path; print(aside_of(Path('x')))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"{atomic.ASIDE}{atomic.machine()}-")
    assert atomic.machine().startswith(f"{os.uname().nodename}-")


def test_another_start_or_container_of_it_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process numbers are others."""
    before = atomic.machine()
    atomic.machine.cache_clear()
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[7]")
    try:
        assert atomic.machine() != before
    finally:
        atomic.machine.cache_clear()

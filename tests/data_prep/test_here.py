"""Workers on this machine: forked where that is safe, gone when they should be, free of what only others need."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_prep.executors.here import begin_worker, start_method
from tests.data_prep.sabotage import end_of, forked
from tests.data_prep.test_pipeline import ROOT, small, tree

NOT_IN_A_WORKER = ("torch", "transformers", "datasets", "pyarrow", "matplotlib", "tensorboard", "jinja2", "datatrove")
PREPARE = """
import sys, threading
from pathlib import Path
from data_prep.config import DataConfig
from data_prep.executors import here
from data_prep.pipeline import prepare
if __name__ == '__main__':
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    config = DataConfig.model_validate_json((folder / 'config.json').read_text())
    ended = threading.Event()
    for _ in range(threads):
        threading.Thread(target=ended.wait).start()
    prepare(config, folder / f'data-{threads}')
    print(here.start_method())
    ended.set()
"""


def child(work: object, tmp_path: Path) -> int:
    return forked(work, str(tmp_path / "log"))  # type: ignore[arg-type]


def test_one_thread_is_forked_and_more_are_not(tmp_path: Path) -> None:
    def work() -> None:  # a child that was forked has one thread, whatever its parent has
        assert start_method() == "fork"
        ended = threading.Event()
        thread = threading.Thread(target=ended.wait)
        thread.start()
        assert start_method() == "spawn"
        ended.set()
        thread.join()
        while start_method() != "fork":  # the system takes a moment to forget it
            time.sleep(0.001)

    assert end_of(child(work, tmp_path)) == 0, (tmp_path / "log").read_text()


def test_no_list_of_threads_is_no_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.executors.here.THREADS", tmp_path / "none")
    assert start_method() == "spawn"


def test_forked_and_spawned_workers_make_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(small(tmp_path, workers=2).model_dump_json())
    (tmp_path / "program.py").write_text(PREPARE)
    for threads, method in ((0, "fork"), (1, "spawn")):
        command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path), str(threads)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout.split() == [method], done.stderr
    assert tree(tmp_path / "data-0") == tree(tmp_path / "data-1")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_a_worker_at_once(tmp_path: Path, number: signal.Signals) -> None:
    """Whatever the preparing process does on them: its handler was forked with it."""

    def work() -> None:
        signal.signal(number, lambda *_: None)
        begin_worker(os.getppid())
        (tmp_path / "ready").touch()
        time.sleep(60)

    pid = child(work, tmp_path)
    while not (tmp_path / "ready").exists():
        time.sleep(0.002)
    os.kill(pid, number)
    assert end_of(pid) == -number


def test_ignored_signals_stay_ignored(tmp_path: Path) -> None:
    def work() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        begin_worker(os.getppid())
        os.kill(os.getpid(), signal.SIGHUP)

    assert end_of(child(work, tmp_path)) == 0


def test_a_worker_ends_with_the_preparing_process(tmp_path: Path) -> None:
    def work() -> None:
        def worker() -> None:
            begin_worker(os.getppid())
            (tmp_path / "worker").write_text(str(os.getpid()))
            time.sleep(60)

        forked(worker, str(tmp_path / "log"))
        time.sleep(60)

    pid = child(work, tmp_path)
    while not (tmp_path / "worker").exists() or not (tmp_path / "worker").read_text():
        time.sleep(0.002)
    worker = int((tmp_path / "worker").read_text())
    os.kill(pid, signal.SIGKILL)
    assert end_of(pid) == -signal.SIGKILL
    state = Path(f"/proc/{worker}/stat")
    until = time.monotonic() + 20
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] not in "ZX":
        assert time.monotonic() < until
        time.sleep(0.002)


def test_what_a_worker_has_no_use_for_is_not_imported(tmp_path: Path) -> None:
    """It would cost each spawned worker, and each start on a prepared folder, seconds and megabytes."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from data_prep.pipeline import begin, locked, prepare\n"
        "from data_prep.block import get_ready, prepare_block\n"
        "from tests.data_prep.test_pipeline import small\n"
        "folder = Path(sys.argv[1])\n"
        "with locked(folder / 'data'):\n"
        "    job = begin(small(folder), folder / 'data')\n"
        "get_ready(job.tasks[0])\n"
        "prepare_block(job.tasks[0])\n"
        f"print([name for name in {NOT_IN_A_WORKER} if name in sys.modules])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr

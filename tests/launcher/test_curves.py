"""``distill monitor``: the real TensorBoard, on the loopback interface, and gone with the command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from launcher import curves

ROOT = Path(__file__).parents[2]


def answers(port: int) -> bool:
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def test_it_serves_here_and_ends_with_the_command(run_file: Path) -> None:
    (run_file.parent / "runs" / "small").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "launcher.cli", "monitor", str(run_file), "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not answers(port):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=20)
        assert process.returncode == 143
        assert f"http://127.0.0.1:{port}/" in said
        assert not answers(port)
    finally:
        process.kill()
        process.wait()


def test_it_is_never_open_to_the_network(tmp_path: Path) -> None:
    words = curves.command(tmp_path, 6006)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert "--bind_all" not in words
    assert words[words.index("--logdir") + 1] == str(tmp_path / "stages")


def test_the_corpus_s_page_is_shown_too(tmp_path: Path) -> None:
    corpus = tmp_path / "data" / "tensorboard"
    assert "--logdir" in curves.command(tmp_path, 6006, corpus)
    corpus.mkdir(parents=True)
    words = curves.command(tmp_path, 6006, corpus)
    assert words[words.index("--logdir_spec") + 1] == f"stages:{tmp_path / 'stages'},corpus:{corpus}"

"""``distill monitor``: the TensorBoard program over a run's curves and its corpus."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.errors import DataError

HOST = "127.0.0.1"


def command(folder: Path, port: int, corpus: Path | None = None, runs: Sequence[str] = ()) -> list[str]:
    """TensorBoard's; ``runs``: names of a sweep's runs, where ``folder`` is that of a sweep."""
    guard = str(Path(__file__).with_name("guard.py"))
    shown = {name: folder / name / "stages" for name in runs} or {"stages": folder / "stages"}
    if corpus is not None and corpus.is_dir():  # only this folder of the data: the others would be searched, too
        shown["corpus"] = corpus
    where = ["--logdir_spec", ",".join(f"{name}:{path}" for name, path in shown.items())]
    if list(shown) == ["stages"]:
        where = ["--logdir", str(shown["stages"])]
    words = ["-P", "-m", "tensorboard.main", *where, "--host", HOST, "--port", str(port)]
    return [sys.executable, "-I", "-S", guard, str(os.getpid()), sys.executable, *words]


def serve(folder: Path, port: int, data: Path | None = None, runs: Sequence[str] = ()) -> int:
    """Run TensorBoard until it ends or is stopped; its exit status.

    Raises:
        DataError: there is no such run.
    """
    if not folder.is_dir():
        raise DataError(f"There is no run in {folder}; start it first, or check `name` and `output`.")
    print(f"TensorBoard: http://{HOST}:{port}/   (Ctrl-C ends it)")
    print(f"From another machine: ssh -L {port}:{HOST}:{port} THIS_HOST, then open the same address there.", flush=True)
    process = subprocess.Popen(command(folder, port, data and data / "tensorboard", runs))
    try:
        return process.wait()
    finally:
        process.terminate()
        process.wait()

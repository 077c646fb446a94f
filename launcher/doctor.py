"""``distill doctor``: is this machine fit for a run? Each finding has a remedy. Hosts: ``doctor_hosts.py``."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher import devices

State = Literal["ok", "warn", "fail"]
COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}
FLOORS = {
    "torch": "2.11",
    "deepspeed": "0.19",
    "transformers": "5.17",
    "sentencepiece": "0.2.1",
    "tokenizers": "0.22",
    "safetensors": "0.5",
    "numpy": "1.26",
    "numba": "0.60",
    "pydantic": "2.7",
    "tensorboard": "2.16",
}
"""As in setup.py (a test compares)."""
GIGABYTE = 1e9
PROBE_SECONDS = 120

TORCH_PROBE = """
import json, time, torch
facts = {"version": torch.__version__, "cuda": torch.cuda.is_available(), "threads": torch.get_num_threads()}
device = "cuda" if facts["cuda"] else "cpu"
facts["device"] = torch.cuda.get_device_name(0) if facts["cuda"] else "cpu"
facts["bf16"] = torch.cuda.is_bf16_supported(including_emulation=False) if facts["cuda"] else True
n = 4096 if facts["cuda"] else 512
for name in ("float32", "bfloat16"):
    a = torch.randn(n, n, device=device).to(getattr(torch, name))
    for _ in range(3):
        a @ a
    if facts["cuda"]:
        torch.cuda.synchronize()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < 0.3:
        a @ a
        done += 1
        if facts["cuda"]:
            torch.cuda.synchronize()
    facts[name] = 2 * n**3 * done / (time.perf_counter() - began) / 1e9
print(json.dumps(facts))
"""
PRECISION_PROBE = """
from distill_core.precision import here
print(json.dumps(facts | {"precision": here()}))
"""

GLOO_PROBE = """
import datetime, sys, torch, torch.distributed as dist
dist.init_process_group("gloo", init_method=sys.argv[1], rank=int(sys.argv[2]), world_size=2,
                        timeout=datetime.timedelta(seconds=60))
value = torch.ones(1)
dist.all_reduce(value)
assert value.item() == 2
dist.destroy_process_group()
"""


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    what: str
    state: State
    found: str
    remedy: str = ""


def examine(folder: Path) -> Iterator[Finding]:
    """All findings for a run in ``folder``, one after another; the slow ones last."""
    yield python()
    yield from packages()
    yield cores()
    yield memory()
    yield disk(folder)
    yield shared_memory()
    yield open_files()
    yield segmenter()
    torch = _guarded("torch", torch_facts)
    if isinstance(torch, Finding):
        yield torch
        return
    yield accelerator(torch)
    yield bf16(torch)
    yield gloo()


def show(findings: Iterator[Finding], console: Console | None = None, subject: str = "This machine is") -> int:
    """Print the table; 0 when the machine is fit (or the hosts are), 1 when something fails."""
    console = console or Console()
    table = Table("", "", "found", "remedy", show_edge=False, pad_edge=False)
    states = []
    for finding in findings:
        states.append(finding.state)
        table.add_row(
            Text(finding.state, COLOURS[finding.state]), finding.what, Text(finding.found), Text(finding.remedy)
        )
    console.print(table)
    verdict = f"{subject} not fit for a run." if "fail" in states else f"{subject} fit for a run."
    console.print(Text(verdict, COLOURS["fail" if "fail" in states else "ok"]))
    return int("fail" in states)


# ---------------------------------------------------------------- without torch


def version(text: str) -> tuple[int, ...]:
    """``2.13.0+cpu`` -> (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3])


def python() -> Finding:
    found = platform.python_version()
    if version(found) >= (3, 11):
        return Finding("python", "ok", found)
    return Finding("python", "fail", found, "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.12 install")


def packages(floors: dict[str, str] = FLOORS) -> Iterator[Finding]:
    for name, floor in floors.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "fail", "not installed", "make install")
            continue
        old = version(found) < version(floor)
        yield Finding(name, "fail" if old else "ok", found, f"{floor} or newer is needed: make install" if old else "")


def cores() -> Finding:
    found = devices.cores()
    if found >= 2:
        return Finding("cores", "ok", str(found))
    return Finding("cores", "warn", str(found), "Works, slowly; take launch.processes=1")


def memory(needed: float = 4 * GIGABYTE) -> Finding:
    total = devices.memory_bytes()
    found = f"{total / GIGABYTE:.1f} GB"
    if total >= needed:
        return Finding("memory", "ok", found)
    return Finding("memory", "warn", found, "Take launch.processes=1 and a small training.micro_batch_tokens")


def disk(folder: Path, needed: float = 2 * GIGABYTE) -> Finding:
    """Is the nearest existing parent of ``folder`` writable, with room? Leaves nothing there."""
    what, there = "output folder", folder.absolute()
    while not there.exists():
        there = there.parent
    probe = there / f".doctor-{uuid.uuid4().hex}"
    try:
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding(what, "fail", f"{there}: {error.strerror}", "Choose a folder that you may write: output=...")
    found = f"{free / GIGABYTE:.1f} GB free in {there}"
    if free >= needed:
        return Finding(what, "ok", found)
    return Finding(what, "warn", found, "Free some space, or choose another disk: output=...")


def shared_memory(path: Path = Path("/dev/shm"), needed: float = 64e6) -> Finding:
    try:
        free = shutil.disk_usage(path).free
    except OSError as error:
        return Finding(str(path), "warn", str(error.strerror), "Only needed by NCCL and worker processes")
    found = f"{free / GIGABYTE:.2f} GB free"
    if free >= needed:
        return Finding(str(path), "ok", found)
    return Finding(str(path), "warn", found, "In a container: docker run --shm-size=1g")


def open_files(needed: int = 1024) -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return Finding("open files", "ok", "unlimited" if soft == resource.RLIM_INFINITY else str(soft))
    return Finding("open files", "warn", str(soft), "ulimit -n 4096; a corpus of many shards needs several each")


def segmenter() -> Finding:
    try:
        return Finding("jieba", "ok", importlib.metadata.version("jieba"))
    except importlib.metadata.PackageNotFoundError:
        return Finding("jieba", "fail", "not installed", "make install, or data.segment.kind=none (no whole words)")


# ---------------------------------------------------------------- with torch, in processes of its own


def _guarded(what: str, probe: Callable[[], dict[str, Any]]) -> dict[str, Any] | Finding:
    try:
        return probe()
    except subprocess.TimeoutExpired:
        return Finding(what, "fail", f"no answer in {PROBE_SECONDS} s", "Is the machine overloaded?")
    except subprocess.CalledProcessError as error:
        lines = str(error.stderr).strip().splitlines() or [f"status {error.returncode}"]
        return Finding(what, "fail", lines[-1][:200], "make install")


def torch_facts() -> dict[str, Any]:
    """What torch says of this machine, a short matrix product in fp32 and bf16 (GFLOP/s), and `precision: auto`."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", TORCH_PROBE + PRECISION_PROBE],
        capture_output=True,
        text=True,
        check=True,
        timeout=PROBE_SECONDS,
    )
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def accelerator(torch: dict[str, Any]) -> Finding:
    gpus = devices.gpus()
    if torch["cuda"]:
        return Finding("accelerator", "ok", f"{torch['device']} ({gpus} visible)")
    if gpus:
        remedy = "This torch was built without CUDA, or the driver does not answer (nvidia-smi)"
        return Finding("accelerator", "warn", f"{gpus} GPU, but torch cannot use it", remedy)
    return Finding("accelerator", "ok", f"none; {torch['threads']} threads on the CPU")


def bf16(torch: dict[str, Any]) -> Finding:
    full, half = torch["float32"], torch["bfloat16"]
    found = f"{half:,.0f} GFLOP/s in bf16, {full:,.0f} in fp32; precision: auto is {torch['precision']}"
    if not torch["bf16"]:
        remedy = f"This GPU only emulates it: training.precision={torch['precision']}, or auto"
        return Finding("bf16", "warn", found, remedy)
    if half < 0.8 * full:
        return Finding("bf16", "warn", found, "Slower than fp32 here: training.precision=fp32")
    return Finding("bf16", "ok", found)


def gloo() -> Finding:
    """Can two processes meet on the loopback interface?"""
    environment = {"GLOO_SOCKET_IFNAME": "lo", **os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/store"
        started = [
            subprocess.Popen(
                [sys.executable, "-P", "-c", GLOO_PROBE, meeting, str(rank)],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            errors = [process.communicate(timeout=PROBE_SECONDS)[1] for process in started]
        except subprocess.TimeoutExpired:
            errors = [f"no answer in {PROBE_SECONDS} s"]
        finally:
            for process in started:
                process.kill()
                process.wait()
    if all(process.returncode == 0 for process in started):
        return Finding("two ranks", "ok", "met on the loopback interface")
    said = [line for error in errors for line in str(error).strip().splitlines()[-1:]]
    remedy = "Is the interface up (ip link)? GLOO_SOCKET_IFNAME names another one"
    return Finding("two ranks", "fail", (said or ["could not meet"])[0][:200], remedy)

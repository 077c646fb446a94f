"""More ranks: speed against one rank, and bytes on the wire against one all-reduce of the student's gradients.

    python -m benchmarks.scaling [--ranks 1 2 4] [--vocabulary vocab.txt] [FILES...]

Ranks are processes of this machine over gloo, with one thread each, in the real training loop. More ranks than cores
say nothing about speed; their bytes are right all the same. What is counted is what a rank sends when each collective
is done in a ring, the cheapest way: 2 (n - 1) / n of the tensor for an all-reduce, (n - 1) / n for its two halves.
ZeRO 2 and 3 reduce at every micro-step.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.step.ours import Precision, build_parts, real_loop, run_config
from benchmarks.step.plain import saved_teacher
from benchmarks.step.record import table
from benchmarks.step.settings import BASE, H256, Setting, Shape
from benchmarks.step.text import prepared
from data_prep.corpus import Corpus
from distill_core.engine import Rank, start_ranks, stop_ranks
from distill_core.record import parameters

SLIGHT = Shape(6, 64, 2, 128)
"""A teacher that costs nothing: bytes depend on the student alone."""
TRAFFIC = Setting("traffic", SLIGHT, H256, "minirbt", "lines-128", 16)
SPEED = Setting("packed-128", BASE, H256, "minirbt", "packed-128", 16)


@dataclass(frozen=True)
class Case:
    """``micro_steps``: 1, or about so many."""

    precision: Precision
    zero_stage: int
    micro_steps: int


KINDS: list[tuple[Precision, int]] = [("fp32", 0), ("fp32", 1), ("bf16", 1), ("bf16", 2), ("bf16", 3)]
CASES = [Case(precision, zero, micro_steps) for micro_steps in (1, 4) for precision, zero in KINDS]


# ---------------------------------------------------------------- counting


def _size(tensors: Tensor | Sequence[Tensor]) -> float:
    if isinstance(tensors, Tensor):
        return float(tensors.numel() * tensors.element_size())
    return sum(_size(tensor) for tensor in tensors)


SENT: dict[str, tuple[int, float]] = {
    "all_reduce": (0, 2.0),
    "reduce": (0, 1.0),
    "broadcast": (0, 1.0),
    "all_gather": (0, 1.0),
    "all_gather_into_tensor": (0, 1.0),
    "all_gather_single": (0, 1.0),
    "reduce_scatter": (1, 1.0),
    "reduce_scatter_tensor": (1, 1.0),
    "reduce_scatter_single": (1, 1.0),
    "all_to_all_single": (1, 1.0),
}
"""Collective -> (which argument holds the whole, how often (n - 1) / n of it is sent by each rank); the names of some
differ between versions of torch."""


@dataclass
class Wire:
    """Counts the collectives of this process, once :meth:`install` was called (before DeepSpeed is imported)."""

    bytes: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)
    _inside: threading.local = field(default_factory=threading.local)

    def install(self) -> None:
        here = {name: how for name, how in SENT.items() if hasattr(dist, name)}
        for name, (place, times) in here.items():
            setattr(dist, name, self._counted(name, getattr(dist, name), place, times))

    def clear(self) -> None:
        self.bytes, self.calls = 0.0, Counter()

    def _counted(self, name: str, collective: Callable[..., Any], place: int, times: float) -> Callable[..., Any]:
        @functools.wraps(collective)
        def wrapper(*args: Any, **keys: Any) -> Any:
            if getattr(self._inside, "one", False):  # some are made of others
                return collective(*args, **keys)
            ranks = dist.get_world_size(keys.get("group"))
            whole = args[place] if place < len(args) else list(keys.values())[place - len(args)]
            self.bytes += times * (ranks - 1) / ranks * _size(whole)
            self.calls[name] += 1
            self._inside.one = True
            try:
                return collective(*args, **keys)
            finally:
                self._inside.one = False

        return wrapper


def least_bytes(parameters: int, bytes_each: int, ranks: int) -> float:
    """One all-reduce of the gradients in a ring."""
    return 2.0 * (ranks - 1) / ranks * parameters * bytes_each


# ---------------------------------------------------------------- a rank


def traffic(wire: Wire, corpus: Corpus, teacher: Path, work: Path, rank: Rank) -> list[dict[str, Any]]:
    """For each case the bytes and collectives of a step, the mean of two after the first."""
    found = []
    for case in CASES:
        training = {
            "zero_stage": case.zero_stage,
            "global_batch_size": TRAFFIC.sequences * rank.world_size,
            "micro_batch_tokens": TRAFFIC.sequences * TRAFFIC.length // case.micro_steps,
        }
        config = run_config(TRAFFIC, corpus, teacher, work, case.precision, **training)
        parts = build_parts(config, corpus, rank)
        loop = real_loop(parts)
        loop.step()
        wire.clear()
        loop.step()
        loop.step()
        taken = [len(parts.loader.step(number).batches) for number in (1, 2)]
        found.append(
            {
                "case": f"{case.precision}, ZeRO {case.zero_stage}",
                "micro_steps": statistics.mean(taken),
                "bytes": wire.bytes / 2,
                "calls": {name: number / 2 for name, number in wire.calls.items()},
                "parameters": parameters(parts.trainees[0].engine.module),
            }
        )
        loop.close()
    return found


def speed(corpus: Corpus, teacher: Path, work: Path, rank: Rank, steps: int) -> dict[str, float]:
    """Real tokens a second over all ranks by the clock, and by this rank's processor seconds; medians of steps."""
    training = {"global_batch_size": SPEED.sequences, "micro_batch_tokens": SPEED.sequences * SPEED.length}
    parts = build_parts(run_config(SPEED, corpus, teacher, work, "bf16", **training), corpus, rank)
    loop = real_loop(parts)
    loop.step()
    wall, processor = [], []
    for _ in range(steps):
        rank.barrier()
        began, used = time.perf_counter(), time.process_time()
        loop.step()
        wall.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    loop.close()
    tokens = SPEED.sequences * SPEED.length
    return {"wall": tokens / statistics.median(wall), "processor": tokens / statistics.median(processor)}


def be_a_rank(work: Path, what: str, steps: int) -> None:
    torch.set_num_threads(1)
    wire = Wire()
    wire.install()
    rank = start_ranks()
    setting = TRAFFIC if what == "traffic" else SPEED
    corpus = Corpus.open(work / "corpora" / setting.text)
    teacher = saved_teacher(setting.teacher, corpus.vocab_size, work)
    found: Any = traffic(wire, corpus, teacher, work, rank) if what == "traffic" else None
    found = found or speed(corpus, teacher, work, rank, steps)
    (work / f"{what}-{rank.world_size}-{rank.rank}.json").write_text(json.dumps(found), encoding="utf-8")
    rank.barrier()
    stop_ranks()


# ---------------------------------------------------------------- the table


def start(work: Path, ranks: int, what: str, steps: int) -> list[Any]:
    """What each of some ranks found.

    Raises:
        RuntimeError: a rank failed; with the end of what it wrote.
    """
    rendezvous, processes = work / f"rendezvous-{uuid.uuid4().hex}", []
    for rank in range(ranks):
        given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "OMP_NUM_THREADS": 1}
        given |= {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "ZHENGLIU_RENDEZVOUS": f"file://{rendezvous}"}
        environment = os.environ | {key: str(value) for key, value in given.items()}
        command = [sys.executable, "-m", "benchmarks.scaling", "--rank", what, "--work", str(work)]
        with (work / f"rank-{rank}.log").open("wb") as log:
            processes.append(
                subprocess.Popen([*command, "--steps", str(steps)], env=environment, stdout=log, stderr=log)
            )
    failed = [rank for rank, process in enumerate(processes) if process.wait()]
    if failed:
        said = (work / f"rank-{failed[0]}.log").read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"rank {failed[0]} of {ranks} failed:\n{said[-2000:]}")
    return [json.loads((work / f"{what}-{ranks}-{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]


def traffic_rows(ranks: int, found: list[list[dict[str, Any]]]) -> list[list[str]]:
    """A row for each case: the rank that sends most, against the least in fp32 and in bf16."""
    rows = []
    for case in zip(*found, strict=True):
        most = max(case, key=lambda one: one["bytes"])
        least = {each: least_bytes(most["parameters"], each, ranks) for each in (4, 2)}
        ratios = [f"{most['bytes'] / least[each]:.3f}" if least[each] else "-" for each in (4, 2)]
        calls = ", ".join(f"{number:g} {name}" for name, number in sorted(most["calls"].items())) or "none"
        rows.append(
            [str(ranks), most["case"], f"{most['micro_steps']:g}", f"{most['bytes'] / 1e6:.2f}", *ratios, calls]
        )
    return rows


TRAFFIC_HEAD = [
    "ranks",
    "training",
    "micro-steps",
    "MB a step",
    "x the least in fp32",
    "x the least in bf16",
    "collectives a step",
]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("files", nargs="*", default=["builtin:sample"], help="text, JSON lines")
    parser.add_argument("--vocabulary", type=Path, help="vocab.txt; default: one trained on the text")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=5, help="of the speed figures")
    parser.add_argument("--only", choices=["traffic", "speed"])
    parser.add_argument("--rank", choices=["traffic", "speed"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank is not None:
        be_a_rank(given.work, given.rank, given.steps)
        sys.stdout.flush()
        os._exit(0)  # as distill_core.run does
    with tempfile.TemporaryDirectory(prefix="zhengliu-scaling-") as folder:
        work, cores = Path(folder), os.cpu_count() or 1
        if given.only != "speed":
            _prepare(TRAFFIC, given, work)
            several = [n for n in given.ranks if n > 1]
            rows = [row for n in several for row in traffic_rows(n, start(work, n, "traffic", 0))]
            print(table(TRAFFIC_HEAD, rows), flush=True)
        if given.only != "traffic":
            _prepare(SPEED, given, work)
            print("\n" + speed_table(work, [n for n in given.ranks if n <= cores], given.steps), flush=True)


def _prepare(setting: Setting, given: argparse.Namespace, work: Path) -> None:
    corpus = prepared(setting.text, given.files, given.vocabulary or 8000, work / "corpora")
    saved_teacher(setting.teacher, corpus.vocab_size, work)


def speed_table(work: Path, ranks: Sequence[int], steps: int) -> str:
    """By the clock; and by the processor seconds of the rank that used most, which waiting for others is not in."""
    found = {n: start(work, n, "speed", steps) for n in ranks}
    wall = {n: statistics.median(one["wall"] for one in each) for n, each in found.items()}
    processor = {n: min(one["processor"] for one in each) for n, each in found.items()}
    first = min(ranks)
    rows = [
        [str(n), f"{wall[n]:,.0f}", f"{wall[n] / wall[first]:.2f}", f"{processor[n] / processor[first]:.2f}"]
        for n in ranks
    ]
    return table(["ranks", "tokens/s", f"x {first} rank by the clock", "x by processor seconds"], rows)


if __name__ == "__main__":
    main()

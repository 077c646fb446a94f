"""The program of one rank in test_plan_measured.py: real steps of a stage and those of the plan's probe, in turns.

Usage: python plan_program.py FOLDER STAGE OUT ROUNDS, FOLDER as `rehearsal.rehearsed` makes it. OUT gets the peak
memory after some real steps, before the probe has made anything; then the probe's rounds, and after each of them one
real step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

from configs.loader import load
from data_prep.corpus import Corpus
from distill_core.build import build
from distill_core.config import RunConfig
from distill_core.engine import Rank, start_ranks, stop_ranks
from distill_core.meter import memory_gigabytes
from distill_core.parts import Parts
from distill_core.stage import begin, train_step
from launcher import probe_rank
from launcher.plan_data import measure

REAL = 4
"""Steps before the peak is read."""


class RealSteps:
    """The stage's own steps. ``taken``: [wall, cpu] seconds of each, means over the ranks."""

    def __init__(self, parts: Parts, rank: Rank) -> None:
        self.parts, self.rank = parts, rank
        self.taken: list[list[float]] = []
        self.steps = parts.loader.steps(0, REAL + probe_rank.ROUNDS)
        begin(parts)

    def take(self) -> None:
        self.rank.barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        train_step(self.parts, *next(self.steps))
        found = torch.tensor([time.perf_counter() - wall, time.process_time() - cpu], dtype=torch.float64)
        self.taken.append((self.rank.sum(found) / self.rank.world_size).tolist())


def main() -> None:
    folder, stage, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    probe_rank.ROUNDS = int(sys.argv[4])
    config = load(folder / "config.yaml", [], RunConfig)
    index = config.stage_index(stage)
    assert index is not None
    rank = start_ranks()
    real = RealSteps(build(config, {index: {}}, Corpus.open(config.data_folder), rank), rank)
    for _ in range(REAL):
        real.take()
    peak = memory_gigabytes(rank)
    probe = probe_rank.Probe(config, index, measure(config), rank.world_size, rank)
    found = {"peak": 1e9 * peak, "probed": probe.rounds(real.take), "real": real.taken[REAL:]}
    if rank.is_first:
        out.write_text(json.dumps(found), encoding="utf-8")
    rank.barrier()
    stop_ranks()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # as distill_core.run does

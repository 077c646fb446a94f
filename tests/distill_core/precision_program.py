"""A rank of test_precision.py: ``python precision_program.py RUN_FOLDER PRECISION...``, what each rank's device has."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from configs.loader import load
from distill_core import precision
from distill_core.config import RunConfig
from distill_core.engine import start_ranks, stop_ranks

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, theirs = Path(sys.argv[1]), sys.argv[2:]
    config = load(folder / "config.yaml", [], RunConfig)
    rank = start_ranks()
    precision.of_device = lambda device: theirs[rank.rank]  # type: ignore[assignment,return-value]
    settled = precision.settle(config, folder, rank)
    assert precision.undecided(settled) == []
    rank.barrier()
    assert load(folder / "config.yaml", [], RunConfig) == settled
    stop_ranks()
    sys.stdout.flush()
    os._exit(0)  # as distill_core.run does

"""The program of one rank in test_stages.py: runs a run file's stages as `distill run` does, with or without an end.

Usage: python task_rank.py RUN_FOLDER [STOP]: with STOP, the process ends itself right after that step's evaluation of
the first stage, as if it had been killed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from configs.loader import load
from distill_core import stage
from distill_core.config import RunConfig
from distill_core.engine import start_ranks, stop_ranks
from distill_core.finish import finish_run
from distill_core.run import run_chain


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        told = stage.report_quality

        def report_quality(parts: object, done: int, quality: object) -> None:
            told(parts, done, quality)  # type: ignore[arg-type]
            if done == int(sys.argv[2]):
                os._exit(0)

        stage.report_quality = report_quality  # type: ignore[assignment]
    config = load(folder / "config.yaml", [], RunConfig)
    rank = start_ranks()
    complete = run_chain(config, rank)
    stop_ranks()
    if rank.is_first and complete:
        finish_run(config, folder)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # as distill_core.run does

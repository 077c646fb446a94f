"""How rank programs go through their cases: ``PROGRAM CORPUS TEACHER OUT``; the first rank writes OUT/results.json."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from data_prep.corpus import Corpus
from distill_core.engine import Rank, start_ranks, stop_ranks


def carry_out(run_case: Callable[..., Any], cases: Sequence[tuple[Any, ...]]) -> None:
    """``run_case(corpus, teacher, rank, *case, out)`` of each case, and the end of the process."""
    torch.set_num_threads(1)
    corpus, teacher, out = Corpus.open(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3])
    rank: Rank = start_ranks()
    results = {"-".join(map(str, case)): run_case(corpus, teacher, rank, *case, out) for case in cases}
    if rank.is_first:
        (out / "results.json").write_text(json.dumps(results))
    rank.barrier()
    stop_ranks()
    sys.stdout.flush()
    os._exit(0)  # as distill_core.run does

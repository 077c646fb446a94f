"""The program of one rank in test_scaling.py: bytes of tiny models. Usage: python scaling_program.py OUT."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from benchmarks import scaling
from benchmarks.scaling import Case, Wire, traffic
from benchmarks.step.plain import saved_teacher
from benchmarks.step.settings import Setting, Shape
from data_prep.corpus import Corpus
from distill_core.engine import start_ranks, stop_ranks

scaling.TRAFFIC = Setting("traffic", Shape(2, 24, 2, 48), Shape(2, 16, 2, 32), "minirbt", "lines-32", 8)
scaling.CASES = [Case("fp32", 0, 1), Case("fp32", 0, 4), Case("bf16", 1, 4)]


def main() -> None:
    torch.set_num_threads(1)
    out, wire = Path(sys.argv[1]), Wire()
    wire.install()
    rank = start_ranks()
    corpus = Corpus.open(out / "corpora" / "lines-32")
    teacher = saved_teacher(scaling.TRAFFIC.teacher, corpus.vocab_size, out)
    found = traffic(wire, corpus, teacher, out, rank)
    (out / f"found-{rank.rank}.json").write_text(json.dumps(found), encoding="utf-8")
    rank.barrier()
    stop_ranks()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # as distill_core.run does

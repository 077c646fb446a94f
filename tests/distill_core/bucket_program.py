"""The program of one rank in test_buckets.py: the same steps with gradients sent all at once and sent as they come.

Usage: python bucket_program.py CORPUS OUT: writes OUT/results.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from data_prep.corpus import Corpus
from distill_core import buckets
from distill_core.engine import Engine, Rank, start_ranks, stop_ranks
from distill_core.reduction import ShardedStep
from distill_core.training import TrainingConfig
from tests.distill_core.rank_program import build, same, steps
from tests.traffic import Traffic


def trained(corpus: Corpus, rank: Rank, traffic: Traffic, early: bool) -> dict[str, Any]:
    training = TrainingConfig(steps=3, global_batch_size=12, micro_batch_tokens=150)
    teacher, module = build(corpus.vocab_size, "bf16")
    engine = Engine(module, training, rank)
    own, late = engine._own, []
    assert isinstance(own, ShardedStep)
    if early:
        own.send_early(list(module.parameters()))
        assert own.buckets is not None
        finish, waiting = own.buckets.finish, own.buckets

        def watched() -> None:
            late.append(len(waiting._buckets) - waiting._next)
            finish()

        own.buckets.finish = watched  # type: ignore[method-assign]
    before = traffic.sent
    rows = steps(engine, teacher, corpus, rank, 0, 3)
    sent, state = traffic.sent - before, engine.full_state(3)
    count = 0 if own.buckets is None else len(own.buckets._buckets)
    engine.close()
    return {"rows": rows, "state": state, "sent": sent, "late": late, "buckets": count}


def main() -> None:
    torch.set_num_threads(1)
    buckets.SIZE = 500
    corpus, out = Corpus.open(Path(sys.argv[1])), Path(sys.argv[2])
    traffic = Traffic(int(os.environ["WORLD_SIZE"]))
    rank = start_ranks()
    late, early = (trained(corpus, rank, traffic, early) for early in (False, True))
    equal = same(late.pop("state"), early.pop("state")) if rank.is_first else True
    if rank.is_first:
        (out / "results.json").write_text(json.dumps({"late": late, "early": early, "same": equal}))
    rank.barrier()
    stop_ranks()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # as distill_core.run does

"""The program of one rank in test_options_ranks.py: the same stage under each way of running its models.

Usage: python options_program.py CORPUS TEACHER OUT: leaves OUT/CASE, a run folder for each case.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from configs.loader import validate
from data_prep.corpus import Corpus
from distill_core import stage
from distill_core.config import RunConfig
from distill_core.engine import start_ranks, stop_ranks

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain-3": {"zero_stage": 3},
    "checkpointed": {"activation_checkpointing": True},
    "checkpointed-3": {"activation_checkpointing": True, "zero_stage": 3},
    "sharded": {"teacher_sharding": "zero3"},
    "bf16-sharded": {"precision": "bf16", "teacher_sharding": "zero3"},
    "bf16-teacher": {"teacher_precision": "bf16"},
    "int8-teacher": {"teacher_precision": "int8"},
    "int8-sharded": {"teacher_precision": "int8", "teacher_sharding": "zero3"},
}


def run_config(corpus: Corpus, teacher: str, out: Path, case: str) -> RunConfig:
    tree = {
        "name": case,
        "output": str(out),
        "data": {**corpus.manifest["identity"], "folder": str(corpus.folder)},
        "stages": [
            {
                "name": "student",
                "kind": "distill",
                "teacher": {"source": teacher, "head_check": "warn"},
                "student": {"model": {"hidden_size": 18, "num_hidden_layers": 2, "num_attention_heads": 2}},
                "objective": [
                    {"kind": "kd_ce", "temperature": 2.0},
                    {"kind": "hidden_mse", "layers": [[0, 0], [1, 1], [2, 2]]},
                    {"kind": "attention_scores", "layers": "uniform"},
                    {"kind": "mlm"},
                ],
                "training": {
                    "steps": 4,
                    "global_batch_size": 12,
                    "micro_batch_tokens": 150,
                    "precision": "fp32",
                    "evaluate_sequences": 20,
                    "log_every": 2,
                    **CASES[case],
                },
            }
        ],
    }
    return validate(tree, RunConfig)


def main() -> None:
    torch.set_num_threads(1)
    corpus, teacher, out = Corpus.open(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3])
    rank = start_ranks()
    for case in CASES:
        config = run_config(corpus, teacher, out, case)
        (config.folder / "logs").mkdir(parents=True, exist_ok=True)
        stage.run_stages(config, [0], corpus, rank)
        rank.barrier()
    stop_ranks()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # as distill_core.run does

"""The program of one rank in test_progressive_ranks.py: a MobileBERT-like student, layer by layer.

Usage: python progressive_program.py CORPUS TEACHER OUT: writes OUT/results.json, for each case what was found.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from configs.loader import validate
from data_prep.corpus import Corpus
from distill_core import stage
from distill_core.config import RunConfig
from distill_core.engine import Rank
from distill_core.progressive import Progressive
from tests.distill_core.cases import carry_out

CASES = [("fp32", 0, "freeze"), ("fp32", 2, "freeze"), ("bf16", 1, "slow"), ("bf16", 3, "freeze")]
PER_LAYER, STEPS = 2, 6


def run_config(corpus: Corpus, teacher: str, out: Path, case: tuple[str, int, str]) -> RunConfig:
    precision, zero, lower = case
    model = {
        "family": "mobilebert",
        "hidden_size": 32,
        "embedding_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "bottleneck": {"intra_size": 16, "feed_forwards": 2},
    }
    terms = [
        {"kind": "hidden_mse", "layers": [[0, 0], [1, 1], [2, 2]]},
        {"kind": "attention_ce", "layers": "uniform"},
        {"kind": "mlm"},
    ]
    tree = {
        "name": "run",
        "output": str(out),
        "data": {**corpus.manifest["identity"], "folder": str(corpus.folder)},
        "stages": [
            {
                "name": "student",
                "kind": "distill",
                "teacher": {"source": teacher, "head_check": "off"},
                "student": {"model": model},
                "objective": terms,
                "progressive": {"steps_per_layer": PER_LAYER, "lower_layers": lower},
                "training": {
                    "steps": STEPS,
                    "global_batch_size": 8,
                    "micro_batch_tokens": 200,
                    "precision": precision,
                    "zero_stage": zero,
                    "optimizer": {"learning_rate": 1e-3, "warmup": 0.0, "decay": "none"},
                    "evaluate_every": 100,
                    "evaluate_sequences": 8,
                    "checkpoint_every": 1,
                    "keep_last": 10,
                    "log_every": 1,
                },
            }
        ],
    }
    return validate(tree, RunConfig)


def weights(config: RunConfig, step: int) -> dict[str, torch.Tensor]:
    return load_file(config.stage_folder(0) / "checkpoints" / f"step-{step:08d}" / "weights.safetensors")


def moved(config: RunConfig) -> list[list[int]]:
    """For each step but the first: the parts of the student of which some bit changed."""
    schedule = Progressive(config.stages[0].progressive, 2)  # type: ignore[union-attr,arg-type]
    found = []
    for step in range(1, STEPS):
        before, after = weights(config, step), weights(config, step + 1)
        changed = {schedule.part(name) for name in before if not torch.equal(before[name], after[name])}
        found.append(sorted(changed - {-1}))
    return found


def run_case(
    corpus: Corpus, teacher: str, rank: Rank, precision: str, zero: int, lower: str, out: Path
) -> dict[str, Any]:
    """Straight through, and again from a checkpoint in the middle of a layer's turn."""
    case = precision, zero, lower
    straight, broken = (run_config(corpus, teacher, out / f"{zero}-{name}", case) for name in "ab")
    for config in (straight, broken):
        (config.folder / "logs").mkdir(parents=True, exist_ok=True)
    stage.run_stages(straight, [0], corpus, rank)
    stage.run_stages(broken, [0], corpus, rank)
    if rank.is_first:  # as if it had ended after step 3
        folder = broken.stage_folder(0)
        (folder / "DONE.json").unlink()
        for step in range(4, STEPS + 1):
            for file in (folder / "checkpoints" / f"step-{step:08d}").iterdir():
                file.unlink()
    rank.barrier()
    stage.run_stages(broken, [0], corpus, rank)
    rank.barrier()
    if not rank.is_first:
        return {}
    rows = [json.loads(line) for line in (straight.stage_folder(0) / "metrics.jsonl").read_text().splitlines()]
    a, b = weights(straight, STEPS), weights(broken, STEPS)
    return {
        "moved": moved(straight),
        "same": a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a),
        "counted": [
            sorted(n.removeprefix("weighted/") for n, v in row.items() if n.startswith("weighted/") and v)
            for row in rows
            if "loss/total" in row
        ],
    }


if __name__ == "__main__":
    carry_out(run_case, CASES)

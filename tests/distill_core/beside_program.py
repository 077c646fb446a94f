"""The program of one rank in test_beside_ranks.py: two students one after the other, side by side, and interrupted.

Usage: python beside_program.py CORPUS TEACHER OUT: writes OUT/results.json, for each case what was found.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from configs.loader import validate
from data_prep.corpus import Corpus
from distill_core import checkpoint, stage
from distill_core.config import RunConfig
from distill_core.engine import Rank
from distill_core.objective import Teacher
from distill_core.record import read_done
from tests.distill_core.cases import carry_out

CASES = [("fp32", 0), ("bf16", 1), ("bf16", 2), ("bf16", 3)]
STEPS, EVERY = 6, 2
TEACHER = "teacher-folder"


class Stop(Exception):
    """Stands for a kill, at the same place on every rank."""


def student(name: str, width: int, layers: int, terms: list[dict[str, Any]], training: dict[str, Any]) -> Any:
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2, "max_position_embeddings": 64}
    return {
        "name": name,
        "kind": "distill",
        "teacher": TEACHER,
        "student": {"model": shape},
        "objective": terms,
        "training": training,
    }


def run_config(corpus: Corpus, teacher: str, out: Path, precision: str, zero: int, beside: bool) -> RunConfig:
    """Different widths, depths, losses, optimizers and rhythms; dropout is on."""
    training = {
        "steps": STEPS,
        "global_batch_size": 12,
        "micro_batch_tokens": 150,
        "precision": precision,
        "zero_stage": zero,
        "evaluate_every": 3,
        "evaluate_sequences": 12,
        "checkpoint_every": EVERY,
        "log_every": 1,
    }
    slower = {**training, "optimizer": {"learning_rate": 1e-4}, "evaluate_every": 4, "keep_last": 1}
    wide = student("wide", 18, 2, [{"kind": "kd_ce"}, {"kind": "hidden_mse", "layers": "uniform"}], training)
    narrow = student("narrow", 12, 1, [{"kind": "mlm"}, {"kind": "attention_probs", "layers": [[2, 1]]}], slower)
    if beside:
        narrow["beside"] = "wide"
    tree = {
        "name": "run",
        "output": str(out),
        "data": {**corpus.manifest["identity"], "folder": str(corpus.folder)},
        "stages": copy.deepcopy([wide, narrow]),
    }
    for each in tree["stages"]:
        each["teacher"] = [{"source": teacher, "head_check": "off"}]
    return validate(tree, RunConfig)


def same(a: RunConfig, b: RunConfig, index: int) -> bool:
    """Models, and the last checkpoints with all moments, to the bit."""
    pairs = [[c.stage_folder(index) / "model" / "model.safetensors" for c in (a, b)]]
    last = f"checkpoints/step-{STEPS:08d}"
    for name in ("weights", "moments"):
        pairs.append([c.stage_folder(index) / last / f"{name}.safetensors" for c in (a, b)])
    for left, right in pairs:
        x, y = load_file(left), load_file(right)
        if x.keys() != y.keys() or not all(torch.equal(x[name], y[name]) for name in x):
            return False
    return curves(a, index) == curves(b, index)


def curves(config: RunConfig, index: int) -> list[dict[str, float]]:
    """What does not depend on the clock."""
    rows = [json.loads(line) for line in (config.stage_folder(index) / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "loss/", "weighted/", "optim/", "eval/", "data/epoch")
    return [{name: value for name, value in row.items() if name.startswith(kept)} for row in rows]


def interrupted(config: RunConfig, corpus: Corpus, rank: Rank) -> list[int]:
    """Stop between the two checkpoints of step 4; returns the steps at which the two then stand."""
    whole, calls = checkpoint.save, []

    def save(*arguments: Any, **more: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise Stop
        whole(*arguments, **more)

    checkpoint.save = save
    try:
        stage.run_stages(config, [0, 1], corpus, rank)
    except Stop:
        pass
    finally:
        checkpoint.save = whole
    rank.barrier()
    found = [checkpoint.newest(config.stage_folder(index) / "checkpoints")[0] for index in (0, 1)]
    return [0 if each is None else each.step for each in found]


def forwards(action: Any) -> int:
    """How often the teacher was asked in training (with its own request, not an evaluation's)."""
    whole, calls = Teacher.forward, []

    def forward(self: Teacher, batch: Any, request: Any = None) -> Any:
        calls.append(request is None)
        return whole(self, batch, request)

    Teacher.forward = forward  # type: ignore[method-assign]
    try:
        action()
    finally:
        Teacher.forward = whole  # type: ignore[method-assign]
    return sum(calls)


def run_case(corpus: Corpus, teacher: str, rank: Rank, precision: str, zero: int, out: Path) -> dict[str, Any]:
    alone, beside, broken = (
        run_config(corpus, teacher, out / f"{precision}-{zero}-{name}", precision, zero, name != "alone")
        for name in ("alone", "beside", "broken")
    )
    for config in (alone, beside, broken):
        (config.folder / "logs").mkdir(parents=True, exist_ok=True)
    asked_alone = forwards(lambda: [stage.run_stages(alone, [i], corpus, rank) for i in (0, 1)])
    asked_beside = forwards(lambda: stage.run_stages(beside, [0, 1], corpus, rank))
    found: dict[str, Any] = {"asked": [asked_alone, asked_beside]}
    stood = interrupted(broken, corpus, rank)
    stage.run_stages(broken, [0, 1], corpus, rank)
    if rank.is_first:
        found["same"] = [same(alone, beside, i) for i in (0, 1)]
        found["stood"] = stood
        found["resumed"] = [same(alone, broken, i) for i in (0, 1)]
        done = read_done(beside.stage_folder(1))
        found["beside"] = None if done is None else done["beside"]
    rank.barrier()
    return found


if __name__ == "__main__":
    carry_out(run_case, CASES)

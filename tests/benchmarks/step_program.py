"""The program behind test_step.py: the benchmark of the step on tiny shapes, in a process of its own.

Usage: python step_program.py OUT: writes OUT/found.json.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.step import settings
from benchmarks.step.bench import Bench
from benchmarks.step.measure import interleaved
from benchmarks.step.numerics import check, check_peer
from benchmarks.step.ours import start_alone
from benchmarks.step.settings import Recipe, Setting, Shape
from benchmarks.step.text import prepared
from data_prep.corpus import Corpus

TEACHER, STUDENT = Shape(4, 48, 4, 64), Shape(2, 24, 4, 48)
RECIPES: tuple[Recipe, ...] = ("minirbt", "distilbert", "distilbert-masked", "tinybert")
WRONG: dict[str, list[dict[str, Any]]] = {
    "temperature": [{"kind": "kd_ce", "temperature": 4}, {"kind": "hidden_mse", "layers": "uniform"}],
    "layers": [{"kind": "kd_ce", "temperature": 8}, {"kind": "hidden_mse", "layers": "top"}],
}


def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    rank = start_alone(out)
    corpora: dict[str, Corpus] = {
        text: prepared(text, ["builtin:sample"], 600, out / "corpora", 0.2) for text in ("lines-32", "packed-32")
    }

    def bench(recipe: Recipe, text: str) -> Bench:
        setting = Setting(f"{recipe}-{text}", TEACHER, STUDENT, recipe, text, 6)
        return Bench(setting, corpora[text], out, rank, steps=3)

    found: dict[str, Any] = {"outcomes": [], "checks": [], "peers": [], "wrong": {}}
    for text in corpora:
        one = bench("minirbt", text)
        variants = ["ours bf16", "bare bf16", "hf fp32", "textbrewer bf16", "distilbert bf16"]
        variants += ["ours bf16 int8-teacher", "ours bf16 fp8-teacher"] if text == "lines-32" else []
        found["outcomes"].append(asdict(interleaved(one, variants, 2, 100.0, peak=lambda: 1e12)))
    for variant in ("hf fp32", "textbrewer fp32", "textbrewer bf16"):
        one = bench("minirbt", "lines-32")
        still = replace(one, setting=one.setting.without_dropout(), steps=1)
        result = check_peer(still, variant)
        found["peers"].append(asdict(result) | {"ok": result.ok, "with dropout": check_peer(one, variant).ok})
    for recipe, precision in [*((recipe, "fp32") for recipe in RECIPES), ("minirbt", "bf16")]:
        one = bench(recipe, "lines-32")
        result = check(one.setting, one.corpus, one.teacher, out, rank, precision)
        found["checks"].append(asdict(result) | {"ok": result.ok})
    for name, objective in WRONG.items():
        settings.OBJECTIVES["minirbt"] = objective
        one = bench("minirbt", "lines-32")
        found["wrong"][name] = check(one.setting, one.corpus, one.teacher, out, rank, "fp32").ok
    (out / "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # as distill_core.run does

"""Whole stages through DeepSpeed: with cached teachers they take the steps that live teachers give."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.loader import to_yaml, validate
from data_prep.corpus import Corpus
from distill_core.config import RunConfig
from distill_core.models import pretrained
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from tests.ranks import start

PROGRAM = Path(__file__).with_name("run_program.py")
SHAPE: dict[str, Any] = {"num_attention_heads": 2, "max_position_embeddings": 48}
STEPS = 8
"""Of 320 sequences: the second epoch, and with it the second mask view, begins in the sixth."""
pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def teachers(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    found = []
    for number, width in enumerate((32, 24)):
        torch.manual_seed(number)
        shape = {**SHAPE, "hidden_size": width, "num_hidden_layers": 3, "intermediate_size": 64}
        config = EncoderConfig.model_validate({**shape, "vocab_size": tiny_corpus.vocab_size, "initializer_range": 0.2})
        folder = tmp_path_factory.mktemp(f"teacher{number}")
        pretrained.save(Encoder(config).state_dict(), config, tiny_corpus.tokenizer_folder, folder)
        found.append({"source": str(folder), "head_check": "off", "weight": 1.0 + number})
    return found


def run(
    corpus: Corpus, teachers: list[dict[str, Any]], output: Path, ranks: int, cache: dict[str, Any] | None, steps: int
) -> list[dict[str, float]]:
    """The rows of a run's metrics."""
    stage = {
        "name": "student",
        "kind": "distill",
        "teacher": teachers,
        "student": {"model": {**SHAPE, "hidden_size": 16, "num_hidden_layers": 1}},
        "objective": [
            {"kind": "kd_ce", "temperature": 2.0},
            {"kind": "mlm"},
            {"kind": "hidden_mse", "layers": [[0, 0], [2, 1]]},
        ],
        "training": {
            "steps": steps,
            "global_batch_size": 320,
            "micro_batch_tokens": 4096,
            "precision": "fp32",
            "optimizer": {"decay": "none"},
            "log_every": 1,
            "evaluate_every": 4,
            "evaluate_sequences": 40,
        },
        "teacher_cache": cache,
    }
    tree = {
        "name": "run",
        "output": str(output),
        "data": {**corpus.manifest["identity"], "folder": str(corpus.folder)},
        "stages": [stage],
        "evaluation": {"latency_lengths": [8], "latency_batch_sizes": [1], "latency_repeats": 1},
    }
    config = validate(tree, RunConfig)
    (config.folder / "logs").mkdir(parents=True, exist_ok=True)
    (config.folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    start(PROGRAM, ranks, str(config.folder))
    lines = (config.stage_folder(0) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


Rows = list[dict[str, float]]


@dataclass(frozen=True)
class Runs:
    """Two ranks with live teachers; two with cached ones; one rank that takes the latter's run a step further, with a
    cache of its own."""

    live: Rows
    cached: Rows
    further: Rows
    two: Path
    one: Path


@pytest.fixture(scope="module")
def runs(tiny_corpus: Corpus, teachers: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    live, cached, two, one = (tmp_path_factory.mktemp(name) for name in ("live", "cached", "two", "one"))
    return Runs(
        run(tiny_corpus, teachers, live, 2, None, STEPS),
        run(tiny_corpus, teachers, cached, 2, {"folder": str(two)}, STEPS),
        run(tiny_corpus, teachers, cached, 1, {"folder": str(one)}, STEPS + 1),
        two,
        one,
    )


def test_the_loss_of_every_step_is_that_of_the_live_run(runs: Runs) -> None:
    live, cached = ([row for row in found if "loss/total" in row] for found in (runs.live, runs.cached))
    assert [row["step"] for row in live] == [row["step"] for row in cached] == list(range(1, STEPS + 1))
    names = [name for name in live[0] if name.startswith(("loss/", "weighted/")) or name == "optim/gradient_norm"]
    assert len(names) >= 9
    for name in names:
        tolerance = 1e-5 if name == "optim/gradient_norm" else 1e-6
        assert [row[name] for row in cached] == pytest.approx([row[name] for row in live], rel=tolerance), name
    assert live[0]["data/epoch"] < 1 < live[-1]["data/epoch"]


def test_evaluations_see_the_teacher_too(runs: Runs) -> None:
    live, cached = ([row for row in found if "eval/student_loss" in row] for found in (runs.live, runs.cached))
    assert [row["step"] for row in cached] == [4, 8]
    for name in ("eval/student_loss", "eval/teacher_loss", "eval/teacher_accuracy", "eval/agreement"):
        assert [row[name] for row in cached] == pytest.approx([row[name] for row in live], rel=1e-5), name


def test_a_stage_goes_on_with_a_cache_elsewhere(runs: Runs) -> None:
    assert [row["step"] for row in runs.further if "loss/total" in row] == list(range(1, STEPS + 2))


def test_one_rank_writes_the_same_bytes(runs: Runs) -> None:
    two, one = runs.two, runs.one
    names = sorted(str(p.relative_to(two)) for p in two.rglob("*") if p.is_file())
    # for each of two teachers two views of [vectors, two hidden states, manifest, two index files]; held_out once
    assert len(names) == 2 * 2 * 6 + 4
    assert names == sorted(str(p.relative_to(one)) for p in one.rglob("*") if p.is_file())
    assert all((two / name).read_bytes() == (one / name).read_bytes() for name in names)

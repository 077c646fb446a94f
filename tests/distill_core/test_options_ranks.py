"""Ways of running the models, on two ranks: they leave the student that the plain run leaves, or nearly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_prep.corpus import Corpus
from tests.distill_core.teachers import save_teacher
from tests.ranks import start

PROGRAM = Path(__file__).with_name("options_program.py")
pytestmark = [pytest.mark.ranks, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def runs(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    teacher, out = tmp_path_factory.mktemp("teacher"), tmp_path_factory.mktemp("out")
    save_teacher(tiny_corpus, teacher)
    first, _ = start(PROGRAM, 2, str(tiny_corpus.folder), str(teacher), str(out), timeout=600)
    (out / "log").write_text(first, encoding="utf-8")
    return out


def student(runs: Path, case: str) -> dict[str, torch.Tensor]:
    return load_file(runs / case / "stages" / "01-student" / "model" / "model.safetensors")


def losses(runs: Path, case: str) -> list[float]:
    rows = (runs / case / "stages" / "01-student" / "metrics.jsonl").read_text().splitlines()
    return [row["loss/total"] for row in map(json.loads, rows) if "loss/total" in row]


@pytest.mark.parametrize(
    ("case", "like"), [("checkpointed", "plain"), ("checkpointed-3", "plain-3"), ("sharded", "plain")]
)
def test_the_same_bits(runs: Path, case: str, like: str) -> None:
    found, expected = student(runs, case), student(runs, like)
    assert found.keys() == expected.keys() and len(found) > 10
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert losses(runs, case) == losses(runs, like)


@pytest.mark.parametrize(("case", "bound"), [("bf16-teacher", 0.01), ("int8-teacher", 0.02)])
def test_a_lower_precision_is_measured_and_does_little(runs: Path, case: str, bound: float) -> None:
    facts = json.loads((runs / case / "stages" / "01-student" / "teacher_precision.json").read_text())
    assert facts["precision"] == "fp32" and facts["teacher_precision"] == case.removesuffix("-teacher")
    assert facts["losses"].keys() == {
        "kd_ce",
        "mlm",
        *(f"hidden_mse/{layer}-{layer}" for layer in (0, 1, 2)),
        *(f"attention_scores/{layer}-{layer}" for layer in (1, 2)),
    }
    assert facts["losses"]["mlm"]["relative"] == 0.0  # no teacher in it
    found = [abs(loss["relative"]) for loss in facts["losses"].values()]
    assert 0 < max(found) < bound
    assert losses(runs, case) != losses(runs, "plain")
    assert losses(runs, case) == pytest.approx(losses(runs, "plain"), rel=bound)
    assert f"teacher in {facts['teacher_precision']}: kd_ce" in (runs / "log").read_text(encoding="utf-8")


def test_sixteen_bits_and_shards_go_together(runs: Path) -> None:
    assert losses(runs, "bf16-sharded") == pytest.approx(losses(runs, "plain"), rel=1e-2)


def test_eight_bits_and_shards_go_together(runs: Path) -> None:
    assert losses(runs, "int8-sharded") == losses(runs, "int8-teacher")

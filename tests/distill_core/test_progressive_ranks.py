"""A MobileBERT-like student layer by layer through DeepSpeed on two ranks: what moves, and resume to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.corpus import Corpus
from tests.distill_core.progressive_program import CASES
from tests.distill_core.teachers import save_teacher
from tests.ranks import start

PROGRAM = Path(__file__).with_name("progressive_program.py")
pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def results(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    teacher, out = tmp_path_factory.mktemp("teacher"), tmp_path_factory.mktemp("out")
    save_teacher(tiny_corpus, teacher)
    start(PROGRAM, 2, str(tiny_corpus.folder), str(teacher), str(out))
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_layer_by_layer(results: dict[str, Any], case: tuple[str, int, str]) -> None:
    """Two steps for layer 1 (with the embeddings), two for layer 2, two for everything with the head (part 3)."""
    found = results["-".join(map(str, case))]
    second = [2] if case[2] == "freeze" else [1, 2]
    assert found["moved"] == [[1], second, second, [1, 2, 3], [1, 2, 3]]
    first = ["attention_ce/1-1", "hidden_mse/0-0", "hidden_mse/1-1"]
    then = ["attention_ce/2-2", "hidden_mse/2-2"]
    assert found["counted"] == [first, first, then, then, *[sorted([*first, *then, "mlm"])] * 2]
    assert found["same"]

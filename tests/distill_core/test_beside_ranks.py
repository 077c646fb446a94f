"""Two students side by side over two ranks, in every ZeRO stage: the bits of one after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.corpus import Corpus
from tests.distill_core.beside_program import CASES
from tests.distill_core.teachers import save_teacher
from tests.ranks import start

PROGRAM = Path(__file__).with_name("beside_program.py")
NAMES = [f"{precision}-{zero}" for precision, zero in CASES]
pytestmark = [pytest.mark.ranks, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def results(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    teacher, out = tmp_path_factory.mktemp("teacher"), tmp_path_factory.mktemp("out")
    save_teacher(tiny_corpus, teacher)
    start(PROGRAM, 2, str(tiny_corpus.folder), str(teacher), str(out), timeout=600)
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


@pytest.mark.parametrize("case", NAMES)
def test_side_by_side_is_as_alone(results: dict[str, Any], case: str) -> None:
    assert results[case]["same"] == [True, True]
    assert results[case]["beside"] == ["wide"]


@pytest.mark.parametrize("case", NAMES)
def test_the_teacher_answers_once(results: dict[str, Any], case: str) -> None:
    alone, beside = results[case]["asked"]
    assert alone == 2 * beside > 0


@pytest.mark.parametrize("case", NAMES)
def test_ended_between_two_checkpoints_and_continued(results: dict[str, Any], case: str) -> None:
    assert results[case]["stood"] == [4, 2]
    assert results[case]["resumed"] == [True, True]

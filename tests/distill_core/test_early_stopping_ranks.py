"""Early stopping by pseudo-perplexity over two ranks: interrupted anywhere, a stage ends in the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.corpus import Corpus
from tests.distill_core.early_program import CASES, ENDS, STEPS, WAYS
from tests.distill_core.teachers import save_teacher
from tests.ranks import start

PROGRAM = Path(__file__).with_name("early_program.py")
NAMES = [f"{precision}-{zero}" for precision, zero in CASES]
pytestmark = [pytest.mark.ranks, pytest.mark.timeout(900)]
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Results:
    teacher, out = tmp_path_factory.mktemp("teacher"), tmp_path_factory.mktemp("out")
    save_teacher(tiny_corpus, teacher)
    start(PROGRAM, 2, str(tiny_corpus.folder), str(teacher), str(out), timeout=600)
    found: Results = json.loads((out / "results.json").read_text())
    return found


@pytest.mark.parametrize("case", NAMES)
def test_it_ends_where_patience_does(results: Results, case: str) -> None:
    """Both ranks: one alone would wait for the other for ever."""
    done = results[case]["straight"]["done"]
    early = done["early_stopping"]
    assert done["steps"] == ENDS[2] < early["at_most"] == STEPS and early["stopped"]
    assert [step for step, _ in early["evaluations"]] == [2, 4, 6] and early["best_step"] == 2
    assert early["best"] == early["evaluations"][0][1] > 1
    assert early["reason"].startswith(
        f"stopped early after step 6 of at most {STEPS}: pseudo_perplexity has not fallen"
    )
    assert results[case]["asked"][0] == done["sequences"] / 12 == 6
    curves = results[case]["straight"]["curves"]
    assert [row["step"] for row in curves if "loss/total" in row] == [2, 3, 4, 6]  # to the end, whatever log_every
    rates = {row["step"]: row["optim/learning_rate"] for row in curves if "loss/total" in row}
    assert rates[6] == pytest.approx(4e-4 * (STEPS - 5) / (STEPS - 2))  # of all its steps


@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize("way", WAYS)
def test_interrupted_it_ends_in_the_same_bits(results: Results, case: str, way: str) -> None:
    found = results[case]
    assert found["resumed"][way] == found["straight"]
    assert found["again"][way] == {"before_the_last_checkpoint": 2, "before_it_is_written": 0, "by_a_signal": 2}[way]


@pytest.mark.parametrize("case", NAMES)
def test_given_more_patience_it_goes_on_as_if_it_had_always_had_it(results: Results, case: str) -> None:
    found = results[case]
    assert found["further"] == found["patient"] and found["patient"]["done"]["steps"] == ENDS[3]
    assert found["asked"][2:] == [0, 0, 2]  # as it was, with less, with more


@pytest.mark.parametrize("case", NAMES)
def test_a_stage_beside_it_goes_on(results: Results, case: str) -> None:
    found = results[case]
    assert found["beside"] == [found["straight"], STEPS] and found["asked"][1] == STEPS


@pytest.mark.parametrize("case", NAMES)
def test_ranks_measure_together_what_one_measures(results: Results, case: str) -> None:
    """The best model is that of the lowest pseudo-perplexity, and it has what was noted."""
    done, alone = results[case]["patient"]["done"], results[case]["alone"]
    values = dict(done["early_stopping"]["evaluations"])
    assert done["selected_step"] == min(values, key=lambda step: (values[step], step))
    noted = done["evaluation"]["pseudo_perplexity"]
    assert noted["tokens"] == alone["tokens"] and noted["per_sentence"] == values[done["selected_step"]]
    for name in ("per_sentence", "per_token"):
        assert noted[name] == pytest.approx(alone[name], rel=1e-4 if case.startswith("fp32") else 2e-2)

"""Real DeepSpeed over gloo: two ranks take the same steps as one, in every ZeRO stage, and resume to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.corpus import Corpus
from tests.ranks import start

PROGRAM = Path(__file__).with_name("rank_program.py")
FP32 = ["fp32-0", "fp32-1", "fp32-2", "fp32-3"]
BF16 = ["bf16-1", "bf16-2", "bf16-3"]
FP16 = ["fp16-1"]
OVERFLOWING = "fp16-2"
OFFLOADED = ["bf16-1-optimizer", "bf16-3-parameters"]
CASES = [*FP32, *BF16, *FP16, OVERFLOWING, *OFFLOADED]
pytestmark = [pytest.mark.ranks, pytest.mark.timeout(1800)]
PATIENCE = 600.0
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results, Results]:
    """Results of one rank, of two, and of one rank continuing what two began."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two", "two-to-one")]
    corpus = str(tiny_corpus.folder)
    # The first without any program on PATH, a compiler least of all: nothing may have to be built.
    built = tmp_path_factory.mktemp("built")
    bare = {"PATH": str(tmp_path_factory.mktemp("empty")), "TORCH_EXTENSIONS_DIR": str(built)}
    start(PROGRAM, 1, corpus, str(folders[0]), extra=bare, timeout=PATIENCE)
    assert list(built.rglob("*.so")) == []
    start(PROGRAM, 2, corpus, str(folders[1]), timeout=PATIENCE)
    start(PROGRAM, 1, corpus, str(folders[2]), str(folders[1]), timeout=PATIENCE)
    one, two, changed = (json.loads((folder / "results.json").read_text()) for folder in folders)
    return one, two, changed


@pytest.mark.parametrize("case", FP32)
def test_two_ranks_take_the_steps_of_one(results: tuple[Results, Results, Results], case: str) -> None:
    one, two, _ = results
    reference = one["fp32-0"]["rows"]
    for rows in (one[case]["rows"], two[case]["rows"]):
        assert [row[0] for row in rows] == pytest.approx([row[0] for row in reference], rel=1e-5)
        assert [row[1] for row in rows] == pytest.approx([row[1] for row in reference], rel=1e-4)


def test_the_steps_were_cut_differently(results: tuple[Results, Results, Results]) -> None:
    one, two, _ = results
    micro = [[row[2] for row in r["fp32-1"]["rows"]] for r in (one, two)]
    assert max(micro[0]) > 2 and max(micro[1]) > 1 and micro[0] != micro[1]


@pytest.mark.parametrize("case", [*BF16, *FP16, *OFFLOADED])
def test_sixteen_bit_stages_agree(results: tuple[Results, Results, Results], case: str) -> None:
    one, two, _ = results
    reference = one["fp32-1"]["rows"]
    for rows in (one[case]["rows"], two[case]["rows"]):
        assert [row[0] for row in rows] == pytest.approx([row[0] for row in reference], rel=2e-3)
        # Twice-counted micro-steps or a wrong average show in the norm before they show in the loss.
        assert [row[1] for row in rows] == pytest.approx([row[1] for row in reference], rel=3e-2)


@pytest.mark.parametrize("case", CASES)
def test_resume_is_bitwise(results: tuple[Results, Results, Results], case: str) -> None:
    for world in results[:2]:
        assert world[case]["bitwise"]
        assert world[case]["resumed_rows"] == world[case]["rows"][3:]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_become_one(results: tuple[Results, Results, Results], case: str) -> None:
    _, two, changed = results
    assert changed[case]["state_kept"]
    if case == OVERFLOWING:  # one rank sums what two do not, so that other steps may overflow
        return
    tolerance = 1e-5 if case.startswith("fp32") else 2e-3
    losses = [row[0] for row in changed[case]["continued"]]
    assert losses == pytest.approx([row[0] for row in two[case]["rows"][3:]], rel=tolerance)


@pytest.mark.parametrize(("case", "word"), [("fp32-0", 4), ("fp32-1", 4), ("bf16-1", 2), ("fp16-1", 2)])
def test_a_step_sends_what_one_reduction_of_the_gradients_does(
    results: tuple[Results, Results, Results], case: str, word: int
) -> None:
    """However many micro-steps it has; ``word``: bytes of a gradient on the way, as of a weight."""
    two = results[1][case]
    assert max(row[2] for row in two["rows"][3:]) > 1
    least = 2 * word * two["trained"] * (2 - 1) / 2
    assert least <= two["sent"] <= 1.05 * least


def test_steps_that_overflow_are_left_out_and_the_scale_falls(results: tuple[Results, Results, Results]) -> None:
    for world in results[:2]:
        case = world[OVERFLOWING]
        total, in_row = case["skipped"]
        assert 0 < total < 6 and in_row == 0
        assert case["scaler"]["cur_scale"] == 2.0**20 / 2**total
        losses = [row[0] for row in case["rows"]]
        assert losses[-1] < losses[0] - 0.5  # the others were taken
        assert world["fp16-1"]["skipped"] == [0, 0]

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
pytestmark = [pytest.mark.ranks, pytest.mark.timeout(900)]
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results, Results]:
    """Results of one rank, of two, and of one rank continuing what two began."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two", "two-to-one")]
    corpus = str(tiny_corpus.folder)
    # The first without any program on PATH, a compiler least of all: nothing may have to be built.
    built = tmp_path_factory.mktemp("built")
    bare = {"PATH": str(tmp_path_factory.mktemp("empty")), "TORCH_EXTENSIONS_DIR": str(built)}
    start(PROGRAM, 1, corpus, str(folders[0]), extra=bare)
    assert list(built.rglob("*.so")) == []
    start(PROGRAM, 2, corpus, str(folders[1]))
    start(PROGRAM, 1, corpus, str(folders[2]), str(folders[1]))
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


@pytest.mark.parametrize("case", BF16)
def test_sixteen_bit_stages_agree(results: tuple[Results, Results, Results], case: str) -> None:
    one, two, _ = results
    reference = one["fp32-1"]["rows"]
    for rows in (one[case]["rows"], two[case]["rows"]):
        assert [row[0] for row in rows] == pytest.approx([row[0] for row in reference], rel=2e-3)
        # Twice-counted micro-steps or a wrong average show in the norm before they show in the loss.
        assert [row[1] for row in rows] == pytest.approx([row[1] for row in reference], rel=3e-2)


@pytest.mark.parametrize("case", FP32 + BF16)
def test_resume_is_bitwise(results: tuple[Results, Results, Results], case: str) -> None:
    for world in results[:2]:
        assert world[case]["bitwise"]
        assert world[case]["resumed_rows"] == world[case]["rows"][3:]


@pytest.mark.parametrize("case", FP32 + BF16)
def test_two_ranks_become_one(results: tuple[Results, Results, Results], case: str) -> None:
    _, two, changed = results
    assert changed[case]["state_kept"]
    tolerance = 1e-5 if case in FP32 else 2e-3
    losses = [row[0] for row in changed[case]["continued"]]
    assert losses == pytest.approx([row[0] for row in two[case]["rows"][3:]], rel=tolerance)

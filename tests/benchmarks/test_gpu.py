"""The GPU table's logic, on a CPU and without the packages that a stock image lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.step.measure import Found, Outcome
from tests import ranks

PROGRAM = Path(__file__).parent / "gpu_program.py"


@pytest.mark.ranks
def test_the_whole_table_without_deepspeed_and_textbrewer(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.md"
    text = ranks.start(PROGRAM, 1, "--record", str(path))[0]
    for part in (
        "Share of the matrix peak",
        "Against peers under bf16 autocast",
        "Gradient against plain fp32 autograd",
    ):
        assert part in text and part in path.read_text(encoding="utf-8")
    assert "Not run: ours bf16: deepspeed is not installed." in text
    assert "Not run: textbrewer bf16: textbrewer is not installed." in text
    assert "| base-h256-packed-32, bare bf16 |" in text and "| rbt6-h256-lines-32-small | hf bf16 |" in text
    assert "**no**" not in text and "| yes |" in text  # gradients of the bare step


def test_what_is_measured_on_a_gpu() -> None:
    every = gpu.settings(tiny=False)
    assert len(every) == 16 and {s.sequences * s.length for s in every} == {gpu.TOKENS}
    assert all(s.teacher.layers % s.student.layers == 0 and s.attention_dropout == 0 for s in every)
    assert {gpu.small(s, tiny=False).sequences * s.length for s in every} == {gpu.PEERS_TOKENS}
    student = gpu.of_checkouts(every[0])["tinybert"].student
    assert student.heads == every[0].teacher.heads  # its code compares head with head


def test_shares_and_ratios() -> None:
    found = [
        Found("base-h256-lines-128", name, 1e6, behind, 0.5) for name, behind in (("ours bf16", 1), ("hf bf16", 3))
    ]
    outcome = Outcome("base-h256-lines-128", 0.5, found, [], 4e14, 3)
    assert "| base-h256-lines-128, ours bf16 | 1,000,000 | 50.0% | 25.4% | 40% / 52% |" in gpu.shares([outcome], 4e14)
    assert "| base-h256-lines-128 | hf bf16 | 3.00 x |  |" in gpu.ratios([outcome])

"""The GPU table's logic, on a CPU and without the packages that a stock image lacks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import table as gpu
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
        "Our gradient, and all losses, against plain fp32 autograd, without dropout",
    ):
        assert part in text and part in path.read_text(encoding="utf-8")
    assert "Not run: ours bf16: deepspeed is not installed." in text
    assert "Not run: textbrewer bf16: textbrewer is not installed." in text
    assert "| base-h256-packed-32, bare bf16 |" in text and "| rbt6-h256-lines-32-small | hf bf16 |" in text
    assert "**no**" not in text and "| yes |" in text  # gradients of the bare step
    assert "lines-32, hf | bf16 |  |" in text  # a peer's loss


def test_what_is_measured_on_a_gpu() -> None:
    every = gpu.settings(tiny=False)
    assert len(every) == 16 and {s.sequences * s.length for s in every} == {gpu.TOKENS}
    assert all(s.teacher.layers % s.student.layers == 0 and s.attention_dropout == 0 for s in every)
    assert {gpu.small(s, tiny=False).sequences * s.length for s in every} == {gpu.PEERS_TOKENS}
    student = gpu.of_checkouts(every[0])["tinybert"].student
    assert student.heads == every[0].teacher.heads  # its code compares head with head


def test_what_matters_most_comes_first() -> None:
    works = gpu.schedule(tiny=False, real_loop=True)
    names = [work.setting.name for work in works]
    assert len(names) == len(set(names)) == 16 + 8 + 1 and {work.setting.text for work in works[:8]} == {"packed-128"}
    assert {s.name for s in gpu.settings(tiny=False)} <= set(names)
    builds = sum(len(work.variants) for work in works)
    assert builds == 16 + 1 + 8 * 4 + 3  # of models and loops, which take longer than steps
    without = gpu.schedule(tiny=False, real_loop=False)
    assert all("ours" not in work.variants[0] for work in without[1:4]) and len(without) == len(works) - 1


def test_a_setting_that_fails_is_named_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = gpu.arguments(["--tiny"])
    monkeypatch.setattr(gpu, "start_alone", lambda work: SimpleNamespace(device=torch.device("cpu")))
    monkeypatch.setattr(gpu, "matrix_peak", lambda *_: 1e12)
    table, recorded = gpu.Table(given, Path()), list[int]()
    works = gpu.schedule(tiny=True, real_loop=True)[:2]

    def measured(bench: Any, variants: list[str], *_: Any) -> Outcome:
        if bench == works[0].setting.name:
            raise RuntimeError("cuBLAS said no\nat length")
        return Outcome(bench, 1.0, [Found(bench, variants[0], 1e6, 1.0, 0.5)], [], 1e12, 1)

    monkeypatch.setattr(table, "bench", lambda setting: setting.name)
    monkeypatch.setattr(gpu, "interleaved", measured)
    table.run(works, lambda: recorded.append(len(table.found["alone"])))
    assert recorded == [0, 1] and table.failed == [f"{works[0].setting.name}: RuntimeError: cuBLAS said no"]
    assert table.failed[0] in capsys.readouterr().out and table.failed[0] in table.parts()["Failed"]


def test_packages_that_a_stock_image_lacks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.lacking() == []
    monkeypatch.setitem(program.NEEDED, "no_such_module", "no-such-package")
    assert program.main() == 2
    assert "pip install no-such-package" in capsys.readouterr().out


def test_shares_and_ratios() -> None:
    found = [
        Found("base-h256-lines-128", name, 1e6, behind, 0.5) for name, behind in (("ours bf16", 1), ("hf bf16", 3))
    ]
    outcome = Outcome("base-h256-lines-128", 0.5, found, [], 4e14, 3)
    assert "| base-h256-lines-128, ours bf16 | 1,000,000 | 50.0% | 25.4% | 40% / 52% |" in gpu.shares([outcome], 4e14)
    assert "| base-h256-lines-128 | hf bf16 | 3.00 x |  |" in gpu.ratios([outcome])

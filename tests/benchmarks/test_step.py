"""The benchmark of the step: its pieces run, and its numerics tell right losses from wrong ones."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from benchmarks.step import measure, numerics, record
from benchmarks.step.bars import BARS, MEMORY, NUMERICS, PEERS, SETTINGS, VARIANTS
from benchmarks.step.bench import Unavailable
from benchmarks.step.flops import useful_flops
from benchmarks.step.measure import Found, Outcome
from benchmarks.step.settings import Setting, Shape
from benchmarks.step.text import UNLABELLED, padded
from benchmarks.step.turns import Feed, Gate, Loop
from distill_core.batch import Batch
from tests import ranks

PROGRAM = Path(__file__).parent / "step_program.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("step")
    ranks.start(PROGRAM, 1, str(out), timeout=280)
    loaded: dict[str, Any] = json.loads((out / "found.json").read_text(encoding="utf-8"))
    return loaded


@pytest.mark.ranks
def test_every_variant_that_is_installed_runs(found: dict[str, Any]) -> None:
    for outcome in found["outcomes"]:
        ran = [one["variant"] for one in outcome["found"]]
        assert ran[:4] == ["ours bf16", "bare bf16", "hf fp32", "textbrewer bf16"]
        assert outcome["missing"][0] == "distilbert: give a checkout of its code with --distilbert PATH"
        assert outcome["rounds"] == 2 and outcome["failed"] == []
        assert sum(outcome["found"][0]["parts"].values()) == pytest.approx(1) and not outcome["found"][1]["parts"]
        assert all(one["speed"] > 0 and 0 < one["share"] < 1 for one in outcome["found"])
        assert outcome["found"][0]["behind"] == 1.0
    assert [outcome["fill"] < 1 for outcome in found["outcomes"]] == [True, False]
    with_options = found["outcomes"][0]
    assert [one["variant"] for one in with_options["found"]][4:] == ["ours bf16 int8-teacher"]
    assert "ours bf16 fp8-teacher: " in with_options["missing"][1] and "fp8 matrix units" in with_options["missing"][1]


@pytest.mark.ranks
def test_peers_have_our_loss(found: dict[str, Any]) -> None:
    assert all(one["ok"] for one in found["peers"]), found["peers"]
    assert [one["with dropout"] for one in found["peers"] if one["precision"] == "fp32"] == [False, False]


@pytest.mark.ranks
def test_the_real_step_has_the_gradient_of_plain_autograd(found: dict[str, Any]) -> None:
    assert all(one["ok"] for one in found["checks"]), found["checks"]
    assert [one["gradient"] < 1e-6 for one in found["checks"]] == [True] * 4 + [False]  # the last one is bf16


@pytest.mark.ranks
def test_a_wrong_loss_is_seen(found: dict[str, Any]) -> None:
    assert found["wrong"] == {"temperature": False, "layers": False}


class Steps:
    """A runner that raises at one of its steps."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self.breaks_at, self.done, self.closed = breaks_at, 0, 0

    def trained(self) -> dict[str, Any]:
        return {}

    def step(self) -> None:
        self.done += 1
        if self.done == self.breaks_at:
            raise ValueError(f"step {self.done}\nwith much to say")

    def close(self) -> None:
        self.closed += 1


class FakeBench:
    """Of steps without any work."""

    setting, steps, vocabulary, fill = SETTINGS["packed-128"], 1, 10, 1.0
    rank = SimpleNamespace(device=torch.device("cpu"))
    batches: ClassVar[list[list[Batch]]] = [[Batch.of([[1, 2]])]]

    def __init__(self, **runners: Any) -> None:
        self.runners = runners

    def runner(self, variant: str) -> Any:
        if self.runners[variant] is None:
            raise Unavailable(f"{variant} is not here")
        return self.runners[variant]

    def shared_bytes(self, variant: str) -> float:
        return 0.0

    def parts(self, variant: str) -> dict[str, float]:
        return {}

    def tokens(self, step: int) -> int:
        return 2


def test_a_variant_that_fails_is_left_out_and_named() -> None:
    runners = {"ours": Steps(), "first": Steps(1), "later": Steps(3), "none": None}
    bench: Any = FakeBench(**runners)
    outcome = measure.interleaved(bench, list(runners), 3, 100.0, peak=lambda: 1.0)
    assert [one.variant for one in outcome.found] == ["ours"] and outcome.rounds == 3
    assert outcome.failed == ["first: ValueError: step 1", "later: ValueError: step 3"]
    assert outcome.missing == ["none is not here"]
    assert [one.closed for one in runners.values() if one is not None] == [1, 1, 1]


def test_everything_is_closed_when_measuring_is_broken_off() -> None:
    def interrupted() -> float:
        raise KeyboardInterrupt

    runners = {"ours": Steps(), "other": Steps()}
    bench: Any = FakeBench(**runners)
    with pytest.raises(KeyboardInterrupt):
        measure.interleaved(bench, list(runners), 3, 100.0, peak=interrupted)
    assert [one.closed for one in runners.values()] == [1, 1]


def test_time_is_shared_out_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    budget = measure.Budget(100.0, [1, 1, 2])
    assert budget.next() == 25
    now[0] = 40.0  # the first took longer than its share
    assert budget.next() == 20
    now[0] = 120.0
    assert budget.next() == 0 and budget.left < 0
    runner = Steps()
    bench: Any = FakeBench(ours=runner)

    def ten_seconds() -> float:
        now[0] += 10
        return 1.0

    assert measure.interleaved(bench, ["ours"], 8, 35.0, peak=ten_seconds).rounds == 3
    assert measure.interleaved(bench, ["ours"], 8, 5.0, peak=ten_seconds).rounds == 1


def test_loops_take_turns() -> None:
    log: list[str] = []

    def program(name: str, gate: Gate) -> None:
        for batch in Feed(gate, [1, 2]):
            log.append(f"{name}{batch}")

    loops = [Loop(lambda gate, name=name: program(name, gate)) for name in "ab"]  # type: ignore[misc]
    for _ in range(3):
        for loop in loops:
            loop.step()
    assert log == ["a1", "b1", "a2", "b2", "a1", "b1"]
    for loop in loops:
        loop.close()


def test_an_error_in_a_loop_reaches_the_one_who_drives_it() -> None:
    def broken(gate: Gate) -> None:
        for _ in Feed(gate, [0]):
            raise ValueError("in the loop")

    loop = Loop(broken)
    with pytest.raises(ValueError, match="in the loop"):
        loop.step()
    with pytest.raises(RuntimeError, match="ended by itself"):
        Loop(lambda gate: None)


def test_a_stream_as_a_padded_batch() -> None:
    batch = Batch.of([[5, 6, 7], [8]], rows=torch.tensor([1, 3]))
    batch.labels = torch.tensor([9, 4])
    made = padded(batch, 4, pad=0)
    assert made.ids.tolist() == [[5, 6, 7, 0], [8, 0, 0, 0]]
    assert made.attended.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    u = UNLABELLED
    assert made.labels.tolist() == [[u, 9, u, u], [4, u, u, u]]
    assert made.tokens == 4


@pytest.mark.parametrize("recipe", ["minirbt", "distilbert", "distilbert-masked", "tinybert"])
def test_useful_work_counted_by_hand(recipe: Any) -> None:
    teacher, student, vocabulary = Shape(4, 8, 2, 16), Shape(2, 4, 2, 8), 11
    batch = Batch.of([[1, 2, 3], [4, 5]], rows=torch.tensor([1]))
    rows = {"minirbt": 1, "distilbert-masked": 1, "distilbert": 5, "tinybert": 0}[recipe]

    def forward(shape: Shape) -> int:
        total = rows * 2 * (shape.width**2 + shape.width * vocabulary)
        for length in (3, 2):
            matrices = 4 * shape.width**2 + 2 * shape.width * shape.intermediate
            total += shape.layers * (2 * matrices * length + 4 * length * length * shape.width)
        return total

    projections = 2 * 8 * 4 * 5 * 3 if recipe in ("minirbt", "tinybert") else 0
    expected = forward(teacher) + 3 * (forward(student) + projections)
    setting = Setting("s", teacher, student, recipe, "lines-4", 2)
    assert useful_flops(setting, [batch], vocabulary) == pytest.approx(expected)


def test_every_bar_is_measured() -> None:
    assert set(VARIANTS) | set(MEMORY) | set(PEERS) <= set(SETTINGS)
    assert set(NUMERICS) <= set(VARIANTS)
    for bar in BARS:
        assert bar.against in (MEMORY if bar.kind == "memory" else VARIANTS)[bar.setting]
        assert bar.reached(bar.aim, bar.floor)


def test_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "name-of-this-machine")
    speeds = {"ours bf16": 1.0, "bare bf16": 0.9, "textbrewer bf16": 2.0}
    rows = [Found("packed-128", name, 100.0, behind, 0.8) for name, behind in speeds.items()]
    outcome = Outcome("packed-128", 1.0, rows, ["tinybert bf16: not here"], 2e11, 3, ["hf bf16: ValueError: broken"])
    bars = record.against_bars([outcome], {("packed-512-memory", "ours bf16"): 1.5})
    lines = bars.splitlines()
    assert "| TextBrewer bf16, packed 128, base -> H256 | 2.00 x | 1.80 x | 2.20 x | floor |" in lines
    assert "| share of the bf16 matrix peak, packed 128 | 80.0% | 72.0% | 85.0% | floor |" in lines
    assert "| the real loop over the bare step, packed 128 | 11.1% | 5.0% | 5.0% | **below** |" in lines
    assert len(lines) == 2 + 3  # what was not measured is not shown, and half a comparison of memory is none
    path = tmp_path / "benchmarks.md"
    path.write_text("# Benchmarks\n", encoding="utf-8")
    section = record.Section(path, "The step", "make bench")
    section.write({"Measured": "too early"})
    section.write({"Measured": record.measured([outcome], "CPU second")})
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Benchmarks\n\n## The step, 20")
    assert f"torch {torch.__version__}" in text and "Not run: tinybert bf16: not here." in text
    assert "**Failed:** packed-128: hf bf16: ValueError: broken" in text and "too early" not in text
    assert "name-of-this-machine" not in text and list(tmp_path.iterdir()) == [path]
    checks = [numerics.Check("packed-128", "fp32", 1e-6, 1e-7), numerics.Check("packed-128", "bf16", None, 0.03, "hf")]
    lines = record.numerics(checks).splitlines()
    assert "| packed-128, ours | fp32 | 1.0e-06 | 1.0e-07 | 1e-05 | yes |" in lines
    assert "| packed-128, hf | bf16 |  | 3.0e-02 | 2e-02 | **no** |" in lines

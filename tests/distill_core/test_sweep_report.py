from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from distill_core.config import RunConfig
from distill_core.sweep_report import Column, short, write_sweep_report
from tests.distill_core.finished import Finished
from tests.distill_core.test_report import check_html

RATE = "stages.student.training.optimizer.learning_rate"


def three(finished: Finished, better: float) -> list[tuple[dict[str, Any], RunConfig]]:
    """Runs named 1, 2, 3: finished, finished with ``better`` added to its student's held-out loss, not begun."""
    sweep, runs = finished.folder.parent / "sweep", []
    for number in (1, 2, 3):
        config = finished.config.model_copy(update={"name": str(number), "output": str(sweep)})
        runs.append(({RATE: number / 10}, config))
        if number < 3:
            shutil.copytree(finished.folder, config.folder)
    path = sweep / "2" / "stages" / "02-student" / "DONE.json"
    done = json.loads(path.read_text())
    done["evaluation"]["student"]["loss"] += better
    path.write_text(json.dumps(done))
    return runs


@pytest.mark.parametrize(("better", "best"), [(-0.5, "2"), (0.5, "1")])
def test_the_best_run_is_marked(finished: Finished, better: float, best: str) -> None:
    runs = three(finished, better)
    sweep = finished.folder.parent / "sweep"
    page = write_sweep_report("sweep", sweep, runs)
    text = check_html(page)
    assert text.count("<svg") >= 2
    lines = [line for line in (sweep / "report.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    head, *rows = [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]
    assert head[:4] == ["run", "learning_rate", "state", "parameters"]
    assert [row[:3] for row in rows] == [["1", "0.1", "finished"], ["2", "0.2", "finished"], rows[2][:3]]
    assert rows[2][2] == "teacher: not started"
    losses = {row[0]: row[head.index("loss")] for row in rows}
    assert [name for name, loss in losses.items() if loss.startswith("★")] == [best]
    assert losses["3"] == "–"
    assert f"least held-out loss: {best}" in text
    assert f"learning_rate: {RATE}" in text
    assert "3 is not finished" in text


def test_losses_on_different_corpora_are_not_ranked(finished: Finished, tmp_path: Path) -> None:
    runs = three(finished, -0.5)
    other = tmp_path / "other"
    other.mkdir()
    manifest = json.loads((finished.corpus.folder / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"hash": "another"}))
    changes, second = runs[1]
    data = second.data.model_copy(update={"folder": str(other)})
    runs[1] = (changes, second.model_copy(update={"data": data}))
    text = write_sweep_report("sweep", tmp_path / "sweep", runs).with_suffix(".md").read_text(encoding="utf-8")
    assert "different corpora" in text
    assert "least held-out loss" not in text
    marked = [line for line in text.splitlines() if line.startswith("| ") and "★" in line]
    assert not marked


def test_cells_of_a_column() -> None:
    assert Column("x", [1.0, None, 3.0, 3.0], "{:g}".format, max).cells() == ["1", "–", "★ 3", "★ 3"]
    assert Column("x", [2.0, 2.0], "{:g}".format, min).cells() == ["2", "2"]
    assert Column("x", [1.0, 2.0], "{:g}".format).cells() == ["1", "2"]


def test_keys_are_short_where_that_tells_them_apart() -> None:
    assert short(["a.steps", "b.steps", "c.seed"]) == ["a.steps", "b.steps", "seed"]

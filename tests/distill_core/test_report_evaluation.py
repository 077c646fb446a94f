from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill_core import report_evaluation
from distill_core.finish import finish_run
from distill_core.outcome import read_json, read_outcome, write_json
from distill_core.report import write_report
from tests.distill_core.finished import Finished

CHOICES = {"sentence": "今天天气很[MASK]。", "choices": ["好", "不"], "answer": "好"}


@pytest.fixture
def asked(finished: Finished, tmp_path: Path) -> Finished:
    """The run with all measurements of this part asked for."""
    path = tmp_path / "choices.jsonl"
    path.write_text(json.dumps(CHOICES, ensure_ascii=False) + "\n", encoding="utf-8")
    tree = finished.config.model_dump(mode="json")
    tree["evaluation"] |= {"pseudo_perplexity": {"sequences": 2}, "bias": ["zh"], "choices": str(path)}
    return Finished(type(finished.config).model_validate(tree), finished.folder, finished.corpus)


def test_a_run_that_asks_for_everything(asked: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    finish_run(asked.config, asked.folder)
    said = capsys.readouterr().out
    html = (asked.folder / "report.html").read_text(encoding="utf-8")
    markdown = (asked.folder / "report.md").read_text(encoding="utf-8")
    perplexity = read_json(asked.folder / "evaluation" / "pseudo_perplexity.json")
    assert perplexity is not None
    figures = [f"{row[key]:,.2f}" for row in perplexity["rows"] for key in ("per_sentence", "per_token")]
    assert [row["model"] for row in perplexity["rows"]] == ["teacher", "student"] and len(set(figures)) == 4
    for part in (*figures, "Pseudo-perplexity", "per sentence", "Gender bias of occupations", "Zero-shot choice"):
        assert part in html and part in markdown and part in said, part
    bias = read_json(asked.folder / "evaluation" / "bias.json")
    assert bias is not None
    for row in bias["rows"]:
        assert f"{row['mean_absolute']:.3f} | {row['mean_absolute_occupation']:.3f}" in markdown
    word = bias["rows"][0]["occupations"][0]
    assert f"{word['score']:+.3f}" in markdown and "bias scores by occupation (zh)" in html
    assert "evaluation is not made" not in html

    written = {path: path.stat().st_mtime_ns for path in (asked.folder / "evaluation").iterdir()}
    finish_run(asked.config, asked.folder)
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_changed_choices_file_is_measured_again(asked: Finished) -> None:
    finish_run(asked.config, asked.folder)
    path = Path(asked.config.evaluation.choices or "")
    path.write_text(path.read_text(encoding="utf-8") * 3, encoding="utf-8")
    finish_run(asked.config, asked.folder)
    rows = (read_json(asked.folder / "evaluation" / "choices.json") or {})["rows"]
    assert [row["items"] for row in rows] == [3, 3]


def test_what_was_asked_for_and_is_not_there(asked: Finished) -> None:
    outcome = read_outcome(asked.config, asked.folder)
    assert report_evaluation.missing(outcome) == [
        f"The {what} evaluation is not made yet." for what in ("pseudo-perplexity", "bias", "choices")
    ]
    assert report_evaluation.tables(outcome) == [] and report_evaluation.notes(outcome) == []
    html = write_report(asked.config, asked.folder).read_text(encoding="utf-8")
    assert "pseudo-perplexity evaluation is not made" in html and "Language" not in html


def test_what_was_not_asked_for_is_not_shown(finished: Finished) -> None:
    write_json(finished.folder / "evaluation" / "choices.json", {"rows": [{"model": "old"}]})
    outcome = read_outcome(finished.config, finished.folder)
    assert report_evaluation.tables(outcome) == [] and report_evaluation.missing(outcome) == []


def test_cells() -> None:
    skipped: dict[str, Any] = {"model": "a", "has_head": True, "skipped": "why."}
    found = {"model": "b", "has_head": False, "per_sentence": 1234.5, "per_token": 2.0, "sequences": 3, "tokens": 4000}
    assert report_evaluation.perplexity_table([skipped, found]).rows == [
        ["a (not measured: why)", "–", "–", "–", "–"],
        ["b (random: no masked-LM head)", "1,234.50", "2.00", "3", "4,000"],
    ]
    assert report_evaluation.bias_table([skipped]).rows == [["–", "a (not measured: why)", *["–"] * 8]]
    assert report_evaluation.choices_table([skipped]).rows == [["a (not measured: why)", "–", "–", "–"]]
    nothing = {
        "model": "a",
        "has_head": True,
        "accuracy": None,
        "items": 0,
        "unscored": {"too_long": 1200, "unknown": 2},
    }
    assert report_evaluation.choices_table([nothing]).rows == [["a", "–", "0", "1,200 too long, 2 unknown"]]

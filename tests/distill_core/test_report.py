from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import DataError, OutputError
from distill_core import plots
from distill_core.early_stopping import EarlyStopping, EarlyStoppingConfig
from distill_core.engine import Rank
from distill_core.finish import finish_run
from distill_core.outcome import read_outcome, read_rows, write_json
from distill_core.report import write_report
from distill_core.report_facts import closed
from tests.distill_core.finished import SENTENCES, Finished, metrics_row

RANK = Rank(0, 0, 1, torch.device("cpu"))
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Checker(HTMLParser):
    """Collects ids and outside references, and notices tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.outside: list[str] = []
        self.headings = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.outside.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_html(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    assert checker.outside == []
    assert "@import" not in text and "<script" not in text
    assert not re.findall(r"url\((?!#)", text)
    for target in re.findall(r'(?:href="|url\()#([\w.-]+)', text):
        assert target in checker.ids
    return text


def test_a_finished_run(finished: Finished) -> None:
    environment = {"python": "3.11.9", "revision": "abc123", "packages": {"torch": "2.13.0", "zzz": "9"}}
    write_json(finished.folder / "environment.json", environment)
    finish_run(finished.config, finished.folder)
    html = check_html(finished.folder / "report.html")
    markdown = (finished.folder / "report.md").read_text(encoding="utf-8")
    manifest = finished.corpus.manifest
    both = [
        "trial",
        "unigram baseline",
        "4.5000",
        "20.00%",
        "62.5%",
        "teacher → student",
        "2 layers, hidden 16, 2 heads, intermediate 64",
        "layers (teacher-student) 0-0, 3-2",
        "346",
        "0.75 GB",
        *SENTENCES,
        finished.corpus.hash,
        f"{manifest['splits']['train']['tokens']:,}",
        manifest["segmenter"]["name"],
        "zzz==9",
        "3.11.9",
        f"distill run {finished.folder / 'config.yaml'}",
        "latency_repeats: 2",
    ]
    for part in both:
        assert part in html, part
        assert part in markdown, part
    assert html.count("<svg") == 4 + 2 * 2
    assert "Not there yet" not in html and "Not there yet" not in markdown
    assert "prefers-color-scheme: dark" in html


def test_stages_that_stopped_early_say_why(finished: Finished) -> None:
    path = finished.config.stage_folder(1) / "DONE.json"
    early = EarlyStopping(EarlyStoppingConfig(metric="loss", patience=2), RANK, [(10, 4.5), (15, 4.75), (20, 4.5)])
    done = json.loads(path.read_text())
    path.write_text(json.dumps({**done, "early_stopping": early.facts(20, 1000)}))
    write_report(finished.config, finished.folder)
    html, markdown = (check_html(finished.folder / "report.html"), (finished.folder / "report.md").read_text())
    why = (
        "student stopped early after step 20 of at most 1000: loss has not fallen in 2 evaluations since step 10 (4.5)."
    )
    assert why in html and why in markdown
    assert "| student | loss | 2 | 0 | 20 of 1,000 | 4.5 | 10 |" in markdown
    assert "| student | finished | 20 of 1,000 | 8 sequences |" in markdown
    assert "| teacher | finished | 20 | 8 sequences |" in markdown


def test_writing_again_gives_the_same(finished: Finished) -> None:
    path = write_report(finished.config, finished.folder)
    first = path.read_bytes()
    assert write_report(finished.config, finished.folder).read_bytes() == first


def test_a_run_that_has_only_begun(finished: Finished) -> None:
    (finished.config.stage_folder(1) / "DONE.json").unlink()
    shutil.rmtree(finished.config.stage_folder(1) / "model")
    html = check_html(write_report(finished.config, finished.folder))
    assert "Stage student is not finished (step 20 of 20)." in html
    for what in ("unigram baseline is not measured", "Latency is not measured", "guesses are not made"):
        assert what in html
    assert "5.5000" in html and "4.5000" not in html


def test_a_run_that_has_not_begun(finished: Finished, tmp_path: Path) -> None:
    shutil.rmtree(finished.folder / "stages")
    tree = finished.config.model_dump(mode="json")
    tree["data"]["folder"] = str(tmp_path / "no data")
    config = type(finished.config).model_validate(tree)
    html = check_html(write_report(config, finished.folder))
    assert "Stage teacher is not finished (not started)." in html
    assert "The prepared data is not in its place." in html
    assert "<svg" not in html


def test_names_and_texts_are_escaped(finished: Finished) -> None:
    guess = {"token": "<b>", "probability": 0.5}
    row = {"sentence": "<i>a|b[MASK]", "model": "teacher", "guesses": [guess]}
    write_json(finished.folder / "evaluation" / "fill_mask.json", {"rows": [row]})
    html = check_html(write_report(finished.config, finished.folder))
    assert "&lt;i&gt;a|b[MASK]" in html and "&lt;b&gt;" in html
    assert "a\\|b[MASK]" in (finished.folder / "report.md").read_text(encoding="utf-8")


def test_a_damaged_file_is_named(finished: Finished) -> None:
    (finished.config.stage_folder(0) / "DONE.json").write_text('{"name"')
    with pytest.raises(DataError, match=r"01-teacher/DONE\.json cannot be read"):
        write_report(finished.config, finished.folder)


def test_a_folder_that_cannot_be_written(finished: Finished) -> None:
    (finished.folder / "report.html").mkdir()
    with pytest.raises(OutputError, match=r"report\.html"):
        write_report(finished.config, finished.folder)
    assert not list(finished.folder.glob(".report*"))


def test_rows_taken_again_after_a_resume_count(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows: list[dict[str, Any]] = [{"step": 1, "a": 1}, {"step": 2, "a": 2}, {"step": 2, "b": 5}, {"step": 1, "a": 3}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "a"', encoding="utf-8")
    assert read_rows(path) == [{"step": 1, "a": 3}, {"step": 2, "a": 2, "b": 5}]
    assert read_rows(tmp_path / "none.jsonl") == []


def test_the_share_of_the_teachers_gain(finished: Finished) -> None:
    write_json(finished.folder / "evaluation" / "unigram.json", {"loss": 7.5, "accuracy": 0.0})
    outcome = read_outcome(finished.config, finished.folder)
    assert closed(outcome, 7.5) == 0.0 and closed(outcome, 5.5) == 1.0 and closed(outcome, 6.0) == 0.75
    write_json(finished.folder / "evaluation" / "unigram.json", {"loss": 5.0, "accuracy": 0.0})
    assert closed(read_outcome(finished.config, finished.folder), 5.5) is None


def test_plots_follow_the_page_and_need_data() -> None:
    rows = [metrics_row(step, with_teacher=True) for step in (5, 10)]
    svg = plots.training_curves("a b", rows)
    assert svg is not None and svg.startswith("<svg")
    assert "currentColor" in svg and "#010203" not in svg and "hidden_mse/3-2" in svg
    assert plots.training_curves("x", rows[:1]) is None
    assert plots.quality_curves("x", rows[:1], None) is None
    assert plots.bars("x", {}, str) is None

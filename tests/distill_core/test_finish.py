from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import pytest

from configs.errors import DataError
from data_prep.corpus import Corpus
from distill_core import finish
from distill_core.data import CorpusSource, held_out_batches
from distill_core.finish import finish_run, kept, unigram_baseline
from distill_core.outcome import read_json
from tests.distill_core.finished import SENTENCES, Finished


def contents(folder: Path) -> dict[str, bytes]:
    files = [p for name in ("evaluation", "export") for p in (folder / name).rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in [*files, folder / "report.html", folder / "report.md"]}


def test_finish_leaves_everything_and_twice_gives_the_same(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_run(finished.config, finished.folder)
    first, said = contents(finished.folder), capsys.readouterr().out
    assert first.keys() >= {
        "evaluation/unigram.json",
        "evaluation/latency.json",
        "evaluation/fill_mask.json",
        "export/student/model.safetensors",
        "export/student/README.md",
    }
    finish_run(finished.config, finished.folder)
    assert contents(finished.folder) == first
    assert capsys.readouterr().out == said
    for part in ("unigram baseline", "held-out loss", "4.5000", "20.0%", "ms at 2x48", "1.00x", *SENTENCES):
        assert part in said, part
    assert f"distill monitor {finished.folder}" in said
    assert str(finished.folder / "export" / "student") in said and str(finished.folder / "report.html") in said


def test_a_locale_without_chinese(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    finish_run(finished.config, finished.folder)
    assert b"unigram baseline" in raw.getvalue() and b"distill monitor" in raw.getvalue()


def test_latency_has_every_model_and_guesses_first_and_last(finished: Finished) -> None:
    finish_run(finished.config, finished.folder)
    evaluation = finished.folder / "evaluation"
    rows = json.loads((evaluation / "latency.json").read_text())["rows"]
    # The longest length is cut to the corpus's.
    assert [(r["model"], r["length"]) for r in rows] == [(m, n) for n in (8, 48) for m in ("teacher", "student")]
    rows = json.loads((evaluation / "fill_mask.json").read_text())["rows"]
    assert [(r["sentence"], r["model"]) for r in rows] == [(s, m) for s in SENTENCES for m in ("teacher", "student")]


def test_measures_again_when_a_model_changed(finished: Finished) -> None:
    finish_run(finished.config, finished.folder)
    before = read_json(finished.folder / "evaluation" / "fill_mask.json")
    models = [finished.config.stage_folder(i) / "model" / "model.safetensors" for i in (0, 1)]
    from safetensors.torch import load_file, save_file

    state = load_file(models[1])
    state["cls.predictions.bias"][7] += 50
    save_file(state, models[1], metadata={"format": "pt"})
    finish_run(finished.config, finished.folder)
    after = read_json(finished.folder / "evaluation" / "fill_mask.json")
    assert before is not None and after is not None
    assert before["rows"][0] == after["rows"][0] and before["rows"][1] != after["rows"][1]


def test_an_unfinished_run(finished: Finished) -> None:
    (finished.config.stage_folder(0) / "DONE.json").unlink()
    with pytest.raises(DataError, match="'teacher' is not finished"):
        finish_run(finished.config, finished.folder)


def test_unigram_baseline_against_a_slow_one(tiny_corpus: Corpus) -> None:
    found = unigram_baseline(tiny_corpus, 20, seed=3)
    specials = set(tiny_corpus.special_ids.values())
    counts = [0 if token in specials else count for token, count in enumerate(tiny_corpus.unigram.tolist())]
    total, size = sum(counts), len(counts)
    labels: list[int] = []
    for batch in held_out_batches(CorpusSource(tiny_corpus.split("held_out")), 20, 3, 8192, 0, 1, "runs"):
        labels += batch.labels.tolist()
    loss = sum(-math.log((counts[label] + 1) / (total + size)) for label in labels) / len(labels)
    often = max(range(size), key=lambda token: (counts[token], -token))
    assert found["loss"] == pytest.approx(loss, abs=1e-9)
    assert found["accuracy"] == pytest.approx(sum(label == often for label in labels) / len(labels), abs=1e-12)
    assert found["masked_tokens"] == len(labels) > 20
    assert not specials & set(labels)


def test_kept_computes_once_for_the_same_settings(tmp_path: Path) -> None:
    path, calls = tmp_path / "x" / "a.json", []

    def compute() -> dict[str, object]:
        calls.append(1)
        return {"n": len(calls)}

    assert kept(path, {"a": 1}, compute)["n"] == 1
    assert kept(path, {"a": 1}, compute)["n"] == 1
    assert kept(path, {"a": 2}, compute)["n"] == 2
    path.write_text("{")  # cut short by a crash
    assert kept(path, {"a": 2}, compute)["n"] == 3


def test_a_chain_of_one_model(finished: Finished) -> None:
    tree = finished.config.model_dump(mode="json")
    tree["stages"] = tree["stages"][:1]
    config = type(finished.config).model_validate(tree)
    finish_run(config, finished.folder)
    assert (finished.folder / "export" / "teacher" / "model.safetensors").is_file()
    assert finish.first_and_last({"teacher": "x"}) == {"teacher": "x"}

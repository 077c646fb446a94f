from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline

from configs.errors import ConfigError, DataError, OutputError
from distill_core import export
from distill_core.batch import Batch
from distill_core.evaluate.fill_mask import guesses
from distill_core.export import export_run
from distill_core.features import FeatureRequest, Features
from distill_core.models import pretrained
from distill_core.outcome import write_json
from tests.distill_core.finished import SENTENCES, Finished


def ours(folder: Path, ids: Tensor) -> Features:
    encoder = pretrained.load(str(folder), "test").encoder.eval()
    last = encoder.config.num_hidden_layers
    request = FeatureRequest(hidden=frozenset({last}), logits=frozenset({"all"}))
    with torch.no_grad():
        features: Features = encoder(Batch.of([ids.tolist()]), request)
    return features


def test_transformers_loads_the_folder_with_equal_outputs(finished: Finished) -> None:
    folder = export_run(finished.config, finished.folder)
    assert folder == finished.folder / "export" / "student"
    inputs = AutoTokenizer.from_pretrained(folder)(SENTENCES[0], return_tensors="pt")
    features = ours(finished.config.stage_folder(1) / "model", inputs["input_ids"][0])
    with torch.no_grad():
        logits = AutoModelForMaskedLM.from_pretrained(folder).eval()(**inputs).logits[0]
        hidden = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state[0]
    torch.testing.assert_close(logits, features.logits["all"], atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden, features.hidden[2], atol=1e-5, rtol=0)
    found = pipeline("fill-mask", model=str(folder))(SENTENCES[1], top_k=3)
    expected = guesses(finished.config.stage_folder(1) / "model", [SENTENCES[1]], top_k=3)[0]["guesses"]
    assert [f["score"] for f in found] == pytest.approx([e["probability"] for e in expected], abs=1e-5)
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    assert [vocabulary[f["token"]] for f in found] == [e["token"] for e in expected]


def test_the_folder_is_complete_and_nothing_else(finished: Finished) -> None:
    folder = export_run(finished.config, finished.folder, "teacher")
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model.safetensors", "config.json", "vocab.txt", "tokenizer.json", "README.md"}
    assert [path.name for path in (finished.folder / "export").iterdir()] == ["teacher"]
    stored = load_file(folder / "model.safetensors")
    model = load_file(finished.config.stage_folder(0) / "model" / "model.safetensors")
    assert stored.keys() == model.keys() and all(torch.equal(stored[k], model[k]) for k in model)


def test_exporting_again_replaces_and_gives_the_same(finished: Finished) -> None:
    folder = export_run(finished.config, finished.folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "stray.txt").write_text("old")
    export_run(finished.config, finished.folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["student"]


def test_the_card_says_where_the_model_comes_from(finished: Finished) -> None:
    row: dict[str, Any] = {"batch_size": 2, "length": 8, "device": "CPU", "threads": 1, "tokens_per_second": 5.0}
    row |= {"milliseconds_median": 3.25, "milliseconds_min": 3.0}
    rows = [row | {"model": "teacher", "speedup": 1.0}, row | {"model": "student", "speedup": 2.5}]
    write_json(finished.folder / "evaluation" / "latency.json", {"rows": rows})
    write_json(finished.folder / "evaluation" / "unigram.json", {"loss": 6.0625, "accuracy": 0.03125})
    folder = export_run(finished.config, finished.folder)
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "fill-mask" and card.data.language == "zh"
    assert card.data.license is None
    assert {r.metric_type: r.metric_value for r in card.data.eval_results or []} == {"loss": 4.5, "accuracy": 0.2}
    text = card.text
    for part in (
        "distilled from `teacher`",
        "| `student` | distill | teacher | 20 | 160 | 4,321 |",
        finished.corpus.hash,
        "kd_ce, weight 1: temperature 8",
        "layers (teacher-student) 0-0, 3-2",
        "| unigram baseline | | 6.0625 |",
        "4.5000 | 0.2000 | 0.6250 |",
        "777 masked tokens",
        "2.50",
        "pooler is newly initialised",
        "## Licence",
        "AutoModelForMaskedLM.from_pretrained",
    ):
        assert part in text, part


def test_a_hub_teacher_is_named_as_base_model(finished: Finished) -> None:
    tree = finished.config.model_dump(mode="json")
    tree["stages"] = [tree["stages"][1] | {"teacher": {"source": "someone/some-bert"}}]
    config = type(finished.config).model_validate(tree)
    stages = finished.folder / "stages"
    shutil.rmtree(stages / "01-teacher")
    (stages / "02-student").rename(stages / "01-student")
    card = ModelCard.load(export_run(config, finished.folder) / "README.md")
    assert card.data.base_model == "someone/some-bert"
    assert "someone/some-bert` | 999 |" in card.text


def test_a_card_without_measurements_says_so(finished: Finished) -> None:
    text = (export_run(finished.config, finished.folder, "teacher") / "README.md").read_text(encoding="utf-8")
    assert "trained from scratch" in text
    assert "Latency" not in text and "unigram" not in text


def test_an_unfinished_stage(finished: Finished) -> None:
    (finished.config.stage_folder(1) / "DONE.json").unlink()
    with pytest.raises(DataError, match=r"'student' is not finished .* Repeat the run's command"):
        export_run(finished.config, finished.folder)
    assert not (finished.folder / "export").exists()


def test_an_unknown_stage(finished: Finished) -> None:
    with pytest.raises(ConfigError, match=r"no stage 'studnet'\. Did you mean 'student'"):
        export_run(finished.config, finished.folder, "studnet")


def test_a_model_with_a_missing_file(finished: Finished) -> None:
    (finished.config.stage_folder(1) / "model" / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"model\.safetensors is missing"):
        export_run(finished.config, finished.folder)


def test_a_full_disk_leaves_the_earlier_export(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export_run(finished.config, finished.folder)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(OutputError, match="disk is full"):
            export_run(finished.config, finished.folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OutputError, match="disk is full"):
            export_run(finished.config, finished.folder)
    assert [path.name for path in folder.parent.iterdir()] == ["student"]
    assert (folder / "model.safetensors").is_file()


def test_a_rename_that_fails_half_way_puts_the_old_one_back(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export_run(finished.config, finished.folder)
    rename = os.replace

    def second_fails(source: Path, target: Path) -> None:
        if target == folder and not str(source).endswith(".old"):
            raise OSError(errno.EIO, "I/O error")
        rename(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(OutputError, match="I/O error"):
        export_run(finished.config, finished.folder)
    assert [path.name for path in folder.parent.iterdir()] == ["student"]


def test_an_export_that_computes_something_else_is_refused(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    write = export.write_folder

    def spoiled(outcome: Any, stage: Any, target: Path) -> None:
        write(outcome, stage, target)
        state = load_file(target / "model.safetensors")
        state["bert.encoder.layer.0.output.dense.bias"][0] += 0.1
        save_file(state, target / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(export, "write_folder", spoiled)
    with pytest.raises(DataError, match="logits differ from ours"):
        export_run(finished.config, finished.folder)
    assert list((finished.folder / "export").iterdir()) == []

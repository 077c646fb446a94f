from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertForMaskedLM

from configs.errors import ConfigError, DataError
from distill_core.evaluate import fill_mask
from tests.distill_core.finished import SENTENCES, Finished


@pytest.fixture
def model(finished: Finished) -> Path:
    return finished.config.stage_folder(0) / "model"


def test_guesses_are_those_of_transformers(model: Path) -> None:
    rows = fill_mask.guesses(model, SENTENCES, top_k=4)
    tokenizer = AutoTokenizer.from_pretrained(model)
    theirs = BertForMaskedLM.from_pretrained(model).eval()
    assert [row["sentence"] for row in rows] == SENTENCES
    for row in rows:
        inputs = tokenizer(row["sentence"], return_tensors="pt")
        place = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().item()
        with torch.no_grad():
            values, tokens = theirs(**inputs).logits[0, place].softmax(-1).topk(4)
        assert [g["token"] for g in row["guesses"]] == tokenizer.convert_ids_to_tokens(tokens.tolist())
        assert [g["probability"] for g in row["guesses"]] == pytest.approx(values.tolist(), abs=1e-5)
        assert row["has_head"]


def test_compare_goes_sentence_by_sentence(finished: Finished) -> None:
    models = {name: finished.config.stage_folder(i) / "model" for i, name in enumerate(("teacher", "student"))}
    rows = fill_mask.compare(models, SENTENCES, top_k=2)
    assert [(r["sentence"], r["model"]) for r in rows] == [(s, m) for s in SENTENCES for m in models]
    assert fill_mask.compare(models, [], top_k=2) == []


@pytest.mark.parametrize(("sentence", "what"), [("没有空格。", "no"), ("[MASK]天[MASK]气", "2")])
def test_a_sentence_needs_one_mask(model: Path, sentence: str, what: str) -> None:
    with pytest.raises(ConfigError, match=rf"holds {what} \[MASK\]; write exactly one"):
        fill_mask.guesses(model, [sentence])


def test_a_sentence_longer_than_the_model(model: Path) -> None:
    with pytest.raises(ConfigError, match="takes at most 64; shorten it"):
        fill_mask.guesses(model, ["好" * 70 + "[MASK]"])


def test_a_folder_that_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no config\.json"):
        fill_mask.guesses(tmp_path, SENTENCES)
    with pytest.raises(DataError, match="there is no folder"):
        fill_mask.guesses(tmp_path / "nowhere", SENTENCES)


def test_a_folder_without_tokenizer(model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(model / name, bare / name)
    with pytest.raises(DataError, match="holds no tokenizer"):
        fill_mask.guesses(bare, SENTENCES)


def test_a_damaged_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{")
    (model / "vocab.txt").write_text("")
    with pytest.raises(DataError, match="tokenizer of"):
        fill_mask.guesses(model, SENTENCES)


def test_text_shows_masks_and_marks_models_without_head() -> None:
    guess = [{"token": "好", "probability": 0.5}, {"token": "[UNK]", "probability": 0.25}]
    rows = [
        {"model": m, "sentence": "天气很[MASK]。", "has_head": m != "headless", "guesses": guess}
        for m in ("teacher", "headless")
    ]
    text = fill_mask.text(rows)
    assert text.count("天气很[MASK]。") == 1
    assert text.count("好 50.0%  [UNK] 25.0%") == 2
    assert text.count("random: no masked-LM head") == 1
    assert "\x1b" not in text

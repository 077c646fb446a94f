from __future__ import annotations

from pathlib import Path

import pytest

from configs.errors import ConfigError, DataError
from data_prep.corpus import Corpus
from distill_core.evaluate import side_by_side
from distill_core.evaluate.bias import read_templates
from distill_core.evaluate.choice import Choice
from distill_core.evaluate.config import EvaluationConfig
from distill_core.evaluate.pseudo_perplexity import pseudo_perplexity, texts
from distill_core.models import pretrained
from tests.distill_core.evaluate.reference import model_folder, wordpiece
from tests.distill_core.finished import Finished


@pytest.fixture
def models(finished: Finished) -> dict[str, str]:
    return {name: str(finished.config.stage_folder(i) / "model") for i, name in enumerate(("teacher", "student"))}


def test_perplexities_of_all_models_of_one_vocabulary(
    models: dict[str, str], tiny_corpus: Corpus, tmp_path: Path
) -> None:
    models["other"] = str(model_folder(tmp_path / "other", wordpiece(tmp_path / "other")))
    rows = side_by_side.pseudo_perplexities(models, tiny_corpus, 2, 7)
    assert [row["model"] for row in rows] == ["teacher", "student", "other"]
    for row in rows[:2]:
        encoder = pretrained.load(models[row["model"]], "test").encoder
        alone = pseudo_perplexity(encoder, texts(tiny_corpus, 2, 7), tiny_corpus.special_ids)
        assert row["per_token"] == pytest.approx(alone.per_token) and row["sequences"] == 2 and row["has_head"]
    assert rows[0]["per_token"] != rows[1]["per_token"]
    assert "its vocabulary is not the corpus's" in rows[2]["skipped"] and "per_token" not in rows[2]


def test_a_model_without_tokenizer_is_skipped_with_the_reason(
    models: dict[str, str], tiny_corpus: Corpus, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((Path(models["student"]) / name).read_bytes())
    only = {"bare": str(bare)}
    for rows in (
        side_by_side.pseudo_perplexities(only, tiny_corpus, 2, 7),
        side_by_side.biases(only, {"zh": read_templates("zh")}),
        side_by_side.choices(only, [Choice(sentence="天[MASK]", choices=["好", "不"], answer="好")]),
    ):
        assert [row["model"] for row in rows] == ["bare"] and "holds no tokenizer" in rows[0]["skipped"]


def test_biases_by_set_and_model(models: dict[str, str]) -> None:
    rows = side_by_side.biases(models, {"zh": read_templates("zh"), "en": read_templates("en")})
    assert [(row["set"], row["model"]) for row in rows] == [(s, m) for s in ("zh", "en") for m in models]
    for row in rows:
        pairs = 600 if row["set"] == "zh" else 570
        assert row["scored"] + sum(row["unscored"].values()) == pairs
    assert rows[0]["unscored"] == rows[1]["unscored"]  # one vocabulary


def test_choices_by_model(models: dict[str, str]) -> None:
    item = Choice(sentence="今天天气很[MASK]。", choices=["好", "不"], answer="好")
    other = Choice(sentence="今天天气很[MASK]。", choices=["好", "不"], answer="不")
    rows = side_by_side.choices(models, [item, other])
    assert [(row["model"], row["accuracy"], row["items"]) for row in rows] == [("teacher", 0.5, 2), ("student", 0.5, 2)]


def test_inputs_are_checked_before_the_run(tmp_path: Path) -> None:
    side_by_side.check_inputs(EvaluationConfig())
    side_by_side.check_inputs(EvaluationConfig(bias=["nl", "zh", "en"]))
    with pytest.raises(ConfigError, match="neither a packaged template set"):
        side_by_side.check_inputs(EvaluationConfig(bias=["de"]))
    with pytest.raises(DataError, match=r"evaluation\.choices"):
        side_by_side.check_inputs(EvaluationConfig(choices=str(tmp_path / "none")))

"""LTP's perceptron, with a model trained here."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xxhash
from ltp_extension.perceptron import Algorithm, CWSModel, CWSTrainer

from configs.errors import ConfigError, DataError
from configs.loader import validate
from data_prep.config import SegmentConfig
from data_prep.segment import open_segmenter

SENTENCES = ["我们 在 北京 大学 学习 。", "今天 天气 很 好 ！", "他 在 大厦 工作 。"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ltp")
    (folder / "words.txt").write_text("\n".join(SENTENCES * 10) + "\n", encoding="utf-8")
    trainer = CWSTrainer()
    trainer.epoch, trainer.algorithm, trainer.eval_threads, trainer.verbose = 3, Algorithm("AP", 1), 1, False
    trainer.load_train_data(str(folder / "words.txt"))
    trainer.load_eval_data(str(folder / "words.txt"))
    trainer.train().save(str(folder / "cws_model.bin"))
    return folder / "cws_model.bin"


def test_words_of_the_model(model: Path) -> None:
    segmenter = open_segmenter(SegmentConfig(kind="ltp", model=str(model)))
    text = "我们在北京大学学习。\r\n 今天天气很好！\n\u3000他😀𠀀"
    cuts = [*np.flatnonzero(segmenter.word_starts(text)).tolist(), len(text)]
    found = [text[a:b] for a, b in pairwise(cuts)]
    theirs = CWSModel.load(str(model))
    assert found[:6] == ["我们", "在", "北京", "大学", "学习", "。"]
    first, second, third = (theirs.predict(t) for t in ("我们在北京大学学习。", "今天天气很好！", "他😀𠀀"))
    assert found == [*first, "\r\n", " ", *second, "\n", "\u3000", *third]
    assert segmenter.word_starts("").shape == (0,) and segmenter.word_starts("  ").tolist() == [True, True]
    digest = xxhash.xxh3_128_hexdigest(model.read_bytes())
    assert segmenter.describe()["name"] == "ltp" and segmenter.describe()["hash"] == digest
    with pytest.raises(DataError, match="not valid Unicode"):
        segmenter.word_starts("\ud800")


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "bad.bin").write_bytes(b"hello")
    for name in ("bad.bin", "none.bin", "."):
        with pytest.raises(DataError, match=r"data.segment.model: cannot read") as error:
            open_segmenter(SegmentConfig(kind="ltp", model=str(tmp_path / name)))
        assert "\n" not in str(error.value)


def test_missing_package_and_model_are_named(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setitem(sys.modules, "ltp_extension.perceptron", None)
    with pytest.raises(DataError, match="pip install ltp_extension"):
        open_segmenter(SegmentConfig(kind="ltp", model=str(model)))
    with pytest.raises(ConfigError, match="ltp needs model"):
        validate({"kind": "ltp"}, SegmentConfig)
    with pytest.raises(ConfigError, match="ltp only, not by jieba"):
        validate({"model": "x.bin"}, SegmentConfig)

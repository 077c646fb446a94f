"""A small masked LM that knows some English and Chinese words, for tests of augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertTokenizerFast

from distill_core.models import pretrained
from distill_core.models.encoder import Encoder

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"]
LATIN = [
    "cats",
    "dogs",
    "chase",
    "mice",
    "birds",
    "sing",
    "loud",
    "red",
    "green",
    "house",
    "river",
    "slow",
    "the",
    "in",
]
PIECES = ["play", "##ing", "##ed", "##s", "walk", ".", ",", "'", "2", "##nd"]
HAN = list("北京天气喜欢图书馆学校春夏秋冬")
LIMIT = 40
"""Tokens of the test model's longest sequence."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "vocab.txt").write_text(
        "\n".join([*SPECIALS, *LATIN, *PIECES, *HAN, "的", "##京"]) + "\n", encoding="utf-8"
    )
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(tokenizer) + 2,  # padded, as models' tables often are
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LIMIT,
        initializer_range=0.4,
    )
    model = BertForMaskedLM(config)
    with torch.no_grad():
        model.cls.predictions.bias[-2:] += 50  # never to be predicted all the same
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return BertForMaskedLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return pretrained.load(str(folder), "test").encoder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)

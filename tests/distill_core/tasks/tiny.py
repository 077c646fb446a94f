"""Small tokenizers, rows and models for the tests of tasks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_prep.tokenizer_base import SPECIALS, Tokenizer
from data_prep.tokenizer_wordpiece import WordPieceTokenizer
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.tasks.config import TaskConfig
from distill_core.tasks.data import TaskData, make_data
from distill_core.tasks.model import TaskModel
from distill_core.tasks.rows import Row, TaskKind, label_names
from tests.data_prep.latin import shared

HAN = "北京上海天气很好我们去公园吃饭喝茶他在图书馆读书小学大学生"
LATIN = [
    "the",
    "cat",
    "##s",
    "play",
    "##ing",
    "##ed",
    "bert",
    "w",
    "##w",
    "##m",
    "new",
    "york",
    "a",
    "b",
    "c",
    "1",
    "2",
]
MARKS = ["。", "，", "？", ".", ",", "?", "😀"]


@functools.cache
def wordpiece() -> WordPieceTokenizer:
    return WordPieceTokenizer([*SPECIALS.values(), *dict.fromkeys(HAN), *LATIN, *MARKS], "test")


def tokenizers() -> dict[str, Tokenizer]:
    return {"wordpiece": wordpiece(), "bpe": shared(), "bpe with spaces": shared(prefix=True)}


def task(kind: TaskKind, **fields: Any) -> TaskConfig:
    return TaskConfig(kind=kind, train="train.jsonl", dev="dev.jsonl", **fields)


def data(kind: TaskKind, rows: list[Row], tokenizer: Tokenizer | None = None, **fields: Any) -> TaskData:
    labels = label_names(rows) if kind in ("classification", "tokens") else []
    return make_data(rows, labels, task(kind, **fields), tokenizer or wordpiece())


def rows_of(kind: TaskKind, count: int = 6) -> list[Row]:
    """Rows of unequal lengths, from single characters to long ones."""
    texts = [(HAN[i:] + HAN)[: 1 + 5 * i % 17] for i in range(count)]
    if kind == "classification":
        return [Row(f"r{i}", text, label=("no", "yes", "maybe")[i % 3]) for i, text in enumerate(texts)]
    if kind == "regression":
        return [Row(f"r{i}", text, texts[-i - 1], label=i / 2) for i, text in enumerate(texts)]
    if kind == "tokens":
        tags = [
            tuple("BIO"[(i + j) % 3] + ("" if (i + j) % 3 == 2 else "-X") for j in range(len(t)))
            for i, t in enumerate(texts)
        ]
        return [
            Row(f"r{i}", " ".join(t), tokens=tuple(t), tags=tag)
            for i, (t, tag) in enumerate(zip(texts, tags, strict=True))
        ]
    return [
        Row(f"r{i}", "天气？", text, answers=((text[len(text) // 2 :], len(text) // 2),))
        for i, text in enumerate(texts)
    ]


def shape(family: str = "bert", vocab_size: int | None = None, **fields: Any) -> EncoderConfig:
    settings: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    settings |= {"family": family, "vocab_size": vocab_size or wordpiece().vocab_size, "max_position_embeddings": 64}
    own: dict[str, dict[str, Any]] = {
        "roberta": {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5},
        "distilbert": {"type_vocab_size": 0},
        "electra": {"embedding_size": 10},
        "mobilebert": {"embedding_size": 10, "norm": "no_norm", "hidden_act": "relu", "bottleneck": {"intra_size": 12}},
    }
    return EncoderConfig.model_validate(settings | {"hidden_dropout_prob": 0.0} | own.get(family, {}) | fields)


def shaken(model: nn.Module, seed: int = 0, std: float = 0.3) -> Any:
    """Every weight away from its default."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * std)
    return model


def task_model(
    kind: TaskKind, labels: Sequence[str] = (), family: str = "bert", seed: int = 0, **fields: Any
) -> TaskModel:
    model: TaskModel = shaken(TaskModel(Encoder(shape(family, **fields)), kind, list(labels)), seed)
    return model


def tokenizer_folder(folder: Path) -> Path:
    wordpiece().save(folder)
    return folder

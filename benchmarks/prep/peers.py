"""Other ways from text to tokens, written from their documented formats and steps."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np


def megatron_like(source: Path, vocabulary: Path, out: Path) -> None:
    """JSON lines -> ``.bin`` and ``.idx``, as Megatron's preprocessing: no cleaning, no sentences, no words."""
    import tokenizers

    tokenizer = tokenizers.BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    with source.open("rb") as file:
        texts = [json.loads(line)["text"] for line in file]
    sizes: list[int] = []
    with (out / "peer.bin").open("wb") as file:
        for begin in range(0, len(texts), 64):
            for encoding in tokenizer.encode_batch(texts[begin : begin + 64], add_special_tokens=False):
                file.write(np.array(encoding.ids, "<u2").tobytes())
                sizes.append(len(encoding.ids))
    lengths = np.array(sizes, "<i4")
    pointers = np.concatenate([np.zeros(1, "<i8"), np.cumsum(lengths[:-1], dtype="<i8") * 2])
    with (out / "peer.idx").open("wb") as file:
        file.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(sizes), len(sizes) + 1))
        file.write(lengths.tobytes() + pointers.tobytes() + np.arange(len(sizes) + 1, dtype="<i8").tobytes())


def minirbt_path(texts: list[str], vocabulary: Path, out: Path, room: int = 512) -> None:
    """MiniRBT's three steps, with jieba in LTP's place.

    Words of each line by jieba, a slow tokenizer's tokens matched to them greedily, a reference file; each line
    tokenised again; tokens and references run together and cut to ``room``.
    """
    import jieba
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    tokenizer: Any = BertTokenizerLegacy(str(vocabulary))
    lines = [line for text in texts for line in text.split("\n") if line]
    with (out / "reference.txt").open("w", encoding="utf-8") as file:
        for line in lines:
            words = {word for word in jieba.lcut(line) if len(word) > 1 and _han(word)}
            ids = tokenizer(line, add_special_tokens=True, truncation=True, max_length=room)["input_ids"]
            file.write(json.dumps(_inside(tokenizer.convert_ids_to_tokens(ids), words)) + "\n")
    references = [json.loads(line) for line in (out / "reference.txt").read_text(encoding="utf-8").splitlines()]
    rows = [tokenizer(line, add_special_tokens=True, truncation=True, max_length=room)["input_ids"] for line in lines]
    tokens, inside = list[int](), list[int]()
    for row, reference in zip(rows, references, strict=True):
        inside += [len(tokens) + place for place in reference]
        tokens += row
    marks = np.zeros(len(tokens), np.bool_)
    marks[inside] = True
    grouped = [
        {"input_ids": tokens[a : a + room], "chinese_ref": np.flatnonzero(marks[a : a + room]).tolist()}
        for a in range(0, len(tokens), room)
    ]
    (out / "grouped.json").write_text(json.dumps(grouped), encoding="utf-8")


def _han(word: str) -> bool:
    return all("\u4e00" <= c <= "\u9fff" for c in word)


def _inside(tokens: list[str], words: set[str]) -> list[int]:
    """Places of Chinese characters that continue a word, the longest word first."""
    longest, found, at = max(map(len, words), default=1), list[int](), 0
    while at < len(tokens):
        step = 1
        if _han(tokens[at]):
            for size in range(min(longest, len(tokens) - at), 1, -1):
                if "".join(tokens[at : at + size]) in words:
                    found += range(at + 1, at + size)
                    step = size
                    break
        at += step
    return found

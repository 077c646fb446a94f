"""Rows, word vectors and candidates for tests of augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.vectors import read_vectors
from distill_core.models.encoder import Encoder
from distill_core.tasks.augment import AugmentConfig, Candidates
from distill_core.tasks.rows import Row


def vectors_file(path: Path, words: dict[str, list[float]], head: bool = False) -> str:
    width = len(next(iter(words.values())))
    text = f"{len(words)} {width}\n" if head else ""
    text += "".join(f"{word} {' '.join(map(str, numbers))}\n" for word, numbers in words.items())
    path.write_text(text, encoding="utf-8")
    return str(path)


SENTENCES = [
    "cats chase mice in the house.",
    "the red birds sing, walking slow dogs chase 2nd cats",
    "Green river",
    "北京的天气 cats",
    "loud 'mice'",
]
ROWS = [Row(f"r{i}", text, label=str(i % 2)) for i, text in enumerate(SENTENCES)]
PAIRS = [Row("p", "cats chase mice", "red birds sing", "yes"), Row("q", "slow dogs", "北京天气", "no")]


def candidates(encoder: Encoder, tokenizer: Any, config: AugmentConfig) -> Candidates:
    vectors = None if config.vectors is None else read_vectors(config.vectors, config.max_vectors)
    return Candidates(encoder, tokenizer, config, vectors)

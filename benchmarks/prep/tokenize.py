"""Tokenising alone: the WordPiece kernel against `tokenizers`, and the other kinds against their libraries.

`python -m benchmarks.prep.tokenize [--vocab VOCAB] FILES...`: text or JSON lines. Without a vocabulary one is trained
on the texts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.prep.timing import Row, interleaved, show, texts_of
from data_prep.config import TokenizerConfig
from data_prep.tokenizer import open_tokenizer
from data_prep.tokenizer_base import Tokenizer
from data_prep.tokenizer_training import train_bpe, train_sentencepiece, train_wordpiece

PEER_CHARACTERS = 200_000
"""What the slow ones are given; speeds are compared, not times."""
CHECK = 5000
"""Lines that are compared at once."""


def run(texts: Sequence[str], vocabulary: Path | None = None) -> list[Row]:
    """Bar 4: speed against ``encode_batch_fast`` and lines that differ; megabytes (UTF-8) a second of all kinds."""
    lines = [line for text in texts for line in text.split("\n") if line]
    config = TokenizerConfig(vocab_size=21128, train_characters=1_000_000)
    wordpiece: Any = open_tokenizer(vocabulary, config) if vocabulary else train_wordpiece(iter(texts), config)
    library = wordpiece._hugging_face()
    few = _first(lines, PEER_CHARACTERS)
    stream, little = _stream(lines), _stream(few)
    others: dict[str, Tokenizer] = {
        "SentencePiece": train_sentencepiece(iter(few), TokenizerConfig(kind="sentencepiece")),
        "byte-level BPE": train_bpe(iter(few), TokenizerConfig(kind="bpe")),
    }
    content = "".join(lines).encode("utf-8")
    steps: dict[str, Any] = {
        "WordPiece": lambda: wordpiece.encode_stream(*stream),
        "tokenizers": lambda: library.encode_batch_fast(few, add_special_tokens=False),
        "utf-8": lambda: content.decode("utf-8"),
        **{name: lambda t=tokenizer: t.encode_stream(*little) for name, tokenizer in others.items()},
    }
    seconds = interleaved(steps)
    size, small = len(content) / 1e6, len("".join(few).encode("utf-8")) / 1e6
    speeds = {name: (size if name in ("WordPiece", "utf-8") else small) / seconds[name] for name in steps}
    return [
        ("WordPiece / tokenizers.encode_batch_fast", speeds["WordPiece"] / speeds["tokenizers"], "x"),
        ("WordPiece / bytes.decode", speeds["WordPiece"] / speeds["utf-8"], "x"),
        ("WordPiece: lines that differ", differing(wordpiece, library, lines), f"of {len(lines)}"),
        *((name, speed, "MB/s") for name, speed in speeds.items()),
    ]


def differing(ours: Tokenizer, library: Any, lines: list[str]) -> int:
    """Lines whose ids or places are not those of ``library``."""
    count, left = 0, iter(lines)
    while some := list(islice(left, CHECK)):
        rights = library.encode_batch(some, add_special_tokens=False)
        for (ids, starts), right in zip(ours.encode(some), rights, strict=True):
            count += ids.tolist() != right.ids or starts.tolist() != [start for start, _ in right.offsets]
    return count


def _first(lines: list[str], characters: int) -> list[str]:
    """Lines from all over, about ``characters`` of them."""
    step = max(1, sum(map(len, lines)) // characters)
    return lines[::step]


def _stream(lines: list[str]) -> tuple[Any, Any]:
    chars = np.frombuffer("".join(lines).encode("utf-32-le"), np.uint32)
    return chars, np.append(0, np.cumsum([len(line) for line in lines])).astype(np.int64)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--vocab", type=Path)
    parser.add_argument("--megabytes", type=float, default=20.0)
    arguments = parser.parse_args()
    show(run(texts_of(arguments.files, arguments.megabytes), arguments.vocab))

"""``distill data``: look at prepared data, check it, write it out. Runs without torch."""

from __future__ import annotations

import gzip
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from rich.console import Console
from rich.text import Text

from configs.errors import ConfigError, DataError, OutputError, output_error
from data_prep.corpus import Corpus, Split
from data_prep.tokenizer import Tokenizer, open_tokenizer
from launcher.runfile import PrepConfig

MASKED, KEPT = "bold white on red", "bold black on yellow"
BATCH = 1024


@dataclass(frozen=True)
class Word:
    """One word of a sequence; ``after``: its pieces as masking left them, None where it was not selected."""

    before: list[str]
    after: list[str] | None


# ---------------------------------------------------------------- inspect


def inspect(config: PrepConfig, split_name: str, count: int, view: int, console: Console | None = None) -> None:
    """Print samples, evenly spread over the split, with words apart and whole-word masks drawn."""
    console = console or Console(soft_wrap=True, highlight=False)
    corpus = Corpus.open(config.data_folder)
    split = open_split(corpus, split_name)
    tokenizer = open_tokenizer(corpus.tokenizer_folder, config.data.tokenizer)
    for line in summary(corpus):
        console.print(Text(line))
    console.print(Text("\nWords are set apart by /, and a word that is masked stands in 【】: before → after."))
    index = np.unique(np.linspace(0, len(split) - 1, count).astype(np.int64))
    for number in index:
        words = words_of(split, int(number), view, tokenizer)
        masked = sum(len(word.before) for word in words if word.after is not None)
        tokens = sum(len(word.before) for word in words)
        console.print(Text(f"\n{split_name} {number}: {tokens} tokens, {masked} of them masked in view {view}"))
        console.print(drawn(words))


def open_split(corpus: Corpus, name: str) -> Split:
    if name not in ("train", "held_out"):
        raise ConfigError(f"There is no split {name!r}; take train or held_out.")
    split = corpus.split(cast(Literal["train", "held_out"], name))
    if not len(split):
        raise DataError(f"The split {name} of {corpus.folder} has no sequences.")
    return split


def words_of(split: Split, number: int, view: int, tokenizer: Tokenizer) -> list[Word]:
    """The words of one sequence with their masks, without [CLS] and [SEP]."""
    index = np.array([number], np.int64)
    gathered, masks = split.gather(index), split.masks(index, np.array([view], np.int64))
    replaced = dict(zip(masks.positions.tolist(), masks.ids.tolist(), strict=True))
    ids = gathered.ids.tolist()
    words: list[Word] = []
    for position in range(1, len(ids) - 1):
        piece = tokenizer.decode_token(ids[position])
        after = tokenizer.decode_token(replaced[position]) if position in replaced else None
        if gathered.continues[position] and words:
            words[-1].before.append(piece)
            words[-1] = Word(words[-1].before, _joined(words[-1].after, after))
        else:
            words.append(Word([piece], None if after is None else [after]))
    return words


def _joined(pieces: list[str] | None, piece: str | None) -> list[str] | None:
    """A word of which only a part is masked would be a defect; it is drawn as it is."""
    if pieces is None and piece is None:
        return None
    return [*(pieces or ["?"]), "?" if piece is None else piece]


def drawn(words: list[Word]) -> Text:
    text = Text()
    for position, word in enumerate(words):
        text.append("/" if position else "", style="dim")
        before = plain(word.before)
        if word.after is None:
            text.append(before)
        elif word.after == word.before:
            text.append(f"【{before} → kept】", style=KEPT)
        else:
            text.append(f"【{before} → {plain(word.after)}】", style=MASKED)
    return text


def plain(pieces: list[str]) -> str:
    """Word pieces as one word: without ``##`` and SentencePiece's ``▁``."""
    return "".join(piece.removeprefix("##").replace("▁", "") or piece for piece in pieces)


def summary(corpus: Corpus) -> Iterator[str]:
    """What preparation counted."""
    manifest = corpus.manifest
    yield f"{corpus.folder}  (hash {corpus.hash})"
    yield f"vocabulary {corpus.vocab_size:,} tokens, sequences of at most {corpus.max_length} tokens"
    segmenter = manifest.get("segmenter")
    if isinstance(segmenter, dict):
        yield "words: " + ", ".join(f"{key} {value}" for key, value in segmenter.items())
    for name, facts in manifest["splits"].items():
        yield f"{name}: " + ", ".join(f"{value:,} {key}" for key, value in _counts(facts))
    dropped = {key.removeprefix("dropped_"): n for key, n in manifest.get("counts", {}).items() if "dropped_" in key}
    if dropped:
        yield "dropped: " + ", ".join(f"{n:,} {reason}" for reason, n in sorted(dropped.items()))


def _counts(facts: dict[str, Any]) -> Iterator[tuple[str, int]]:
    return ((key, value) for key, value in facts.items() if isinstance(value, int))


# ---------------------------------------------------------------- verify and convert


def verify(config: PrepConfig) -> None:
    """Raise DataError naming every file that is not what its manifest says."""
    from data_prep import pipeline

    folder = config.data_folder
    problems = pipeline.verify(folder)
    if problems:
        raise DataError(
            "\n  - ".join([f"{folder} is damaged; remove the folders named below and run `distill prep`.", *problems])
        )
    print(f"{folder}: every file is as it was written.")


def convert(config: PrepConfig, split_name: str, target: Path) -> None:
    """Write the sequences of a split as JSON lines (gzip by the name), whole or not at all.

    One line is ``{"id", "ids", "tokens", "continues"}``: the stable sequence id, token ids with [CLS] and [SEP],
    the same as text, and 1 where a token continues the word before it.
    """
    if target.exists():
        raise OutputError(f"{target} exists already; name a file that does not, or remove it.")
    corpus = Corpus.open(config.data_folder)
    split = open_split(corpus, split_name)
    tokenizer = open_tokenizer(corpus.tokenizer_folder, config.data.tokenizer)
    aside = target.with_name(f".{uuid.uuid4().hex}-{target.name}")
    try:
        opened = gzip.open(aside, "wt", encoding="utf-8") if target.suffix == ".gz" else aside.open("w", encoding="utf-8")
        with opened as file:
            for row in rows(split, tokenizer):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        aside.rename(target)
    except OSError as error:
        raise output_error(target, error) from error
    finally:
        aside.unlink(missing_ok=True)
    print(f"{target}: {len(split):,} sequences of the {split_name} split.")


def rows(split: Split, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    for first in range(0, len(split), BATCH):
        index = np.arange(first, min(first + BATCH, len(split)), dtype=np.int64)
        gathered, names = split.gather(index), split.sequence_ids(index)
        for place, (begin, end) in enumerate(zip(gathered.offsets[:-1], gathered.offsets[1:], strict=True)):
            ids = gathered.ids[begin:end].tolist()
            yield {
                "id": int(names[place]),
                "ids": ids,
                "tokens": [tokenizer.decode_token(i) for i in ids],
                "continues": gathered.continues[begin:end].astype(int).tolist(),
            }

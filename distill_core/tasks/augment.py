"""TinyBERT's data augmentation (arXiv 1909.10351, algorithm 1), batched, for words of letters and Chinese words.

Where this differs from the published code: a text keeps its spelling and spaces outside the replaced words; tokens that
are no text ([UNK], [unused1]) are no candidates; the other side of a pair is always the original one (published: the
last augmented one); and each row's draws depend on nothing but the seed and its id.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import Field

from configs.errors import ConfigError, DataError
from configs.loader import Config, runtime
from data_prep.config import SegmentConfig
from data_prep.config_quality import Fraction
from data_prep.documents import Counts
from data_prep.segment import open_segmenter
from data_prep.vectors import Vectors, read_vectors
from distill_core.models.encoder import Encoder
from distill_core.tasks.augment_model import WordModel
from distill_core.tasks.augment_words import Language, Word, Words, join_tokens, only_han
from distill_core.tasks.rows import Row, TaskKind

WINDOW = 256
"""Rows whose candidates are found together."""

Found = list[tuple[Word, tuple[str, ...]]]
"""The words of a text, each with its candidates."""


class AugmentConfig(Config):
    """New training rows by replaced words; the defaults are the published numbers."""

    copies: int = Field(default=20, ge=0)
    """N_a: attempts for each text of a row; those that repeat an earlier one or the original are left out. The
    published code takes 30 for small tasks (CoLA, MRPC, STS-B, RTE), 20 for SST-2 and QNLI, 10 for MNLI and QQP."""
    candidates: int = Field(default=15, ge=1)
    """K: predictions, or neighbours, that a word may be replaced by."""
    probability: Fraction = 0.4
    """p_t: the chance that a word is replaced in a copy."""
    vectors: str | None = None
    """Word vectors as text (GloVe, word2vec): for words of letters that are several pieces, and for all Chinese words
    that the file holds. Without it, words of several pieces stay as they are."""
    max_vectors: int = Field(default=100_000, ge=1)
    """Rows read of that file, from its beginning."""
    language: Language = "auto"
    """``latin``: only words of letters are replaced; ``chinese``: only words of Chinese characters; ``auto``: both."""
    segment: SegmentConfig = SegmentConfig()
    """Where Chinese words begin."""
    stop_words: str | None = None
    """A file of words that are never replaced, instead of the built-in English and Chinese function words."""
    seed: int = Field(default=1337, ge=0, lt=1 << 64)
    batch_tokens: int = runtime(8192, ge=1)
    """Tokens of one forward pass."""


def augment(
    rows: Iterable[Row],
    encoder: Encoder,
    tokenizer: Any,
    config: AugmentConfig,
    kind: TaskKind,
    counts: Counts | None = None,
) -> Iterator[Row]:
    """Each row, followed by its new ones, "<id>#1" and so on, with the same label.

    In a pair each side is augmented in turn beside the other's original. Of labelled tokens whole ones are replaced, by
    as many, and the tags stay.

    Args:
        rows: of one task; read in windows, never all at once.
        encoder: with a trained masked-LM head, on its device and in its precision; put into eval mode.
        tokenizer: the encoder's own, of transformers.
        kind: of the task.
        counts: gets ``new_rows`` as they pass, and ``dropped_vector_<reason>``: unusable rows of the vectors' file.

    Raises:
        ConfigError: the kind is ``span``.
        DataError: the vectors, the stop words or the segmenter cannot be had.
    """
    check_kind(kind)
    counts = Counts() if counts is None else counts
    vectors = None if config.vectors is None else read_vectors(config.vectors, config.max_vectors)
    if vectors is not None:
        counts.update({f"dropped_vector_{reason}": n for reason, n in vectors.counts.dropped.items()})
    return _augmented(iter(rows), Candidates(encoder, tokenizer, config, vectors), config, counts)


def check_kind(kind: TaskKind) -> None:
    """Raise :class:`ConfigError` for a kind of task whose rows cannot be augmented."""
    if kind == "span":
        raise ConfigError(
            "Rows of span tasks are not augmented: a replaced word may be the answer or move it, and a question with "
            "replaced words may have another answer. Leave `augment` out of this task."
        )


def check_augment(config: AugmentConfig, kind: TaskKind, who: str) -> None:
    """What augmentation would fail of, before any long work starts.

    Raises:
        ConfigError: rows of this kind are not augmented.
        DataError: the vectors, the stop words or the segmenter cannot be had.
    """
    try:
        check_kind(kind)
        if config.vectors is not None:
            read_vectors(config.vectors, 1)
        Words(config.language, config.segment, config.stop_words)
        if config.language != "latin":
            open_segmenter(config.segment)
    except ConfigError as error:
        raise ConfigError(f"{who}: {error}") from None
    except DataError as error:
        raise DataError(f"{who}: augment: {error}") from None


def _augmented(rows: Iterator[Row], candidates: Candidates, config: AugmentConfig, counts: Counts) -> Iterator[Row]:
    while window := list(islice(rows, WINDOW)):
        tagged = {join_tokens(row.tokens)[0]: None for row in window if row.tokens is not None}
        plain = {t: None for row in window if row.tokens is None for t in (row.text_a, row.text_b) if t is not None}
        of_tokens, of_texts = candidates.of(list(tagged), same_length=True), candidates.of(list(plain))
        for row in window:
            yield row
            for number, new in enumerate(_new(row, of_tokens, of_texts, config), 1):
                counts["new_rows"] += 1
                yield replace(new, id=f"{row.id}#{number}")


def _new(row: Row, of_tokens: dict[str, Found], of_texts: dict[str, Found], config: AugmentConfig) -> Iterator[Row]:
    if row.tokens is not None:
        side: Side = token_side(row.tokens, of_tokens[join_tokens(row.tokens)[0]])
        for tokens in variants(side, f"tokens:{row.id}", config):
            yield replace(row, tokens=tokens, text_a=" ".join(tokens))
        return
    for name, text in (("text_a", row.text_a), ("text_b", row.text_b)):
        if text is not None:
            for new in variants(text_side(text, of_texts[text]), f"{name}:{row.id}", config):
                yield replace(row, **{name: new})


# ---------------------------------------------------------------- candidates


class Candidates:
    """What the words of a text may be replaced by: a pure function of the text."""

    def __init__(self, encoder: Encoder, tokenizer: Any, config: AugmentConfig, vectors: Vectors | None) -> None:
        self._k = config.candidates
        self._words = Words(config.language, config.segment, config.stop_words)
        self._model = WordModel(encoder, tokenizer, config.candidates, config.batch_tokens)
        self._vectors = vectors

    def of(self, texts: Sequence[str], same_length: bool = False) -> dict[str, Found]:
        """Text -> its words and their candidates, without words that have none but themselves.

        Args:
            same_length: Chinese words only by words of as many characters.
        """
        words = [self._words.find(text) for text in texts]
        near = self._neighbours([word for of_text in words for word in of_text if word.han], same_length)
        asked = [[word for word in of_text if word.text not in near] for of_text in words]
        said = [
            {word: names for word, names in zip(of_text, of_model, strict=True) if names}
            for of_text, of_model in zip(asked, self._model.candidates(texts, asked), strict=True)
        ]
        silent = [
            word for of_text, of_model in zip(asked, said, strict=True) for word in of_text if word not in of_model
        ]
        near |= self._neighbours([word for word in silent if not word.han], same_length)
        out: dict[str, Found] = {}
        for text, of_text, of_model in zip(texts, words, said, strict=True):
            found = [(word, _like(word, of_model.get(word) or near.get(word.text, ()))) for word in of_text]
            out[text] = [(word, names) for word, names in found if set(names) - {word.text}]
        return out

    def _neighbours(self, words: Sequence[Word], same_length: bool) -> dict[str, tuple[str, ...]]:
        """Neighbours of the words that have some; of Chinese words only Chinese ones."""
        if self._vectors is None:
            return {}
        self._vectors.learn((word.text for word in words), self._k)
        near = {}
        for word in words:
            names = self._vectors.neighbours(word.text, self._k)
            if word.han:
                names = tuple(n for n in names if only_han(n) and not (same_length and len(n) != len(word.text)))
            if names:
                near[word.text] = names
        return near


def _like(word: Word, names: Iterable[str]) -> tuple[str, ...]:
    """With a capital where the word has one; sorted, so that a draw does not hang on the last bits of two logits."""
    capital = word.text.istitle()
    return tuple(sorted({name[:1].upper() + name[1:] if capital else name for name in names}))


# ---------------------------------------------------------------- drawing


Slot = tuple[int, int, tuple[tuple[str, ...], ...]]
"""(first part, end, the runs of as many parts that may stand there instead)."""


@dataclass(frozen=True)
class Side:
    """A text or a list of tokens as parts, which runs of them may be replaced, and what makes the parts one again."""

    parts: tuple[str, ...]
    slots: tuple[Slot, ...]
    build: Callable[[Sequence[str]], Any]


def text_side(text: str, found: Found) -> Side:
    """The text between the words, and the words."""
    parts: list[str] = []
    slots: list[Slot] = []
    at = 0
    for word, names in found:
        parts += [text[at : word.start], word.text]
        slots.append((len(parts) - 1, len(parts), tuple((name,) for name in names)))
        at = word.end
    return Side((*parts, text[at:]), tuple(slots), "".join)


def token_side(tokens: Sequence[str], found: Found) -> Side:
    """Words that are exactly one token, and Chinese words each of whose characters is one."""
    _, starts = join_tokens(tokens)
    first = {start: number for number, start in enumerate(starts)}
    end = {start + len(token): number + 1 for number, (start, token) in enumerate(zip(starts, tokens, strict=True))}
    slots: list[Slot] = []
    for word, names in found:
        a, b = first.get(word.start), end.get(word.end)
        if a is not None and b == a + 1:
            slots.append((a, b, tuple((name,) for name in names)))
        elif a is not None and b is not None and word.han and b - a == len(word.text):
            slots.append((a, b, tuple(tuple(characters) for characters in names)))
    return Side(tuple(tokens), tuple(slots), tuple)


def variants(side: Side, key: str, config: AugmentConfig) -> list[Any]:
    """At most ``copies`` new texts (or tuples of tokens), all different: a pure function of (seed, key, side)."""
    if not side.slots:
        return []
    draws = _draws(config.seed, key, (config.copies, len(side.slots), 2))
    replaced = draws[..., 0] < config.probability
    choices = np.array([len(names) for _, _, names in side.slots])
    chosen = (draws[..., 1] * choices).astype(np.int64)
    new = {side.build(side.parts): None}
    for copy in range(config.copies):
        parts = list(side.parts)
        for slot in np.flatnonzero(replaced[copy]).tolist():
            start, end, names = side.slots[slot]
            parts[start:end] = names[chosen[copy, slot]]
        new[side.build(parts)] = None
    return list(new)[1:]


def _draws(seed: int, key: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Uniform in [0, 1), from the raw stream of Philox, which NumPy keeps the same in all versions."""
    generator = np.random.Philox(key=xxhash.xxh3_128_intdigest(key.encode(), seed=seed))
    bits = generator.random_raw(math.prod(shape)) >> np.uint64(11)
    return bits.astype(np.float64).reshape(shape) * 2.0**-53

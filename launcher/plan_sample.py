"""How long the sequences of a corpus will be: the beginnings of its sources, prepared in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep import block, sentences
from data_prep.config import DataConfig
from data_prep.documents import Counts
from data_prep.readers import open_sources
from data_prep.stream import Stream
from data_prep.tokenizer_base import Tokenizer
from data_prep.variants import VARIANTS, Units

SOURCES, CHARACTERS = 4, 1 << 18
"""Of so many sources, spread over all, so much text."""


@dataclass(frozen=True)
class Sample:
    """``lengths``: tokens of its sequences, ascending, with [CLS] and [SEP]; ``tokens``: of the text, without them;
    ``bytes_per_token``: of cleaned text."""

    lengths: tuple[int, ...]
    tokens: int
    bytes_per_token: float

    @property
    def mean_length(self) -> float:
        return sum(self.lengths) / len(self.lengths)


def sample(data: DataConfig, tokenizer: Tokenizer | None, bytes_per_token: float) -> Sample | None:
    """What the beginnings of the sources become; None where they hold no text.

    Args:
        tokenizer: None where it will be trained: a unit then has a token for each ``bytes_per_token`` bytes.

    Raises:
        DataError: a source is missing or cannot be read.
    """
    readers = [reader for reader in open_sources(data) if Path(reader.path).is_file()]
    lengths, tokens, size = [np.zeros(0, np.int64)], 0, 0
    for reader in readers[:: max(1, len(readers) // SOURCES)][:SOURCES]:
        blocks = reader.blocks(data.block_megabytes << 20)[:1]
        characters = 0
        for stream in (s for b in blocks for s in block.cleaned(data, reader, b, Counts())):
            units = units_of(stream, data, tokenizer, bytes_per_token)
            found = VARIANTS[data.sequences.kind](units, data.sequences)
            ends = np.concatenate([[0], np.cumsum(found.pieces[:, 1])])[found.offsets]
            lengths.append(np.diff(ends) + (3 if found.firsts is not None else 2))
            tokens += int(units.lengths.sum())
            size += int(stream.utf8()[1][-1])
            characters += len(stream.chars)
            if characters >= CHARACTERS:
                break
    whole = np.sort(np.concatenate(lengths))
    return Sample(tuple(whole.tolist()), tokens, size / tokens) if len(whole) else None


def units_of(stream: Stream, data: DataConfig, tokenizer: Tokenizer | None, bytes_per_token: float) -> Units:
    """The sentences or lines of cleaned documents, of which nothing but their lengths is right."""
    begins, ends, firsts = sentences.cut(stream, data.clean)
    bounds = np.append(begins, len(stream.chars))
    if tokenizer is None:
        lengths = np.rint(np.diff(Stream(stream.chars, bounds).utf8()[1]) / bytes_per_token).astype(np.int64)
    else:
        lengths = tokenizer.encode_stream(stream.chars, bounds)[2]
    kept = (ends - begins >= data.clean.min_unit_characters) & ((lengths > 0) | (tokenizer is None))
    documents = np.unique(np.append(0, np.cumsum(kept))[firsts])
    lengths = np.maximum(1, lengths[kept])
    n = int(lengths.sum())
    return Units(lengths, documents, np.arange(n), np.zeros(n, np.bool_), data.seed, np.uint64(0))

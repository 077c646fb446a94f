"""The steps of preparation over lists of texts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from data_prep.clean import clean
from data_prep.config import CleanConfig
from data_prep.encode import encode
from data_prep.segment import Segmenter
from data_prep.sentences import cut
from data_prep.stream import Stream, decoded, raw_stream
from data_prep.tokenizer_base import Tokenizer
from tests.data_prep.plain import Units, split


def stream(texts: list[str]) -> Stream:
    """Cleaned texts as they come out of cleaning."""
    raw = raw_stream(texts)
    return Stream(raw.chars.copy(), raw.documents)


def cleaned(texts: list[str], config: CleanConfig) -> tuple[list[str], dict[str, int]]:
    found, counts = clean(raw_stream(texts), config)
    return list(found.texts()), counts.dropped


def units(texts: list[str], config: CleanConfig) -> list[list[str]]:
    """The units of each of the cleaned ``texts``."""
    found = stream(texts)
    begins, ends, firsts = cut(found, config)
    whole = decoded(found.chars)
    flat = [whole[a:b] for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]
    return [flat[a:b] for a, b in pairwise(firsts.tolist())]


def encoded(
    texts: list[str], tokenizer: Tokenizer, segmenter: Segmenter, rule: CleanConfig | None = None
) -> list[Units]:
    """For each cleaned text that has tokens its units as (ids, continuation bits)."""
    ids, bits, lengths, sizes = encode(stream(texts), tokenizer, segmenter, rule or CleanConfig()).chosen(
        np.ones(len(texts), np.bool_)
    )
    flat = list(zip(split(lengths, ids), split(lengths, bits), strict=True))
    return [flat[a:b] for a, b in pairwise([0, *np.cumsum(sizes).tolist()])]

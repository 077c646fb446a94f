"""What is left out of a corpus: ``clean.filters`` and ``dedup`` of a run file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from configs.loader import Config, runtime

Fraction = Annotated[float, Field(ge=0, le=1)]
Sizes = dict[Annotated[int, Field(ge=1, le=64)], Fraction]


class FilterConfig(Config):
    """Limits of quality; a document beyond one is dropped and counted (filters.py). None is on by itself.

    Shares are of the characters that are not white space. In the comments: what suits Chinese web text.
    """

    max_characters: int | None = Field(default=None, ge=1)
    """Documents with more are dropped; 1,000,000 keeps out dumps and concatenated files."""
    min_mean_line_length: float | None = Field(default=None, ge=1)
    """Characters a line; 10 drops menus and link lists."""
    min_cjk_share: Fraction | None = None
    """Ideographs; 0.5 (0.3 with technical text, which is full of Latin)."""
    max_punctuation_share: Fraction | None = None
    """0.3."""
    max_symbol_share: Fraction | None = None
    """Currency, mathematics, arrows, emoji; 0.1."""
    max_digit_share: Fraction | None = None
    """0.25 drops tables and telephone lists."""
    max_duplicate_line_share: Fraction | None = None
    """Lines that stood before in the document; 0.3."""
    max_duplicate_line_character_share: Fraction | None = None
    """Characters in such lines; 0.2."""
    max_top_ngram_share: Sizes = {}
    """For each n, characters in the most frequent n-gram of characters; ``{1: 0.3, 2: 0.2, 4: 0.16}``. In short texts
    such shares are large by nature: beside these, drop those with ``clean.min_characters: 50``."""
    max_duplicate_ngram_share: Sizes = {}
    """For each n, characters in n-grams that stood before in the document; ``{10: 0.3, 20: 0.2}``."""


class NearConfig(Config):
    """Near-duplicates by MinHash (minhash.py)."""

    threshold: float = Field(default=0.75, gt=0, le=1)
    """Documents whose signatures agree in this share or more are one cluster; an estimate of the Jaccard similarity."""
    permutations: int = Field(default=112, ge=16, le=1024)
    """Values of a signature (4 bytes each)."""
    ngram: int = Field(default=5, ge=1, le=64)
    """Characters (letters and digits, in lower case)."""


class DedupConfig(Config):
    """Duplicates in the whole corpus, of which the first in corpus order is kept (dedup.py).

    The sources are read and cleaned once more for it, before the shards are made.
    """

    exact: bool = False
    """Documents whose cleaned texts are the same."""
    near: NearConfig | None = None
    """Also documents that are nearly the same; ``near: {}`` for the defaults."""
    memory_megabytes: int = runtime(512, ge=1)
    """For sorting, in the one process that puts the findings together."""

    @property
    def wanted(self) -> bool:
        return self.exact or self.near is not None

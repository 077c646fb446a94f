"""Pseudo-perplexity of a masked language model: every token masked in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from configs.loader import Config
from data_prep.corpus import Corpus, Gathered
from distill_core.data import samples
from distill_core.engine import Rank
from distill_core.evaluate.scoring import BUDGET, Copies, log_probabilities
from distill_core.models.encoder import Encoder


class PseudoPerplexityConfig(Config):
    """`pseudo_perplexity:`; a forward pass for each token, so keep it small for large models."""

    sequences: int = Field(ge=1)
    """At most so many held-out sequences."""


@dataclass(frozen=True)
class PseudoPerplexity:
    """Both definitions, over the same tokens.

    ``per_sentence``: exp of the mean over sequences of their mean -log P(token | rest), as the code of RobBERTje's
    distillation computes it (each sequence weighs the same). ``per_token``: exp of the sum of all -log P over the
    number of tokens (Salazar et al. 2020, arXiv 1910.14659). ``sequences`` and ``tokens`` say how many were scored;
    special tokens are not, [UNK] among them (it is not text).
    """

    per_sentence: float
    per_token: float
    sequences: int
    tokens: int


def texts(corpus: Corpus, limit: int, seed: int) -> Gathered:
    """``limit`` held-out sequences, the same ones that the stages' evaluation begins with."""
    split = corpus.split("held_out")
    index, _ = samples(0, min(limit, len(split)), len(split), seed)
    return split.gather(index, with_bits=False)


def pseudo_perplexity(
    model: Encoder, texts: Gathered, special_ids: Mapping[str, int], budget: int = BUDGET, rank: Rank | None = None
) -> PseudoPerplexity:
    """Of ``model`` on ``texts``.

    Args:
        model: on its device; asked in eval mode.
        texts: n sequences, with the special tokens that the model wants.
        special_ids: by part (``mask`` among them); none of them is scored.
        budget: tokens of one forward pass.
        rank: the ranks do it together (collective); None: this process alone.
    """
    ids, offsets = texts.ids.astype(np.int64), texts.offsets
    lengths = np.diff(offsets)
    places = np.flatnonzero(~np.isin(ids, list(special_ids.values())))
    text = np.repeat(np.arange(len(lengths)), lengths)[places]
    copies = Copies(ids, offsets, text, places - offsets[text], np.zeros((len(places), 2), np.int64), texts.types)
    nll = -log_probabilities(model, copies, special_ids["mask"], budget, rank)
    counts = np.bincount(text, minlength=len(lengths))
    sums = np.bincount(text, weights=nll, minlength=len(lengths))
    there = counts > 0
    if not there.any():
        return PseudoPerplexity(float("nan"), float("nan"), 0, 0)
    with np.errstate(over="ignore"):  # a broken model's perplexity is infinite
        per_sentence = np.exp((sums[there] / counts[there]).mean())
        per_token = np.exp(nll.sum() / len(nll))
    return PseudoPerplexity(float(per_sentence), float(per_token), int(there.sum()), len(nll))


def same_vocabulary(ours: Any, theirs: Any) -> bool:
    """Whether every token of our tokenizer has its id in theirs (which may have more tokens)."""
    entries = theirs.get_vocab()
    return all(entries.get(token) == number for token, number in ours.get_vocab().items())

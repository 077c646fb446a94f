"""log P(token | the rest of its text), many tokens at a time: what pseudo-likelihoods are made of.

Each scored token costs one masked copy of its text. All copies go through the encoder as streams under a token budget,
and vocabulary logits exist at the scored rows only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from configs.errors import DataError
from data_prep.corpus import offsets_of, spread
from distill_core.batch import Batch
from distill_core.engine import Rank
from distill_core.features import MASKED_LOGITS
from distill_core.models.attention import Kernel, choose_kernel, layout
from distill_core.models.encoder import Encoder

BUDGET = 8192
"""Tokens of one forward pass (a longer text goes alone)."""

Ints = NDArray[np.int64]
Span = tuple[int, int]
"""(first token, end) of a word in its text."""


@dataclass(frozen=True)
class Copies:
    """c masked copies of n texts; in each, one token is masked and scored, and a span may be masked with it.

    ``ids``: int64 [N], the texts one after another with their special tokens; ``offsets``: int64 [n + 1];
    ``text``: int64 [c], which text is copied; ``scored``: int64 [c], the place in it that is scored;
    ``hidden``: int64 [c, 2], first and end of the span that is masked as well (empty where they are equal);
    ``types``: integer [N], 1 in the second text of a pair, None: all 0.
    """

    ids: Ints
    offsets: Ints
    text: Ints
    scored: Ints
    hidden: Ints
    types: NDArray[np.integer] | None = None

    def __len__(self) -> int:
        return len(self.text)

    @property
    def lengths(self) -> Ints:
        return np.diff(self.offsets)[self.text]


@torch.no_grad()
def log_probabilities(
    model: Encoder, copies: Copies, mask_id: int, budget: int = BUDGET, rank: Rank | None = None
) -> NDArray[np.float64]:
    """float64 [c]: log P(the token that stood at the scored place | its masked copy), in nats.

    The model is asked in eval mode and stays on its device. With ``rank`` the copies are divided among the ranks:
    collective, and to the same bits on any number of them.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    out = np.zeros(len(copies), np.float64)
    for places, mine in shares(list(groups(copies.lengths, budget)), rank):
        batch = _batch(copies, places, mask_id, choose_kernel("auto", device)).to(device)
        assert batch.rows is not None and batch.labels is not None
        logits = model(batch, MASKED_LOGITS).logits["masked"]
        if mine:
            out[places] = -F.cross_entropy(logits.float(), batch.labels, reduction="none").double().cpu().numpy()
    model.train(was_training)
    return out if rank is None else rank.sum(torch.from_numpy(out).to(rank.device)).cpu().numpy()


def shares(found: list[Ints], rank: Rank | None) -> Iterator[tuple[Ints, bool]]:
    """This rank's groups, and whether each counts: with sharded weights all ranks must ask equally often, so that one
    without a group of its own at the end repeats the first."""
    if rank is None:
        yield from ((places, True) for places in found)
        return
    for first in range(0, len(found), rank.world_size):
        number = first + rank.rank
        yield (found[number], True) if number < len(found) else (found[0], False)


def groups(lengths: Ints, budget: int) -> Iterator[Ints]:
    """Places of texts by falling length, cut so that each group holds at most ``budget`` tokens, or one text."""
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    first = 0
    while first < len(order):
        before = int(ends[first - 1]) if first else 0
        stop = max(first + 1, int(np.searchsorted(ends, before + budget, side="right")))
        yield order[first:stop]
        first = stop


def _batch(copies: Copies, places: Ints, mask_id: int, kernel: Kernel) -> Batch:
    text = copies.text[places]
    lengths = copies.offsets[text + 1] - copies.offsets[text]
    starts = offsets_of(lengths)[:-1]
    tokens = spread(copies.offsets[text], lengths)
    ids = copies.ids[tokens]
    rows = starts + copies.scored[places]
    labels = ids[rows]
    hidden = copies.hidden[places]
    ids[spread(starts + hidden[:, 0], hidden[:, 1] - hidden[:, 0])] = mask_id
    ids[rows] = mask_id
    positions = spread(np.zeros_like(lengths), lengths)
    ours = torch.from_numpy
    where = layout(lengths.tolist(), kernel)
    types = None if copies.types is None else ours(copies.types[tokens].astype(np.int64))
    return Batch(ours(ids), ours(positions), where, types, rows=ours(rows), labels=ours(labels))


# ---------------------------------------------------------------- words in their sentences


@dataclass(frozen=True)
class Located:
    """A tokenized sentence: its ids with special tokens, and the tokens of each marked word.

    ``spans[i]`` is None when word i has no tokens of its own: one of them also covers a neighbour, or there is none.
    """

    ids: list[int]
    spans: list[Span | None]

    def pieces(self, word: int) -> list[int]:
        span = self.spans[word]
        return [] if span is None else self.ids[span[0] : span[1]]


def locate(tokenizer: Any, sentences: Sequence[str], marks: Sequence[Sequence[Span]]) -> list[Located]:
    """Tokenize each sentence as it stands (a word's tokens depend on what stands around it) and find its words.

    Args:
        tokenizer: of transformers.
        sentences: the whole sentences.
        marks: for each sentence the (start, end) of its words, in characters.

    Raises:
        DataError: the tokenizer cannot say which characters a token stands for.
    """
    if not sentences:
        return []
    if not tokenizer.is_fast:
        raise DataError(
            f"The tokenizer of {tokenizer.name_or_path} does not say which characters its tokens stand for, so that "
            "words cannot be found in sentences; save it with a tokenizer.json (a fast tokenizer of transformers)."
        )
    encoded = tokenizer(list(sentences), return_offsets_mapping=True)
    return [
        Located(list(ids), [_tokens_of(sentence, mark, offsets) for mark in words])
        for sentence, words, ids, offsets in zip(
            sentences, marks, encoded["input_ids"], encoded["offset_mapping"], strict=True
        )
    ]


def _tokens_of(sentence: str, mark: Span, offsets: Sequence[Span]) -> Span | None:
    start, end = mark
    inside = [i for i, (first, stop) in enumerate(offsets) if first < end and stop > start]
    if not inside:
        return None
    # The space before a word belongs to its first token in byte-level and SentencePiece vocabularies.
    before = sentence[min(offsets[inside[0]][0], start) : start]
    after = sentence[end : max(offsets[inside[-1]][1], end)]
    if before.strip() or after.strip() or len(inside) != inside[-1] - inside[0] + 1:
        return None
    return inside[0], inside[-1] + 1


def word_copies(texts: Sequence[Located], words: Sequence[tuple[int, Span, Span]]) -> tuple[Copies, Ints]:
    """Copies that score words of several tokens, each token in turn with the others of the word in view.

    Args:
        texts: tokenized sentences.
        words: (number of the text, the tokens to score, the tokens to hide with each of them).

    Returns:
        the copies, and int64 [c], the number of the word that each copy belongs to.
    """
    ids = np.array([token for text in texts for token in text.ids], np.int64)
    offsets = offsets_of(np.array([len(text.ids) for text in texts], np.int64))
    spans = np.array([span for _, span, _ in words], np.int64).reshape(-1, 2)
    hidden = np.array([span for _, _, span in words], np.int64).reshape(-1, 2)
    counts = spans[:, 1] - spans[:, 0]
    owner = np.repeat(np.arange(len(words)), counts)
    text = np.array([number for number, _, _ in words], np.int64)[owner]
    return Copies(ids, offsets, text, spread(spans[:, 0], counts), hidden[owner]), owner


def word_scores(
    model: Encoder, texts: Sequence[Located], words: Sequence[tuple[int, Span, Span]], mask_id: int
) -> NDArray[np.float64]:
    """float64 [words]: each word's pseudo-log-likelihood, the sum over its tokens of log P (Salazar et al. 2020, arXiv
    1910.14659); for a word of one token that is log P(word | sentence).
    """
    copies, owner = word_copies(texts, words)
    scores = log_probabilities(model, copies, mask_id)
    return np.bincount(owner, weights=scores, minlength=len(words)).astype(np.float64)

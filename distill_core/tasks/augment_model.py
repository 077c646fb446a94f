"""What a masked language model puts in the places of words, many words at a time.

TinyBERT's data augmentation (arXiv 1909.10351, algorithm 1): the sentence with one word masked, then the sentence as it
was, as one pair. All masked copies go through the encoder as streams under a token budget; vocabulary logits exist at
the masked rows only, and only the best of them leave the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.corpus import offsets_of, spread
from distill_core.batch import Batch
from distill_core.evaluate.scoring import groups, locate
from distill_core.features import MASKED_LOGITS
from distill_core.models.attention import Kernel, choose_kernel, layout
from distill_core.models.encoder import Encoder
from distill_core.tasks.augment_words import Word, only_han

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Answers = list[list[tuple[str, ...]]]
"""For each text and each of its words, the candidates; () where the model has no say."""


class Pieces:
    """What the ids of a tokenizer stand for.

    ``known``: bool [V], the tokenizer has it (models may have more rows); ``han``: bool [V], one Chinese character.
    """

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        vocab: dict[str, int] = tokenizer.get_vocab()
        self._tokens = {number: token for token, number in vocab.items()}
        self._tokenizer = tokenizer
        self._words: dict[int, str] = {}
        self._specials = frozenset(tokenizer.all_special_ids)
        # WordPiece marks continuations; byte-level BPE and SentencePiece mark beginnings.
        continued = any(token.startswith("##") for token in vocab)
        self._beginning = "" if continued else next((m for m in "Ġ▁" if any(t.startswith(m) for t in vocab)), "")
        self.known = np.zeros(vocab_size, np.bool_)
        self.known[[number for number in vocab.values() if number < vocab_size]] = True
        self.han = np.zeros(vocab_size, np.bool_)
        self.han[[n for token, n in vocab.items() if n < vocab_size and len(token) == 1 and only_han(token)]] = True

    def word(self, number: int) -> str:
        """The text of a piece that begins a word; empty for a continuation and for a token that is no text."""
        if number not in self._words:
            self._words[number] = self._word(number)
        return self._words[number]

    def _word(self, number: int) -> str:
        token = self._tokens[number]
        bracketed = len(token) > 2 and token.startswith("[") and token.endswith("]")  # [unused1]
        if number in self._specials or bracketed or token.startswith("##"):
            return ""
        if not self._beginning:
            return token
        if not token.startswith(self._beginning):
            return ""
        text = str(self._tokenizer.convert_tokens_to_string([token])).strip()
        return "" if "\ufffd" in text or len(text.split()) != 1 else text


@dataclass(frozen=True)
class Queries:
    """q masked copies of n pairs [CLS] text [SEP] text [SEP].

    ``ids``, ``types``: int64 [N], the pairs one after another, unmasked; ``offsets``: int64 [n + 1]; ``text``: int64
    [q], which pair is copied; ``spans``: int64 [q, 2], first and end of the tokens masked in it; ``han``: bool [q].
    """

    ids: Ints
    types: Ints
    offsets: Ints
    text: Ints
    spans: Ints
    han: NDArray[np.bool_]

    @property
    def lengths(self) -> Ints:
        return np.diff(self.offsets)[self.text]

    @property
    def masks(self) -> Ints:
        return self.spans[:, 1] - self.spans[:, 0]


class WordModel:
    """The candidates of a masked language model for the words of texts."""

    def __init__(self, encoder: Encoder, tokenizer: Any, k: int, batch_tokens: int) -> None:
        """
        Args:
            encoder: in the precision and on the device that it is to run in; put into eval mode.
            tokenizer: the encoder's own, of transformers (fast).
            k: predictions taken.
            batch_tokens: tokens of one forward pass (a longer pair goes alone).
        """
        self._encoder, self._tokenizer, self._k, self._budget = encoder.eval(), tokenizer, k, batch_tokens
        self._pieces = Pieces(tokenizer, encoder.config.vocab_size)
        self._device = next(encoder.parameters()).device
        self._unknown = torch.from_numpy(~self._pieces.known).to(self._device)
        self._not_han = torch.from_numpy(~self._pieces.han).to(self._device)

    def candidates(self, texts: Sequence[str], words: Sequence[Sequence[Word]]) -> Answers:
        """Candidates for ``words[i]`` of ``texts[i]``.

        A word of letters that is one piece: the ``k`` likeliest pieces, less continuations and special tokens. A word
        of n Chinese characters that is n tokens: the ``k`` likeliest strings of n Chinese characters. A word of other
        pieces, or beyond the model's longest sequence: none.
        """
        answers: Answers = [[()] * len(of_text) for of_text in words]
        queries, asked = self._queries(texts, words)
        if not asked:
            return answers
        first = offsets_of(queries.masks)[:-1]
        scores, tokens = self._best(queries, first)
        for place in np.flatnonzero(~queries.han).tolist():
            row = first[place]
            pieces = [self._pieces.word(number) for number in tokens[row][np.isfinite(scores[row])].tolist()]
            text, word = asked[place]
            answers[text][word] = tuple(dict.fromkeys(piece for piece in pieces if piece))
        for n in np.unique(queries.masks[queries.han]).tolist():
            places = np.flatnonzero(queries.han & (queries.masks == n))
            rows = first[places][:, None] + np.arange(n)
            for place, strings in zip(places.tolist(), self._strings(scores[rows], tokens[rows]), strict=True):
                text, word = asked[place]
                answers[text][word] = strings
        return answers

    def _queries(self, texts: Sequence[str], words: Sequence[Sequence[Word]]) -> tuple[Queries, list[tuple[int, int]]]:
        """The masked copies, and (text, word) of each."""
        limit = self._encoder.config.max_length
        located = locate(self._tokenizer, texts, [[(word.start, word.end) for word in of_text] for of_text in words])
        spans, asked, han = [], [], []
        for text, of_text in enumerate(words):
            for number, (word, span) in enumerate(zip(of_text, located[text].spans, strict=True)):
                wanted = len(word.text) if word.han else 1
                if span is not None and span[1] - span[0] == wanted and span[1] <= limit:
                    spans.append(span)
                    asked.append((text, number))
                    han.append(word.han)
        pairs: dict[str, list[list[int]]] = {"input_ids": [], "token_type_ids": []}
        if asked:
            pairs = self._tokenizer(list(texts), list(texts), return_token_type_ids=True, verbose=False)
        cut = {name: [ids[:limit] for ids in pairs[name]] for name in ("input_ids", "token_type_ids")}
        stream = {name: np.array([token for ids in of for token in ids], np.int64) for name, of in cut.items()}
        offsets = offsets_of(np.array([len(ids) for ids in cut["input_ids"]], np.int64))
        text_of = np.array([text for text, _ in asked], np.int64)
        span_of = np.array(spans, np.int64).reshape(-1, 2)
        queries = Queries(
            stream["input_ids"], stream["token_type_ids"], offsets, text_of, span_of, np.array(han, np.bool_)
        )
        return queries, asked

    @torch.no_grad()
    def _best(self, queries: Queries, first: Ints) -> tuple[Floats, Ints]:
        """[masked places, k]: the best logits at each place, and their tokens (Chinese ones at Chinese words)."""
        k = min(self._k, self._encoder.config.vocab_size)
        places = int(queries.masks.sum())
        scores, tokens = np.empty((places, k), np.float32), np.empty((places, k), np.int64)
        kernel = choose_kernel("auto", self._device)
        for group in groups(queries.lengths, self._budget):
            batch = _batch(queries, group, self._tokenizer.mask_token_id, kernel).to(self._device)
            logits = self._encoder(batch, MASKED_LOGITS).logits["masked"].float()
            masks = queries.masks[group]
            han = torch.from_numpy(np.repeat(queries.han[group], masks)).to(self._device)
            shut = torch.where(han[:, None], self._not_han, self._unknown)
            values, best = logits.masked_fill_(shut, -torch.inf).topk(k)
            rows = spread(first[group], masks)
            scores[rows], tokens[rows] = values.cpu().numpy(), best.cpu().numpy()
        return scores, tokens

    def _strings(self, scores: Floats, tokens: Ints) -> Iterator[tuple[str, ...]]:
        """For each of q words of n characters the k likeliest strings; ``scores``, ``tokens``: [q, n, k].

        Places are independent given the sentence, so a string's log-probability is the sum over its places, and a beam
        of width k is exact: a prefix outside the best k has k better ones with the same ending.
        """
        q, n, k = tokens.shape
        total = scores[:, 0].astype(np.float64)
        strings = tokens[:, 0, :, None]
        for place in range(1, n):
            sums = (total[:, :, None] + scores[:, place, None, :]).reshape(q, -1)
            best = np.argsort(-sums, axis=1, kind="stable")[:, :k]
            total = np.take_along_axis(sums, best, 1)
            before = np.take_along_axis(strings, best[:, :, None] // k, 1)
            last = np.take_along_axis(tokens[:, place], best % k, 1)
            strings = np.concatenate([before, last[:, :, None]], 2)
        for word, finite in zip(strings.tolist(), np.isfinite(total).tolist(), strict=True):
            pieces = ["".join(map(self._pieces.word, string)) for string, ok in zip(word, finite, strict=True) if ok]
            yield tuple(pieces)


def _batch(queries: Queries, group: Ints, mask_id: int, kernel: Kernel) -> Batch:
    lengths = queries.lengths[group]
    tokens = spread(queries.offsets[queries.text[group]], lengths)
    rows = spread(offsets_of(lengths)[:-1] + queries.spans[group, 0], queries.masks[group])
    ids = queries.ids[tokens]
    ids[rows] = mask_id
    positions = spread(np.zeros_like(lengths), lengths)
    ours = torch.from_numpy
    where = layout(lengths.tolist(), kernel)
    return Batch(ours(ids), ours(positions), where, ours(queries.types[tokens]), rows=ours(rows))

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

from data_prep.corpus import Corpus, Gathered
from distill_core.evaluate.pseudo_perplexity import pseudo_perplexity, same_vocabulary, texts
from distill_core.models import pretrained
from tests.distill_core.evaluate.reference import byte_level, log_probability, tiny_encoder, wordpiece
from tests.distill_core.finished import Finished


def gathered(*sequences: list[int], types: list[int] | None = None) -> Gathered:
    ids = np.array([token for sequence in sequences for token in sequence])
    offsets = np.cumsum([0, *map(len, sequences)])
    return Gathered(ids, None, offsets, None if types is None else np.array(types, np.uint8))


@pytest.fixture
def model(finished: Finished) -> Path:
    return finished.config.stage_folder(1) / "model"


def test_both_definitions_against_a_slow_loop(model: Path, tiny_corpus: Corpus) -> None:
    chosen = texts(tiny_corpus, 4, seed=5)
    ours = pretrained.load(str(model), "test").encoder
    found = pseudo_perplexity(ours, chosen, tiny_corpus.special_ids, budget=500)
    theirs = BertForMaskedLM.from_pretrained(model).eval()
    specials = set(tiny_corpus.special_ids.values())
    means, total, tokens = [], 0.0, 0
    for first, stop in itertools.pairwise(chosen.offsets):
        sequence = chosen.ids[first:stop].tolist()
        losses = [
            -log_probability(theirs, sequence, place, tiny_corpus.special_ids["mask"])
            for place, token in enumerate(sequence)
            if token not in specials
        ]
        means.append(sum(losses) / len(losses))
        total, tokens = total + sum(losses), tokens + len(losses)
    assert found.per_sentence == pytest.approx(math.exp(sum(means) / len(means)), rel=1e-5)
    assert found.per_token == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert (found.sequences, found.tokens) == (4, tokens)
    assert found.per_sentence != pytest.approx(found.per_token, rel=1e-5)


def test_the_budget_changes_nothing(tiny_corpus: Corpus) -> None:
    model = tiny_encoder(tiny_corpus.vocab_size)
    texts = gathered([2, 9, 8, 7, 3], [2, 11, 3])
    specials = {"cls": 2, "sep": 3, "mask": 4}
    found = [pseudo_perplexity(model, texts, specials, budget) for budget in (1, 9, 1000)]
    assert all(f.per_token == pytest.approx(found[0].per_token, rel=1e-6) for f in found)
    assert all(f.per_sentence == pytest.approx(found[0].per_sentence, rel=1e-6) for f in found)


def test_a_uniform_model_is_as_perplexed_as_its_vocabulary_is_large() -> None:
    model = tiny_encoder(50)
    for parameter in model.parameters():
        parameter.data.zero_()
    texts = gathered([2, 9, 8, 7, 3], [2, 11, 3])
    found = pseudo_perplexity(model, texts, {"cls": 2, "sep": 3, "mask": 4})
    assert found.per_token == pytest.approx(50, rel=1e-5) and found.per_sentence == pytest.approx(50, rel=1e-5)


def test_specials_are_not_scored_and_empty_texts_are_left_out() -> None:
    model = tiny_encoder(50)
    texts = gathered([2, 9, 1, 3], [2, 1, 3])
    found = pseudo_perplexity(model, texts, {"unk": 1, "cls": 2, "sep": 3, "mask": 4})
    assert (found.sequences, found.tokens) == (1, 1)
    assert found.per_sentence == pytest.approx(found.per_token)
    nothing = pseudo_perplexity(model, gathered([2, 1, 3]), {"unk": 1, "cls": 2, "sep": 3, "mask": 4})
    assert nothing.tokens == 0 and math.isnan(nothing.per_token)


def test_the_second_text_of_a_pair_has_its_type() -> None:
    model = tiny_encoder(50)
    ids = [2, 9, 8, 3, 7, 6, 3]
    specials = {"cls": 2, "sep": 3, "mask": 4}
    plain, paired = (
        pseudo_perplexity(model, gathered(ids, types=types), specials).per_token
        for types in (None, [0, 0, 0, 0, 1, 1, 1])
    )
    with torch.no_grad():
        types = model.bert.embeddings.token_type_embeddings.weight
        types[1] = types[0]
    assert pseudo_perplexity(model, gathered(ids, types=[0, 0, 0, 0, 1, 1, 1]), specials).per_token == plain != paired


def test_texts_are_the_same_at_each_call(tiny_corpus: Corpus) -> None:
    a, b = texts(tiny_corpus, 3, 1), texts(tiny_corpus, 3, 1)
    assert (a.ids == b.ids).all()
    many = texts(tiny_corpus, 10**9, 1).offsets
    assert len(many) - 1 == len(tiny_corpus.split("held_out"))


def test_same_vocabulary(tmp_path: Path) -> None:
    ours, longer = wordpiece(tmp_path / "a", ["a", "b"]), wordpiece(tmp_path / "b", ["a", "b", "c"])
    assert same_vocabulary(ours, longer) and not same_vocabulary(longer, ours)
    assert not same_vocabulary(ours, wordpiece(tmp_path / "c", ["b", "a"]))
    assert not same_vocabulary(ours, byte_level(tmp_path))

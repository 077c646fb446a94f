from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from configs.errors import DataError
from distill_core.engine import Rank
from distill_core.evaluate.scoring import Copies, Located, groups, locate, log_probabilities, word_scores
from tests.distill_core.evaluate.reference import (
    both,
    byte_level,
    log_probability,
    model_folder,
    tiny_encoder,
    wordpiece,
)
from tests.distill_core.tasks.test_quality import Threads


def some_copies(seed: int, texts: int = 5, copies: int = 23, vocab: int = 30) -> Copies:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 12, texts)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    text = rng.integers(0, texts, copies)
    scored = rng.integers(0, lengths[text])
    start = rng.integers(0, lengths[text])
    stop = np.minimum(start + rng.integers(0, 3, copies), lengths[text])
    return Copies(rng.integers(0, vocab, int(offsets[-1])), offsets, text, scored, np.stack([start, stop], 1))


@pytest.mark.parametrize("budget", [1, 17, 40, 8192])
def test_scores_are_those_of_single_masked_copies(budget: int, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, wordpiece(tmp_path))
    ours, theirs, _ = both(folder)
    copies = some_copies(3, vocab=20)
    before = copies.ids.copy()
    found = log_probabilities(ours, copies, mask_id=4, budget=budget)
    for c in range(len(copies)):
        first, stop = copies.offsets[copies.text[c]], copies.offsets[copies.text[c] + 1]
        ids = copies.ids[first:stop].tolist()
        hide = list(range(*copies.hidden[c].tolist()))
        expected = log_probability(theirs, ids, int(copies.scored[c]), 4, hide)
        assert found[c] == pytest.approx(expected, abs=1e-5)
    assert (copies.ids == before).all()


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_score_together_to_the_bits_of_one(world_size: int) -> None:
    """Each asks its model equally often, as sharded weights need it; here there are 4 groups."""
    copies = some_copies(3, vocab=20)
    alone = log_probabilities(tiny_encoder(20), copies, 4, budget=40)
    found: dict[int, NDArray[np.float64]] = {}
    asked = dict.fromkeys(range(world_size), 0)
    models = [tiny_encoder(20).train() for _ in range(world_size)]

    def work(rank: Rank) -> None:
        model = models[rank.rank]
        model.register_forward_pre_hook(lambda *_: asked.update({rank.rank: asked[rank.rank] + 1}))
        found[rank.rank] = log_probabilities(model, copies, 4, budget=40, rank=rank)
        assert model.training

    threads = [threading.Thread(target=work, args=(rank,)) for rank in Threads(world_size).ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    count = len(list(groups(copies.lengths, 40)))
    assert count == 4 and set(asked.values()) == {-(-count // world_size)}
    assert all((found[rank] == alone).all() for rank in range(world_size))


def test_no_copies() -> None:
    nothing = np.zeros(0, np.int64)
    copies = Copies(nothing, np.zeros(1, np.int64), nothing, nothing, np.zeros((0, 2), np.int64))
    assert log_probabilities(tiny_encoder(20), copies, 4).shape == (0,)
    assert word_scores(tiny_encoder(20), [], [], 4).shape == (0,)
    assert locate(None, [], []) == []


def marks(sentence: str, *words: str) -> list[tuple[int, int]]:
    return [(sentence.index(word), sentence.index(word) + len(word)) for word in words]


def test_words_are_found_as_they_stand(tmp_path: Path) -> None:
    sentence = "Zij is dokteres."
    (text,) = locate(wordpiece(tmp_path), [sentence], [marks(sentence, "Zij", "dokteres")])
    assert text.spans == [(1, 2), (3, 5)] and len(text.pieces(1)) == 2


def test_byte_level_words_have_their_space_with_them(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    sentences = ["Zij is arts.", "Vroeger was zij arts."]
    first, second = locate(tokenizer, sentences, [marks(sentences[0], "Zij"), marks(sentences[1], "zij", "arts")])
    assert tokenizer.convert_ids_to_tokens(second.pieces(0)) == ["Ġzij"]
    assert tokenizer.convert_ids_to_tokens(second.pieces(1)) == ["Ġarts"]
    # Not the word-initial variant at the start of the sentence, and it is taken as it is, whatever its pieces.
    assert "".join(tokenizer.convert_ids_to_tokens(first.pieces(0))) == "Zij"


def test_a_token_over_the_edge_of_a_word_is_not_its_own(tmp_path: Path) -> None:
    tokenizer = wordpiece(tmp_path)
    assert locate(
        tokenizer,
        ["werkt als"],
        [
            [
                (0, 3),
            ]
        ],
    )[0].spans == [None]
    assert locate(tokenizer, ["werkt als"], [[(5, 6)]])[0].spans == [None]
    assert Located([1, 2], [None]).pieces(0) == []


def test_a_tokenizer_without_offsets() -> None:
    class Slow:
        is_fast = False
        name_or_path = "somewhere"

    slow: Any = Slow()
    with pytest.raises(DataError, match="tokenizer of somewhere does not say which characters"):
        locate(slow, ["a"], [[(0, 1)]])


def test_words_of_several_tokens_are_scored_one_token_at_a_time(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, wordpiece(tmp_path))
    ours, theirs, tokenizer = both(folder)
    sentence = "Zij is dokteres."
    texts = locate(tokenizer, [sentence], [marks(sentence, "Zij", "dokteres")])
    pronoun, word = texts[0].spans
    assert pronoun is not None and word is not None
    found = word_scores(ours, texts, [(0, word, (0, 0)), (0, pronoun, word)], tokenizer.mask_token_id)
    ids, mask = texts[0].ids, tokenizer.mask_token_id
    assert found[0] == pytest.approx(sum(log_probability(theirs, ids, i, mask) for i in (3, 4)), abs=1e-5)
    assert found[1] == pytest.approx(log_probability(theirs, ids, 1, mask, [3, 4]), abs=1e-5)

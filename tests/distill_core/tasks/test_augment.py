"""Rows made from rows."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.errors import ConfigError
from data_prep.documents import Counts
from distill_core.models import pretrained
from distill_core.models.encoder import Encoder
from distill_core.tasks.augment import AugmentConfig, Side, augment, text_side, token_side, variants
from distill_core.tasks.augment_words import Word
from distill_core.tasks.rows import Row, RowCounts, TaskKind, read_rows, write_rows
from tests.distill_core.tasks.augmenting import PAIRS, ROWS, candidates, vectors_file


def new(
    rows: list[Row], encoder: Encoder, tokenizer: Any, kind: TaskKind = "classification", **given: Any
) -> list[Row]:
    return list(augment(rows, encoder, tokenizer, AugmentConfig(**given), kind))


def of(found: list[Row], id: str) -> list[Row]:
    return [row for row in found if row.id.split("#")[0] == id]


@pytest.mark.parametrize("budget", [1, 50, 300])
def test_neither_batches_nor_order_nor_neighbours_matter(encoder: Encoder, tokenizer: Any, budget: int) -> None:
    whole = new([*ROWS, *PAIRS], encoder, tokenizer, candidates=6, batch_tokens=8192)
    mixed = [*ROWS, *PAIRS]
    random.Random(1).shuffle(mixed)
    other = new(mixed, encoder, tokenizer, candidates=6, batch_tokens=budget)
    alone = new([ROWS[1]], encoder, tokenizer, candidates=6, batch_tokens=budget)
    assert alone == of(whole, "r1") and len(alone) > 5
    assert all(of(other, row.id) == of(whole, row.id) for row in mixed)
    assert [row.id for row in other if "#" not in row.id] == [row.id for row in mixed]


def test_windows_change_nothing(encoder: Encoder, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = new([*ROWS, *PAIRS], encoder, tokenizer, candidates=6)
    monkeypatch.setattr("distill_core.tasks.augment.WINDOW", 2)
    assert new([*ROWS, *PAIRS], encoder, tokenizer, candidates=6) == whole


def test_the_seed_and_the_id_matter(encoder: Encoder, tokenizer: Any) -> None:
    one, two = (new([ROWS[1]], encoder, tokenizer, seed=seed) for seed in (1, 2))
    three = new([replace(ROWS[1], id="other")], encoder, tokenizer, seed=1)
    assert len({tuple(row.text_a for row in found) for found in (one, two, three)}) == 3


@pytest.mark.parametrize("given", [{"probability": 0.0}, {"copies": 0}, {"language": "chinese"}])
def test_only_the_originals(encoder: Encoder, tokenizer: Any, given: dict[str, Any]) -> None:
    assert new([ROWS[0], PAIRS[0]], encoder, tokenizer, **given) == [ROWS[0], PAIRS[0]]


def test_the_original_comes_first_and_nothing_comes_twice(encoder: Encoder, tokenizer: Any) -> None:
    found = new([*ROWS, *PAIRS], encoder, tokenizer, copies=60, candidates=3)
    for row in [*ROWS, *PAIRS]:
        mine = of(found, row.id)
        assert mine[0] == row and [r.id for r in mine[1:]] == [f"{row.id}#{i}" for i in range(1, len(mine))]
        assert len({(r.text_a, r.text_b) for r in mine}) == len(mine) > 1
        assert {r.label for r in mine} == {row.label}


def test_one_side_at_a_time_beside_the_other_original(encoder: Encoder, tokenizer: Any) -> None:
    for pair in PAIRS:
        mine = of(new(PAIRS, encoder, tokenizer, candidates=5), pair.id)[1:]
        left = [row for row in mine if row.text_a != pair.text_a]
        right = [row for row in mine if row.text_b != pair.text_b]
        assert left and right and not set(left) & set(right) and len(left) + len(right) == len(mine)
        assert mine == [*left, *right]


def test_texts_keep_all_but_the_replaced_words(encoder: Encoder, tokenizer: Any) -> None:
    row = Row("x", "The  Cats, 'mice'\tchase the 2nd house!", label="1")
    for made in new([row], encoder, tokenizer, candidates=4)[1:]:
        assert made.text_a.startswith("The  ") and made.text_a.endswith("!")
        assert not made.text_a[5].islower()  # a capital, or no letter of the Latin script
        assert "'\t" in made.text_a and " the 2nd " in made.text_a


def test_chinese_rows_keep_their_lengths(encoder: Encoder, tokenizer: Any) -> None:
    row = Row("x", "喜欢北京的图书馆，天气！", label="1")
    made = new([row], encoder, tokenizer, copies=40)[1:]
    assert len(made) > 20 and {len(r.text_a) for r in made} == {12}
    assert {r.text_a[4] + r.text_a[8] + r.text_a[11] for r in made} == {"的，！"}


def test_words_are_replaced_at_the_published_rate() -> None:
    slots = tuple((2 * i, 2 * i + 1, (("x",), ("y",), ("z",))) for i in range(60))
    side = Side(("w", " ") * 60, slots, tuple)
    made = variants(side, "row", AugmentConfig(copies=200))
    parts = np.array(made)[:, ::2]
    assert len(made) == 200  # so long that none repeats
    rate = (parts != "w").mean()
    assert rate == pytest.approx(0.4, abs=4 * (0.4 * 0.6 / parts.size) ** 0.5)
    shares = [(parts[parts != "w"] == name).mean() for name in "xyz"]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)
    assert (parts != "w").any(axis=0).all() and (parts != "w").std(axis=0).min() > 0


def test_sixteen_bits(encoder: Encoder, folder: Path, tokenizer: Any) -> None:
    half = pretrained.load(str(folder), "test").encoder.to(torch.bfloat16)
    text = ROWS[0].text_a
    exact = candidates(encoder, tokenizer, AugmentConfig()).of([text])[text]
    rounded = candidates(half, tokenizer, AugmentConfig()).of([text])[text]
    assert [word for word, _ in rounded] == [word for word, _ in exact]
    for (_, ours), (_, names) in zip(rounded, exact, strict=True):
        assert len(set(ours) & set(names)) >= 0.7 * len(names)  # rounding moves only those near the last place
    assert len(new(ROWS, half, tokenizer)) > len(ROWS)


def test_what_passes_is_counted(encoder: Encoder, tokenizer: Any, tmp_path: Path) -> None:
    counts = Counts()
    vectors = vectors_file(tmp_path / "v.txt", {"cats": [1, 0], "zero": [0, 0]})
    made = list(augment(ROWS, encoder, tokenizer, AugmentConfig(vectors=vectors), "classification", counts))
    assert counts == {"new_rows": len(made) - len(ROWS), "dropped_vector_zero_norm": 1}


# ---------------------------------------------------------------- tokens, spans, files


def test_tokens_are_replaced_whole_and_keep_their_tags(encoder: Encoder, tokenizer: Any) -> None:
    tokens = ("喜", "欢", "北", "京", "的", "cats", "mice's", "图书馆", "天", "气")
    row = Row("t", " ".join(tokens), tokens=tokens, tags=("O", "O", "B-L", "I-L", "O", "B-X", "O", "O", "O", "O"))
    made = new([row], encoder, tokenizer, "tokens", copies=40)[1:]
    assert len(made) > 20
    changed = {i for r in made for i, token in enumerate(r.tokens or ()) if token != tokens[i]}
    assert changed == {0, 1, 2, 3, 5, 7, 8, 9}
    for r in made:
        assert r.tags == row.tags and r.tokens is not None and r.text_a == " ".join(r.tokens)
        assert [len(token) for token in r.tokens[:4]] == [1] * 4 and len(r.tokens[7]) == 3 and len(r.tokens) == 10


def test_sides_are_cut_at_words() -> None:
    found = [(Word(1, 3, "ab", False), ("x", "yz")), (Word(3, 4, "北", True), ("京",))]
    side = text_side(" ab北.", found)
    assert side.parts == (" ", "ab", "", "北", ".") and side.build(side.parts) == " ab北."
    assert [slot[:2] for slot in side.slots] == [(1, 2), (3, 4)]
    tokens = ("ab", "c-d", "北京", "天", "气")  # as a text: "ab c-d北京天气"
    words = [
        (Word(0, 2, "ab", False), ("x",)),
        (Word(3, 4, "c", False), ("x",)),
        (Word(6, 10, "北京天气", True), ("春",)),
    ]
    assert token_side(tokens, words).slots == ((0, 1, (("x",),)),)


def test_spans_are_refused_at_once(encoder: Encoder, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="Rows of span tasks are not augmented"):
        augment([], encoder, tokenizer, AugmentConfig(), "span")


@pytest.mark.parametrize("kind", ["classification", "tokens"])
def test_augmented_rows_are_read_back(encoder: Encoder, tokenizer: Any, tmp_path: Path, kind: TaskKind) -> None:
    tokens = ("喜", "欢", "cats")
    rows = PAIRS if kind == "classification" else [Row("t", " ".join(tokens), tokens=tokens, tags=("O", "O", "B"))]
    made = new(rows, encoder, tokenizer, kind)
    assert write_rows(tmp_path / "x.jsonl.gz", iter(made)) == len(made) > len(rows)
    assert read_rows(tmp_path / "x.jsonl.gz", kind, RowCounts()) == made

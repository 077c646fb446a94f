from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import DataError
from distill_core.evaluate.choice import Choice, choose, read_choices
from tests.distill_core.evaluate.reference import (
    both,
    byte_level,
    log_probability,
    model_folder,
    wordpiece,
    write_lines,
)

ITEMS = [
    {"sentence": "hij is [MASK] man .", "choices": ["die", "dat"], "answer": "die"},
    {"sentence": "[MASK] werkt als kok .", "choices": ["die", "dat"], "answer": "dat"},
    {"sentence": "[MASK] is dokter", "choices": ["dat", "die"], "answer": "die"},
]


def items(rows: list[dict[str, Any]]) -> list[Choice]:
    return [Choice.model_validate(row) for row in rows]


def test_choices_compare_the_two_fill_in_probabilities(tmp_path: Path) -> None:
    ours, theirs, tokenizer = both(model_folder(tmp_path, wordpiece(tmp_path)))
    right = 0
    for row in ITEMS:
        scores = {}
        for word in row["choices"]:
            ids = tokenizer(str(row["sentence"]).replace("[MASK]", word))["input_ids"]
            place = ids.index(tokenizer.convert_tokens_to_ids(word))
            scores[word] = log_probability(theirs, ids, place, tokenizer.mask_token_id)
        right += max(scores, key=lambda word: scores[word]) == row["answer"]
    found = choose(ours, tokenizer, items(ITEMS))
    assert found.accuracy == pytest.approx(right / 3) and found.items == 3 and found.unscored == {}


def test_a_model_that_prefers_a_word(tmp_path: Path) -> None:
    ours, _, tokenizer = both(model_folder(tmp_path, wordpiece(tmp_path)))
    with torch.no_grad():
        ours.cls.predictions.bias[tokenizer.convert_tokens_to_ids("die")] += 100
    assert choose(ours, tokenizer, items(ITEMS)).accuracy == pytest.approx(2 / 3)


def test_a_tie_is_not_right(tmp_path: Path) -> None:
    ours, _, tokenizer = both(model_folder(tmp_path, wordpiece(tmp_path)))
    for parameter in ours.parameters():
        parameter.data.zero_()
    assert choose(ours, tokenizer, items(ITEMS)).accuracy == 0


def test_words_that_cannot_be_scored_are_counted(tmp_path: Path) -> None:
    ours, _, tokenizer = both(model_folder(tmp_path, wordpiece(tmp_path)))
    rows = [
        ITEMS[0],
        {"sentence": "hij is [MASK]", "choices": ["die", "welke"], "answer": "die"},
        {"sentence": "kok " * 40 + "[MASK]", "choices": ["die", "dat"], "answer": "die"},
        {"sentence": "[MASK]kt als kok", "choices": ["wer", "dat"], "answer": "dat"},
    ]
    found = choose(ours, tokenizer, items(rows))
    assert found.items == 1 and found.unscored == {"merged": 1, "too_long": 1, "unknown": 1}
    nothing = choose(ours, tokenizer, items(rows[1:]))
    assert nothing.accuracy is None and nothing.items == 0


def test_special_tokens_of_another_tokenizer(tmp_path: Path) -> None:
    ours, _, tokenizer = both(model_folder(tmp_path, byte_level(tmp_path)))
    rows = [{"sentence": "Vroeger was [MASK] kok.", "choices": ["zij", "hij"], "answer": "hij"}]
    assert choose(ours, tokenizer, items(rows)).items == 1


def test_reading(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ITEMS)
    path.write_text("\ufeff" + path.read_text(encoding="utf-8") + "\n\n", encoding="utf-8")
    assert read_choices(path) == items(ITEMS)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "1 is not JSON"),
        ("[1]", "1 is not a choice item"),
        ('{"sentence": "x", "choices": ["a", "b"], "answer": "a"}', r"exactly one \[MASK\]"),
        ('{"sentence": "x [MASK]", "choices": ["a"], "answer": "a"}', "choices: List should have at least 2"),
        ('{"sentence": "x [MASK]", "choices": ["a", "a"], "answer": "a"}', "must differ"),
        ('{"sentence": "x [MASK]", "choices": ["a", "b"], "answer": "c"}', "'c' is not one of the choices"),
        ('{"sentence": "x [MASK]", "choices": ["a", "b"]}', "answer: Field required"),
        ("", "holds no items"),
    ],
)
def test_a_bad_line_is_named(line: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match=what) as caught:
        read_choices(path)
    assert "a.jsonl" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_choices(tmp_path / "none.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        read_choices(tmp_path / "b.jsonl")

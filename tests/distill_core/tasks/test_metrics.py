"""Scores against plain counting."""

from __future__ import annotations

import math
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_core.tasks import metrics


def binary(right: list[int], guessed: list[int], label: int) -> float:
    pairs = list(zip(right, guessed, strict=True))
    true = sum(a == b == label for a, b in pairs)
    wrong = sum((a == label) != (b == label) for a, b in pairs)
    return 2 * true / (2 * true + wrong) if true else 0.0


def correlation(x: list[float], y: list[float]) -> float:
    mx, my = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return above / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


@given(pairs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30), two=st.booleans())
@settings(max_examples=60, deadline=None)
def test_classification(pairs: list[tuple[int, int]], two: bool) -> None:
    right, guessed = ([min(x, 1) if two else x for x in side] for side in zip(*pairs, strict=True))
    found = metrics.classification(np.array(right), np.array(guessed), 2 if two else 3)
    assert set(found) == set(metrics.METRICS["classification"])
    accuracy = sum(a == b for a, b in zip(right, guessed, strict=True)) / len(right)
    assert found["accuracy"] == pytest.approx(accuracy)
    occurring = set(right) | set(guessed)
    assert found["macro_f1"] == pytest.approx(sum(binary(right, guessed, c) for c in occurring) / len(occurring))
    assert found["f1"] == pytest.approx(binary(right, guessed, 1) if two else accuracy)
    if two:
        t = {(a, b): sum(p == (a, b) for p in zip(right, guessed, strict=True)) for a in (0, 1) for b in (0, 1)}
        under = (t[1, 1] + t[0, 1]) * (t[1, 1] + t[1, 0]) * (t[0, 0] + t[0, 1]) * (t[0, 0] + t[1, 0])
        expected = (t[1, 1] * t[0, 0] - t[0, 1] * t[1, 0]) / math.sqrt(under) if under else 0.0
        assert found["mcc"] == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.tuples(st.floats(-5, 5, width=16), st.floats(-5, 5, width=16)), min_size=2, max_size=20))
@settings(max_examples=60, deadline=None)
def test_regression(pairs: list[tuple[float, float]]) -> None:
    right, guessed = (list(side) for side in zip(*pairs, strict=True))
    found = metrics.regression(np.array(right), np.array(guessed))
    if np.ptp(right) == 0 or np.ptp(guessed) == 0:
        assert found == {"pearson": 0.0, "spearman": 0.0}
        return
    ranks = [[sum(w < v for w in x) + (sum(w == v for w in x) - 1) / 2 for v in x] for x in (right, guessed)]
    assert found["spearman"] == pytest.approx(correlation(*ranks), abs=1e-9)
    if min(np.ptp(right), np.ptp(guessed)) > 1e-3:
        assert found["pearson"] == pytest.approx(correlation(right, guessed), abs=1e-6)


def test_one_row_has_no_correlation() -> None:
    assert metrics.regression(np.array([1.0]), np.array([2.0]))["pearson"] == 0.0


def entities(tags: list[str]) -> set[tuple[int, int, str]]:
    """(first, after the last, type); an I- after O or another type begins an entity, as in conlleval."""
    found, begin = set(), None
    for place, tag in enumerate([*tags, "O"]):
        kind = tag[2:] if tag != "O" else None
        if begin is not None and (tag[0] != "I" or kind != begin[1]):
            found.add((begin[0], place, begin[1]))
            begin = None
        if kind is not None and begin is None:
            begin = (place, kind)
    return found


TAGS = st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"])


@given(st.lists(st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=8), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_entities(rows: list[list[tuple[str, str]]]) -> None:
    right, guessed = ([[pair[side] for pair in row] for row in rows] for side in (0, 1))
    found = metrics.tokens(right, guessed)
    expected = [entities(row) for row in right]
    answered = [entities(row) for row in guessed]
    hits = sum(len(a & b) for a, b in zip(expected, answered, strict=True))
    wanted, given_ = sum(map(len, expected)), sum(map(len, answered))
    assert found["precision"] == pytest.approx(hits / given_ if given_ else 0.0)
    assert found["recall"] == pytest.approx(hits / wanted if wanted else 0.0)
    assert found["f1"] == pytest.approx(2 * hits / (wanted + given_) if hits else 0.0)
    pairs = [pair for row in rows for pair in row]
    assert found["token_accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


def test_parts_of_speech_are_no_entities() -> None:
    assert metrics.tokens([["NOUN", "VERB"]], [["NOUN", "NOUN"]]) == {"token_accuracy": 0.5}
    assert metrics.tokens([["B-PER", "M-PER", "E-PER", "O"]], [["B-PER", "M-PER", "E-PER", "O"]])["f1"] == 1.0
    assert not metrics.marks_entities(["O", "B-PER", "NOUN"])


# ---------------------------------------------------------------- spans


def test_units() -> None:
    assert metrics.units("北京，New York的 BERT-wwm！") == ["北", "京", "new", "york", "的", "bert", "wwm"]
    assert metrics.units("1998年3月") == ["1998", "年", "3", "月"]
    assert metrics.units("𠮷野家a𠮷") == ["𠮷", "野", "家", "a", "𠮷"]
    assert metrics.units("《。》 ") == []


def longest_run(a: list[str], b: list[str]) -> int:
    """By trying all runs."""
    runs = [a[i:j] for i in range(len(a)) for j in range(i + 1, len(a) + 1)]
    inside = [run for run in runs if any(b[k : k + len(run)] == run for k in range(len(b)))]
    return max(map(len, inside), default=0)


CHARACTERS = st.text(st.sampled_from("北京天ab c，。!"), max_size=8)


def plain_units(text: str) -> list[str]:
    for mark in "，。" + string.punctuation:
        text = text.replace(mark, " ")
    for character in "北京天":
        text = text.replace(character, f" {character} ")
    return text.lower().split()


@given(questions=st.lists(st.tuples(st.lists(CHARACTERS, min_size=1, max_size=3), CHARACTERS), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_spans_by_the_longest_common_run(questions: list[tuple[list[str], str]]) -> None:
    """Cui et al.: F1 from the longest common substring; the best over the answers; the mean over questions."""
    f1, exact = [], []
    for answers, guess in questions:
        scores = []
        for answer in answers:
            a, b = plain_units(answer), plain_units(guess)
            run = longest_run(a, b)
            scores.append(2 * run / (len(a) + len(b)) if run else float(not a and not b))
        f1.append(max(scores))
        exact.append(float(any(plain_units(answer) == plain_units(guess) for answer in answers)))
    found = metrics.span([answers for answers, _ in questions], [guess for _, guess in questions])
    assert found["f1"] == pytest.approx(sum(f1) / len(f1))
    assert found["exact_match"] == pytest.approx(sum(exact) / len(exact))


def test_a_run_must_not_be_broken() -> None:
    """A subsequence would count four units here, the longest run has two."""
    found = metrics.span([["北京天气"]], ["北京的天气"])
    assert found == {"f1": pytest.approx(2 * (2 / 4) * (2 / 5) / (2 / 4 + 2 / 5)), "exact_match": 0.0}

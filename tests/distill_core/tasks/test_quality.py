"""Answers gathered over ranks, and what they decode to."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data_prep.tokenizer_base import Tokenizer
from distill_core.data import held_out_batches
from distill_core.engine import Rank
from distill_core.tasks import metrics
from distill_core.tasks.data import TaskData
from distill_core.tasks.quality import LONGEST_ANSWER, TaskQuality, _best_span, evaluate, score, tags, texts
from distill_core.tasks.rows import Row
from tests.distill_core.tasks.tiny import data, rows_of, task_model, tokenizers

KINDS: list[Any] = ["classification", "regression", "tokens", "span"]
CPU = torch.device("cpu")


class Threads:
    """Ranks as threads of this process that add up their tensors."""

    def __init__(self, world_size: int) -> None:
        self.meeting = threading.Barrier(world_size)
        self.given: dict[int, Tensor] = {}

        class ThreadRank(Rank):
            def sum(this, values: Tensor) -> Tensor:
                self.given[this.rank] = values.clone()
                self.meeting.wait(30)
                values.copy_(torch.stack([self.given[r] for r in sorted(self.given)]).sum(0))
                self.meeting.wait(30)
                return values

            def barrier(this) -> None:
                self.meeting.wait(30)

        self.ranks = [ThreadRank(r, r, world_size, CPU) for r in range(world_size)]


def quality(kind: Any, found: TaskData, world_size: int, tokens: int = 64) -> list[TaskQuality]:
    """What each of ``world_size`` ranks finds."""
    results: dict[int, TaskQuality] = {}

    def work(rank: Rank) -> None:
        student, teacher = (task_model(kind, found.labels, seed=seed) for seed in (1, 2))
        batches = held_out_batches(found, len(found), 3, tokens, rank.rank, world_size, "runs")
        results[rank.rank] = evaluate(student.train(), teacher.eval(), found, batches, rank)
        assert student.training and not teacher.training

    threads = [threading.Thread(target=work, args=(rank,)) for rank in Threads(world_size).ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(world_size)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [13, 2, 3])
def test_ranks_find_what_one_finds(kind: Any, count: int) -> None:
    """Also with fewer rows than ranks, or rows that cannot be dealt to them evenly."""
    found = data(kind, rows_of(kind, count), max_length=24)
    [one] = quality(kind, found, 1)
    assert one.rows == count and one.main == metrics.METRICS[kind][0] and one.score == one.student[one.main]
    for world_size in (2, 4):
        for tokens in (64, 24):
            ranks = quality(kind, found, world_size, tokens)
            assert ranks == [ranks[0]] * world_size  # to the bit: all decide alike which model is the best
            assert ranks[0].scalars() == pytest.approx(one.scalars(), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_one_row_at_a_time(kind: Any) -> None:
    rows = rows_of(kind, 9)
    found = data(kind, rows, max_length=24)
    model = task_model(kind, found.labels, seed=1).eval()
    [whole] = quality(kind, found, 1)
    guessed: list[Any] = []
    for row in rows:
        one = data(kind, [row], max_length=24)
        logits = []
        for number in range(len(one)):
            batch = one.batch(np.array([number]), np.array([0]), "runs")
            with torch.no_grad():
                logits.append(model(batch, _task()).task)
        guessed.append(answer(kind, one, logits, found.labels))
    if kind == "classification":
        expected = metrics.classification(found.targets, np.array(guessed), 3)
    elif kind == "regression":
        expected = metrics.regression(found.targets, np.array(guessed))
    elif kind == "tokens":
        expected = metrics.tokens([list(row.tags or ()) for row in rows], guessed)
    else:
        expected = metrics.span([[text for text, _ in row.answers] for row in rows], guessed)
    assert whole.student == pytest.approx(expected, abs=1e-5)


def _task() -> Any:
    from distill_core.features import FeatureRequest

    return FeatureRequest(task=True)


def answer(kind: str, one: TaskData, logits: list[Tensor], labels: list[str]) -> Any:
    """A row's answer from the logits of its sequences."""
    if kind == "classification":
        return int(logits[0][0].argmax())
    if kind == "regression":
        return float(logits[0][0, 0])
    if kind == "tokens":
        kept = [int(row.argmax()) for window in logits for row in window[1:-1]]  # each character is one piece
        return [labels[i] for i in kept]
    best, text = -np.inf, ""
    for number, window in enumerate(logits):
        places = one.places[one.offsets[number] : one.offsets[number + 1]].tolist()
        for i, j in itertools.product(range(len(places)), repeat=2):
            total = float(window[i, 0] + window[j, 1])
            if i <= j and min(places[i], places[j]) >= 0 and total > best:
                best, text = total, (one.rows[0].text_b or "")[places[i] : places[j] + 1]
    return text


# ---------------------------------------------------------------- decoding


@given(seed=st.integers(0, 10**6), length=st.integers(1, 90), first=st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_the_best_span_by_trying_all(seed: int, length: int, first: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(length, 2)).astype(np.float32)
    allowed = np.arange(length) >= first
    total, a, b = _best_span(logits, allowed)
    possible = [
        (logits[i, 0] + logits[j, 1], i, j)
        for i in range(length)
        for j in range(i, min(length, i + LONGEST_ANSWER))
        if allowed[i] and allowed[j]
    ]
    if possible:
        assert (total, a, b) == max(possible)
    else:
        assert total == -np.inf


@pytest.mark.parametrize("tokenizer", tokenizers().values(), ids=list(tokenizers()))
def test_right_spans_score_one(tokenizer: Tokenizer) -> None:
    """The places of the targets, given as answers, decode to the answers: also for emoji and at a window's edge."""
    context = "他在New York大学读书，played 😀很好。囧 在New York大学读书很好"
    answers = ["他", "New York", "大学读书", "😀", "很好。囧", "played 😀", "读书很好"]
    rows = [Row(f"r{i}", "在？", context, answers=((text, context.index(text)),)) for i, text in enumerate(answers)]
    found = data("span", rows, tokenizer, max_length=28, stride=13)
    assert len(found) > len(rows)
    guesses = np.array([[float(target.any()), *target] for target in found.targets])
    assert texts(found, guesses) == answers
    assert score(found, guesses) == {"f1": 1.0, "exact_match": 1.0}


def test_a_context_without_tokens_gets_no_answer() -> None:
    rows = [Row("a", "在？", "\u200b\u00ad", answers=(("\u200b", 0),)), *rows_of("span", 3)]
    found = data("span", rows)
    assert found.ids[: found.offsets[1]].tolist().count(found.ids[0]) == 1
    [one] = quality("span", found, 1)
    assert 0 <= one.student["f1"] <= 1
    assert texts(found, np.array([[-np.inf, 0, 0]] + [[1, 4, 4]] * 3))[0] == ""


def test_tags_of_rows_that_fill_several_sequences() -> None:
    rows = rows_of("tokens", 7)
    found = data("tokens", rows, max_length=8)
    assert len(found) > len(rows)
    right = np.where(found.targets >= 0, found.targets, 0)[:, None].astype(float)
    assert tags(found, right) == [list(row.tags or ()) for row in rows]
    assert score(found, right)["token_accuracy"] == 1.0


def test_agreement() -> None:
    """Of spans: the same answer to the question, not the same last token in each window."""
    found = data("span", [Row("q", "天气？", "北京天气", answers=(("北京", 0),))])
    [begin] = np.flatnonzero(found.places == 0)
    from distill_core.tasks.quality import _agreement

    right = np.array([[1.0, begin, begin + 1]])
    assert _agreement(found, right, right) == 1.0
    assert _agreement(found, right, np.array([[1.0, begin + 1, begin + 1]])) == 0.0
    numbers = data("regression", rows_of("regression", 4))
    values = np.arange(4.0)[:, None]
    assert _agreement(numbers, values, 3 - 2 * values) == pytest.approx(-1.0)


def test_what_is_said() -> None:
    one = TaskQuality({"accuracy": 0.5, "f1": 0.25}, {"accuracy": 0.75, "f1": 0.5}, 0.625, "accuracy", 8)
    assert one.sentence() == "dev accuracy 0.5000, f1 0.2500 (teacher accuracy 0.7500; agreement 62.5%)"
    assert one.scalars()["eval/teacher_f1"] == 0.5 and one.scalars()["eval/agreement"] == 0.625
    alone = TaskQuality({"accuracy": 0.5}, None, None, "accuracy", 8, head_trained=False)
    assert alone.sentence() == "the head is not trained in this stage; dev accuracy 0.5000"
    assert alone.scalars() == {"eval/student_accuracy": 0.5}

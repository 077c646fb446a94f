"""Rows as sequences, against references that go token by token, and against the tokenizers that are exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from configs.errors import DataError
from data_prep.tokenizer_base import Tokenizer
from distill_core.batch import IGNORED
from distill_core.tasks.config import TaskConfig
from distill_core.tasks.data import TaskData
from distill_core.tasks.rows import Row
from tests.data_prep.latin import shared
from tests.distill_core.tasks.tiny import HAN, data, rows_of, tokenizers, wordpiece

KINDS = ["classification", "regression", "tokens", "span"]
TOKENIZERS = tokenizers()
# Pieces of text that tokenizers treat differently; 😀 is four bytes, 囧 is not in the WordPiece vocabulary.
BITS = [
    "北京",
    "天气很好",
    "cats",
    "played",
    "BERT-wwm",
    "New York",
    " ",
    "  ",
    "😀",
    "囧",
    "。",
    "naïve",
    "12",
    "\u3000",
]
TEXTS = st.lists(st.sampled_from(BITS), min_size=1, max_size=12).map("".join).filter(lambda text: bool(text.strip()))


def sequences(found: TaskData) -> list[list[int]]:
    return [found.ids[a:b].tolist() for a, b in zip(found.offsets[:-1], found.offsets[1:], strict=True)]


def specials(tokenizer: Tokenizer) -> tuple[int, int, list[int]]:
    cls, sep = tokenizer.special_ids["cls"], tokenizer.special_ids["sep"]
    return cls, sep, [sep, sep] if tokenizer.kind == "bpe" else [sep]


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return [int(i) for i in tokenizer.encode([text])[0][0]]


# ---------------------------------------------------------------- texts and pairs


def one_by_one(a: list[int], b: list[int], room: int) -> tuple[list[int], list[int]]:
    """BERT's `_truncate_seq_pair`: the longer text loses its last token, the second one if they are equal."""
    a, b = list(a), list(b)
    while len(a) + len(b) > room:
        (a if len(a) > len(b) else b).pop()
    return a, b


@pytest.mark.parametrize("name", list(TOKENIZERS))
@given(a=TEXTS, b=st.none() | TEXTS, longest=st.integers(8, 40))
@settings(max_examples=60, deadline=None)
def test_texts_and_pairs_cut_one_token_at_a_time(name: str, a: str, b: str | None, longest: int) -> None:
    tokenizer = TOKENIZERS[name]
    found = data("regression", [Row("r", a, b, label=1.5)], tokenizer, max_length=longest)
    cls, sep, middle = specials(tokenizer)
    if b is None:
        expected, first = [cls, *ids_of(tokenizer, a)[: longest - 2], sep], longest
    else:
        x, y = one_by_one(ids_of(tokenizer, a), ids_of(tokenizer, b), longest - 2 - len(middle))
        expected, first = [cls, *x, *middle, *y, sep], 1 + len(x) + len(middle)
    assert sequences(found) == [expected]
    assert found.targets.dtype == np.float32 and found.targets.tolist() == [1.5]
    types = found.batch(np.array([0]), np.array([0]), "runs").types
    second = [int(i >= first) for i in range(len(expected))] if b is not None and tokenizer.kind != "bpe" else None
    assert (None if types is None else types.tolist()) == second


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_the_exported_tokenizer_makes_the_same_sequences(name: str, tmp_path: Path) -> None:
    """What a model is trained on is what its user's pipeline will feed it."""
    tokenizer = TOKENIZERS[name]
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    rows = [Row("a", "北京天气很好。", label="x"), Row("b", "the cats played", "New York, 上海？", label="y")]
    found = data("classification", rows, tokenizer)
    for number, row in enumerate(rows):
        encoded = theirs(row.text_a, row.text_b) if row.text_b else theirs(row.text_a)
        assert sequences(found)[number] == encoded["input_ids"]
        types = found.batch(np.array([number]), np.array([0]), "runs").types
        expected = encoded.get("token_type_ids") or [0] * len(encoded["input_ids"])
        assert ([0] * len(expected) if types is None else types.tolist()) == expected


def test_labels_by_name() -> None:
    rows = [Row("a", "北", label="x"), Row("b", "京", label="y"), Row("c", "好", label="x")]
    found = data("classification", rows)
    assert found.labels == ["x", "y"] and found.targets.tolist() == [0, 1, 0] and found.targets.dtype == np.int64
    from distill_core.tasks.data import make_data

    with pytest.raises(DataError, match="Row b: the label 'y' is not one of the task's: x, z"):
        make_data(rows, ["x", "z"], found.task, wordpiece())


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("name", list(TOKENIZERS))
@given(
    rows=st.lists(
        st.lists(st.sampled_from([b for b in BITS if b.strip()] + ["\u3000"]), min_size=1, max_size=9),
        min_size=1,
        max_size=3,
    ),
    longest=st.integers(8, 24),
)
@settings(max_examples=50, deadline=None)
def test_a_label_on_each_first_piece_and_nothing_lost(name: str, rows: list[list[str]], longest: int) -> None:
    tokenizer = TOKENIZERS[name]
    given_rows = [
        Row(f"r{i}", "", tokens=tuple(row), tags=tuple(f"T{j % 2}" for j in range(len(row))))
        for i, row in enumerate(rows)
    ]
    found = data("tokens", given_rows, tokenizer, max_length=longest)
    cls, sep, _ = specials(tokenizer)
    unknown, room = tokenizer.special_ids["unk"], longest - 2
    for number, row in enumerate(given_rows):
        pieces: list[int] = []
        expected: list[tuple[int, str | None]] = []
        for place, (token, tag) in enumerate(zip(row.tokens or (), row.tags or (), strict=True)):
            space = " " if tokenizer.kind == "bpe" and place and not "\u3400" <= token[0] <= "\u9fff" else ""
            own = ids_of(tokenizer, space + token)[:room] or [unknown]
            pieces += own
            expected += [(place, tag)] + [(-1, None)] * (len(own) - 1)
        mine = np.flatnonzero(found.owner == number)
        whole: list[int] = []
        seen: list[tuple[int, str | None]] = []
        for sequence in mine:
            part = slice(int(found.offsets[sequence]), int(found.offsets[sequence + 1]))
            ids, targets, places = (values[part].tolist() for values in (found.ids, found.targets, found.places))
            assert len(ids) <= longest and ids[0] == cls and ids[-1] == sep
            assert targets[0] == targets[-1] == IGNORED and places[0] == places[-1] == -1
            whole += ids[1:-1]
            labels = [None if t == IGNORED else found.labels[t] for t in targets[1:-1]]
            seen += list(zip(places[1:-1], labels, strict=True))
        assert whole == pieces and seen == expected


def test_byte_level_tokens_are_those_of_the_running_text() -> None:
    """Without the space in front, every word but the first would be another one than in pre-training."""
    row = Row("r", "", tokens=("The", "cyclist", "rode", "slowly"), tags=("O", "B-X", "O", "O"))
    tokenizer = shared()
    [found] = sequences(data("tokens", [row], tokenizer))
    assert found[1:-1] == ids_of(tokenizer, "The cyclist rode slowly")


# ---------------------------------------------------------------- spans


def decoded(found: TaskData, sequence: int) -> str:
    """The text under a sequence's target."""
    first, last = (int(found.offsets[sequence] + place) for place in found.targets[sequence])
    context = found.rows[int(found.owner[sequence])].text_b or ""
    return context[found.places[first] : found.ends[last]].strip()


@st.composite
def questions(draw: Any) -> Row:
    bits = draw(
        st.lists(st.sampled_from(BITS), min_size=1, max_size=25).filter(lambda bits: any(b.strip() for b in bits))
    )
    solid = [i for i, bit in enumerate(bits) if bit.strip()]
    first = draw(st.sampled_from(solid))
    last = draw(st.sampled_from([i for i in solid if i >= first]))
    context, begin = "".join(bits), len("".join(bits[:first]))
    answer = "".join(bits[first : last + 1])
    return Row("q", draw(TEXTS), context, answers=((answer, begin),))


@pytest.mark.parametrize("name", list(TOKENIZERS))
@given(row=questions(), longest=st.integers(8, 40), share=st.integers(1, 100))
@settings(max_examples=80, deadline=None)
def test_windows_cover_the_context_and_the_answer_decodes(name: str, row: Row, longest: int, share: int) -> None:
    tokenizer = TOKENIZERS[name]
    stride = max(1, share * (longest // 2 - 1) // 100)
    found = data("span", [row], tokenizer, max_length=longest, stride=stride)
    context, starts = (values.tolist() for values in tokenizer.encode([row.text_b or ""])[0])
    cls, sep, middle = specials(tokenizer)
    first = [cls, *ids_of(tokenizer, row.text_a)[: longest // 2 - 2], *middle]
    room = longest - len(first) - 1
    overlap = min(stride, room // 2)
    text, begin = row.answers[0]
    covered: set[int] = set()
    ends = [min((s for s in starts if s > start), default=len(row.text_b or "")) for start in starts]
    inside = {i for i, (s, e) in enumerate(zip(starts, ends, strict=True)) if s < begin + len(text) and e > begin}
    for number, ids in enumerate(sequences(found)):
        at = number * (room - overlap)
        assert ids == [*first, *context[at : at + room], sep] and len(ids) <= longest
        assert found.seconds[number] == (len(ids) if tokenizer.kind == "bpe" else len(first))
        places = found.places[found.offsets[number] : found.offsets[number + 1]].tolist()
        assert places == [-1] * len(first) + starts[at : at + room] + [-1]
        window = set(range(at, min(at + room, len(context))))
        covered |= window
        target = found.targets[number].tolist()
        if inside <= window:
            assert {t - len(first) + at for t in range(target[0], target[1] + 1)} == inside
            reach = slice(min(starts[i] for i in inside), max(ends[i] for i in inside))
            assert decoded(found, number) == (row.text_b or "")[reach].strip()
            assert text.strip() in decoded(found, number)
        else:
            assert target == [0, 0]
    assert covered == set(range(len(context)))


CONTEXT = "他 在New York大学 读书，played 😀很好。囧"


@pytest.mark.parametrize("name", list(TOKENIZERS))
@pytest.mark.parametrize(
    "answer", ["他", "New York", "York大学", "大学", " 读书", "played", "played 😀很好", "😀", "好。囧", CONTEXT]
)
def test_the_answers_own_characters_come_back(name: str, answer: str) -> None:
    row = Row("q", "在？", CONTEXT, answers=((answer, CONTEXT.index(answer)),))
    found = data("span", [row], TOKENIZERS[name], max_length=100)
    assert len(found) == 1 and found.targets.tolist() != [[0, 0]]
    assert decoded(found, 0) == answer.strip()


def test_an_answer_inside_a_piece_is_the_whole_piece() -> None:
    found = data("span", [Row("q", "在？", "the cats", answers=(("at", 5),))])
    assert decoded(found, 0) == "cat"


def test_a_context_without_tokens_has_no_answer() -> None:
    found = data("span", [Row("q", "在？", "\u200b\u00ad", answers=(("\u200b", 0),))])
    assert found.targets.tolist() == [[0, 0]] and (found.places == -1).all()


def test_the_default_stride_fits_every_length() -> None:
    assert TaskConfig(kind="span", train="a", dev="b").overlap == 32
    assert TaskConfig(kind="span", train="a", dev="b", max_length=8).overlap == 2
    with pytest.raises(ValueError, match="stride 20 must be less than half of max_length 40"):
        TaskConfig(kind="span", train="a", dev="b", max_length=40, stride=20)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "tokens", "metric": "pearson"}, "metric 'pearson' is not one of f1, precision"),
        ({"kind": "span", "labels": ["a", "b"]}, "`labels` has no meaning"),
        ({"kind": "classification", "labels": ["a", "a"]}, "two different names"),
        ({"kind": "classification", "labels": ["a"]}, "two different names"),
        ({"kind": "classification", "stride": 4}, "`stride` has no meaning"),
    ],
)
def test_settings_without_meaning_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskConfig(train="a", dev="b", **fields)


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_sequences_in_order(kind: Any) -> None:
    found = data(kind, rows_of(kind), max_length=16)
    for index in ([2, 0], [1], list(range(len(found)))[::-1]):
        batch = found.batch(np.array(index), np.zeros(len(index), np.int64), "runs")
        every = sequences(found)
        assert batch.ids.tolist() == [i for n in index for i in every[n]]
        assert batch.positions.tolist() == [p for n in index for p in range(len(every[n]))]
        assert batch.layout.lengths == tuple(len(every[n]) for n in index)
        types = [int(p >= found.seconds[n]) for n in index for p in range(len(every[n]))]
        assert (batch.types.tolist() if batch.types is not None else [0] * len(types)) == types
        assert batch.task == kind and batch.targets is not None and batch.sequence_ids is not None
        if kind == "tokens":
            expected = [t for n in index for t in found.targets[found.offsets[n] : found.offsets[n + 1]].tolist()]
            assert batch.n_targets == sum(t != IGNORED for t in expected)
        else:
            expected = [found.targets[n].tolist() for n in index]
            assert batch.n_targets == len(index)
        assert batch.targets.tolist() == expected and batch.sequence_ids.tolist() == index
        assert batch.targets.dtype == (torch.float32 if kind == "regression" else torch.int64)
    assert set("".join(row.text_a for row in found.rows)) <= set(HAN + " ？")

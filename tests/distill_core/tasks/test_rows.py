from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError, DataError, OutputError
from distill_core.tasks.rows import Columns, Row, RowCounts, TaskKind, check_labels, label_names, read_rows, write_rows


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*records: Any) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def read(path: Path, kind: TaskKind, columns: Columns | None = None) -> tuple[list[Row], RowCounts]:
    counts = RowCounts()
    return read_rows(path, kind, counts, columns), counts


# ---------------------------------------------------------------- texts and pairs


def test_a_record_a_line(tmp_path: Path) -> None:
    content = lines({"id": "a", "text_a": "天气好", "label": "1"}, {"text_a": "甲", "text_b": "乙", "label": 0}) + "\n"
    rows, counts = read(write(tmp_path / "x.jsonl", content), "classification")
    assert rows == [Row("a", "天气好", label="1"), Row("x.jsonl:2", "甲", "乙", "0")]
    assert counts == {"rows": 2} and counts.messages == []


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_files_say_the_same(tmp_path: Path, ending: str) -> None:
    plain = lines({"id": "a", "sentence": "好", "label": "p"}).encode()
    packed = gzip.compress(plain) if ending == ".gz" else zstandard.ZstdCompressor().compress(plain)
    rows, _ = read(write(tmp_path / f"train.json{ending}", packed), "classification")
    assert rows == [Row("a", "好", label="p")]
    with pytest.raises(DataError, match=r"(truncated|damaged) file: it cannot be read to its end"):
        read(write(tmp_path / f"cut.jsonl{ending}", packed[:-6]), "classification")


def test_bad_rows_are_counted_by_reason_and_the_first_are_named(tmp_path: Path) -> None:
    good = {"id": "g", "text_a": "好", "label": "1"}
    bad = [
        "{not json\n",
        "[1, 2]\n",
        lines({"id": "x", "label": "1"}),
        lines({"text_a": "  ", "label": "1"}),
        lines({"text_a": 7, "label": "1"}),
        lines({"text_a": "好"}),
        lines({"text_a": "好", "label": "-"}),
        lines({"text_a": "好", "label": ["1"]}),
        lines({"text_a": "好", "label": 0.5}),
    ]
    content = (
        lines(good).encode() + "".join(bad).encode() + b'{"text_a": "\xff", "label": "1"}\n' + lines(good).encode()
    )
    rows, counts = read(write(tmp_path / "x.jsonl", content), "classification")
    assert rows == [Row("g", "好", label="1")] * 2
    assert counts.dropped == {
        "empty_text_a": 1,
        "label_of_another_type": 2,
        "no_json_record": 2,
        "no_label": 2,
        "no_text": 1,
        "no_text_a": 1,
        "undecodable": 1,
    }
    assert len(counts.messages) == 5
    assert counts.messages[0] == "x.jsonl:2: no json record" and counts.messages[2] == "x.jsonl:4: no text"


def test_no_usable_row_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no usable row .*'classification'.*x.jsonl:1: no text.*name its columns"):
        read(write(tmp_path / "x.jsonl", lines({"satz": "gut", "label": "1"})), "classification")
    with pytest.raises(DataError, match="It is empty"):
        read(write(tmp_path / "y.jsonl", ""), "classification")
    with pytest.raises(DataError, match="There is no file"):
        read(tmp_path / "z.jsonl", "classification")
    with pytest.raises(DataError, match=r"comes as \.jsonl.*ends in '\.xml'"):
        read(write(tmp_path / "x.xml", "<a/>"), "classification")


def test_tables_have_a_header_and_csv_has_quotes(tmp_path: Path) -> None:
    table = '\ufeffsentence1,sentence2,label\n"one, two\nthree",four,yes\nlonely\nfive,six,no\n'
    rows, counts = read(write(tmp_path / "x.csv", table), "classification")
    assert rows == [Row("x.csv:3", "one, two\nthree", "four", "yes"), Row("x.csv:5", "five", "six", "no")]
    assert counts.dropped == {"wrong_number_of_fields": 1} and counts.messages == ["x.csv:4: wrong number of fields"]


def test_quotes_mean_nothing_in_tsv(tmp_path: Path) -> None:
    table = b'sentence\tlabel\r\n"so he said\t1\r\n\xff\t1\r\nfine"\t0\r\n'
    rows, counts = read(write(tmp_path / "x.tsv", table), "classification")
    assert [(row.text_a, row.label) for row in rows] == [('"so he said', "1"), ('fine"', "0")]
    assert counts.dropped == {"undecodable": 1} and counts.messages == ["x.tsv:3: undecodable"]


def test_an_unclosed_quote_is_a_bad_row(tmp_path: Path) -> None:
    table = 'text,label\ngood,1\n"' + ("x" * 1000 + "\n") * 200
    rows, counts = read(write(tmp_path / "x.csv", table), "classification")
    assert rows == [Row("x.csv:2", "good", label="1")]
    assert counts.dropped["not_csv"] == 1


def test_columns_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", "Quality\t#1 String\t#2 String\n1\tone\ttwo\n")
    columns = Columns(text_a="#1 String", text_b="#2 String", label="Quality")
    assert read(path, "classification", columns)[0] == [Row("x.tsv:2", "one", "two", "1")]
    with pytest.raises(DataError, match=r"has no column '#3 String'.*Did you mean '#[12] String'"):
        read(path, "classification", Columns(text_a="#1 String", text_b="#3 String", label="Quality"))
    with pytest.raises(ValueError, match="text_b is given without text_a"):
        Columns(text_b="b")


def test_a_pair_is_never_read_as_one_text(tmp_path: Path) -> None:
    qnli = write(tmp_path / "x.jsonl", lines({"question": "who?", "sentence": "he", "label": "entailment"}))
    assert read(qnli, "classification")[0] == [Row("x.jsonl:1", "who?", "he", "entailment")]


def test_regression_takes_finite_numbers(tmp_path: Path) -> None:
    labels: list[Any] = [2.5, 3, "4.25", "high", True, "nan", "inf", None]
    path = write(tmp_path / "x.jsonl", lines(*({"sentence1": "a", "sentence2": "b", "score": x} for x in labels)))
    rows, counts = read(path, "regression")
    assert [row.label for row in rows] == [2.5, 3.0, 4.25] and all(isinstance(row.label, float) for row in rows)
    assert counts.dropped == {"label_not_a_number": 4, "no_label": 1}


# ---------------------------------------------------------------- tokens


def test_tagged_tokens(tmp_path: Path) -> None:
    records = [
        {"id": "a", "tokens": ["北", "京"], "tags": ["B-LOC", "I-LOC"]},
        {"id": "b", "tokens": ["北"], "tags": ["O", "O"]},
        {"id": "c", "tokens": [], "tags": []},
        {"id": "d", "tokens": ["x", 1], "tags": ["O", "O"]},
        {"id": "e", "tokens": ["x"], "tags": "O"},
    ]
    rows, counts = read(write(tmp_path / "x.jsonl", lines(*records)), "tokens")
    assert rows == [Row("a", "北 京", tokens=("北", "京"), tags=("B-LOC", "I-LOC"))]
    assert counts.dropped == {"no_tags": 1, "no_tokens": 2, "tokens_and_tags_differ_in_number": 1}


def test_conll_columns(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- O O\n\nEU NNP B-ORG\nrejects VBZ O\n\n\nlonely\ncall O\n\n　\tO\n京\tB\n"
    rows, counts = read(write(tmp_path / "x.conll", text), "tokens")
    assert [(row.id, row.tokens, row.tags) for row in rows] == [
        ("x.conll:3", ("EU", "rejects"), ("B-ORG", "O")),
        ("x.conll:10", ("　", "京"), ("O", "B")),
    ]
    assert counts.dropped == {"line_without_a_tag": 1} and counts.messages == ["x.conll:7: line without a tag"]


# ---------------------------------------------------------------- spans


def squad(context: str, *answers: tuple[Any, Any], id: Any = "q") -> dict[str, Any]:
    found = [{"text": text, "answer_start": start} for text, start in answers]
    return {"data": [{"paragraphs": [{"context": context, "qas": [{"id": id, "question": "谁？", "answers": found}]}]}]}


def test_answers_stand_where_they_say(tmp_path: Path) -> None:
    context = "王五见王五，王五走。"
    path = write(tmp_path / "x.json.gz", gzip.compress(json.dumps(squad(context, ("王五", 3), ("走", 0))).encode()))
    rows, counts = read(path, "span")
    assert rows == [Row("q", "谁？", context, answers=(("王五", 3), ("走", 8)))]
    assert counts == {"rows": 1, "answers_moved": 1}


def test_answers_that_are_nowhere_are_dropped(tmp_path: Path) -> None:
    record = squad("王五走。", ("李四", 0), ("王五", "0"), (None, 0), ("走", 2))
    rows, counts = read(write(tmp_path / "x.json", json.dumps(record)), "span")
    assert rows[0].answers == (("走", 2),) and counts["answers_dropped"] == 3
    with pytest.raises(DataError, match=r"x.json:1: answer not in context"):
        read(write(tmp_path / "x.json", json.dumps(squad("王五走。", ("李四", 0)))), "span")
    with pytest.raises(DataError, match=r"x.json:1: no answer"):
        read(write(tmp_path / "x.json", json.dumps(squad("王五走。"))), "span")


@pytest.mark.parametrize("content", ["[]", "{", '{"data": 3}', '{"data": [{"paragraphs": 1}]}'])
def test_not_squad(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"not JSON in SQuAD's layout"):
        read(write(tmp_path / "x.json", content), "span")


@given(st.text("甲乙", min_size=1, max_size=12), st.data())
def test_a_moved_answer_is_the_nearest_occurrence(
    tmp_path_factory: pytest.TempPathFactory, text: str, data: Any
) -> None:
    answer = data.draw(st.text("甲乙", min_size=1, max_size=3))
    start = data.draw(st.integers(-3, 15))
    path = write(tmp_path_factory.getbasetemp() / "h.json", json.dumps(squad(text, (answer, start))))
    places = [i for i in range(len(text)) if text[i : i + len(answer)] == answer]
    if not places:
        with pytest.raises(DataError):
            read(path, "span")
        return
    (row,), counts = read(path, "span")
    bounded = max(0, min(start, len(text)))
    assert row.answers[0][1] == min(places, key=lambda place: (abs(place - bounded), place))
    assert counts["answers_moved"] == (start not in places)


# ---------------------------------------------------------------- labels, writing


def test_label_names_and_unknown_labels() -> None:
    train = [Row("1", "a", label="pos"), Row("2", "b", label="neg"), Row("3", "c", label="pos")]
    assert label_names(train) == ["neg", "pos"]
    tagged = [Row("1", "a b", tokens=("a", "b"), tags=("O", "B-X")), Row("2", "c", tokens=("c",), tags=("I-X",))]
    assert label_names(tagged) == ["B-X", "I-X", "O"]
    assert label_names([Row("1", "a", label=1.5)]) == []
    check_labels(train[:1], label_names(train), "dev.jsonl")
    with pytest.raises(DataError, match=r"dev.jsonl: the label 'poss' \(row 7\).*neg, pos.*Did you mean 'pos'"):
        check_labels([*train, Row("7", "x", label="poss")], label_names(train), "dev.jsonl")


ROWS: list[tuple[TaskKind, list[Row]]] = [
    ("classification", [Row("a", "天气\n好", label="1"), Row("b", 'x"', "y\u2028", "中 立")]),
    ("regression", [Row("a", "x", "y", 2.5)]),
    ("tokens", [Row("a", "北 京", tokens=("北", "京"), tags=("B", "I"))]),
    ("span", [Row("a", "谁？", "王五走。", answers=(("王五", 0), ("走", 2)))]),
]


@pytest.mark.parametrize(("kind", "rows"), ROWS)
@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_written_rows_are_read_back(tmp_path: Path, kind: TaskKind, rows: list[Row], name: str) -> None:
    assert write_rows(tmp_path / "new" / name, iter(rows)) == len(rows)
    first = (tmp_path / "new" / name).read_bytes()
    assert read(tmp_path / "new" / name, kind)[0] == rows
    write_rows(tmp_path / "new" / name, rows)
    assert (tmp_path / "new" / name).read_bytes() == first
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_rows(path, [Row("a", "x", label="1")])
    before = path.read_bytes()

    def torn() -> Any:
        yield Row("b", "y", label="1")
        raise DataError("the source broke")

    with pytest.raises(DataError, match="the source broke"):
        write_rows(path, torn())
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigError, match="rename it"):
        write_rows(tmp_path / "x.csv", [])
    with pytest.raises(OutputError, match="Cannot write"):
        write_rows(path / "inside.jsonl", [])

"""Labelled data as typed rows: from JSON lines, tables with a header, SQuAD files and CoNLL columns, and back.

A row that cannot be used is counted by its reason and skipped; the first few are also named with file and line.
"""

from __future__ import annotations

import difflib
import gzip
import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import orjson
from pydantic import model_validator

from configs.errors import ConfigError, DataError, output_error
from configs.loader import Config
from data_prep.documents import Counts
from distill_core.tasks.row_files import Record, records

TaskKind = Literal["classification", "regression", "tokens", "span"]
"""What is predicted: a name or a number for a text or a pair, a tag for each token, an answer's place in a text."""
MESSAGES = 5


@dataclass(frozen=True)
class Row:
    """One labelled example.

    ``text_a``, ``text_b``: the text, or the pair; for spans the question and the context. ``label``: a name
    (classification) or a number (regression). ``tokens``, ``tags``: token classification, equally many (``text_a`` is
    then the tokens with spaces between). ``answers``: spans, (text, where it begins in the context, in characters).
    """

    id: str
    text_a: str
    text_b: str | None = None
    label: str | float | None = None
    tokens: tuple[str, ...] | None = None
    tags: tuple[str, ...] | None = None
    answers: tuple[tuple[str, int], ...] = ()


class Columns(Config):
    """What the fields of the records are called, where they have other names than the usual ones."""

    id: str = "id"
    text_a: str | None = None
    """None: the first of the usual pairs that is there (text_a/text_b, sentence1/sentence2, premise/hypothesis,
    question1/question2, question/sentence, question/context, sentence, text)."""
    text_b: str | None = None
    label: str | None = None
    """None: label, or score."""
    tokens: str = "tokens"
    tags: str = "tags"

    @model_validator(mode="after")
    def _together(self) -> Columns:
        if self.text_b is not None and self.text_a is None:
            raise ValueError("text_b is given without text_a; name both")
        return self


class RowCounts(Counts):
    """How many rows were read (``rows``) and dropped (``dropped_<reason>``), and ``messages``: the first few."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def drop_at(self, reason: str, where: str) -> None:
        """Count one dropped row, and remember where it stood if it is among the first few."""
        self.drop(reason)
        if len(self.messages) < MESSAGES:
            self.messages.append(f"{where}: {reason.replace('_', ' ')}")


class _Unusable(Exception):
    """A record that makes no row; its one argument is the reason, as it is counted."""


_PAIRS = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "context"),
)
_SINGLE = ("text_a", "sentence", "text")
_LABELS = ("label", "score")
_UNLABELLED = ("", "-")  # SNLI and OCNLI write - where the annotators did not agree


def read_rows(path: str | Path, kind: TaskKind, counts: RowCounts, columns: Columns | None = None) -> list[Row]:
    """The usable rows of a file, in its order.

    ``.jsonl`` and ``.json``: a record a line (spans: ``.json`` is SQuAD's layout); ``.csv`` and ``.tsv`` with a header
    (quotes mean nothing in ``.tsv``, as in GLUE); for tokens ``.txt``, ``.conll`` or ``.bio``: a token and its tag a
    line, a blank line between sentences. Each also as ``.gz``, ``.zst`` or ``.xz``. A record without an id gets
    ``<file>:<line>``.

    Args:
        counts: gets ``rows``, ``dropped_<reason>``, for spans ``answers_moved`` and ``answers_dropped``, and messages.

    Raises:
        DataError: the file is missing, of no known ending, damaged, or holds no usable row.
    """
    path = Path(path)
    names = columns or Columns()
    make = _MAKERS[kind]
    rows = []
    before = counts.total()
    wanted = [name for name in (names.text_a, names.text_b, names.label) if name is not None]
    for where, record, reason in records(path, kind, wanted, (names.tokens, names.tags)):
        try:
            if record is None:
                raise _Unusable(reason)
            given = record.get(names.id)
            known = isinstance(given, str | int) and not isinstance(given, bool) and given != ""
            rows.append(make(str(given) if known else where, record, names, counts))
        except _Unusable as unusable:
            counts.drop_at(str(unusable), where)
    counts["rows"] += len(rows)
    if not rows:
        seen = f" Dropped: {'; '.join(counts.messages)}." if counts.total() > before else " It is empty."
        raise DataError(
            f"{path} holds no usable row for a task of kind {kind!r}.{seen} Correct the file, or name its columns."
        )
    return rows


# ---------------------------------------------------------------- records to rows


def _text(record: Record, name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise _Unusable(f"no_{name}")
    if not value.strip():
        raise _Unusable(f"empty_{name}")
    return value


def _texts(record: Record, columns: Columns) -> tuple[str, str | None]:
    if columns.text_a is not None:
        return _text(record, columns.text_a), None if columns.text_b is None else _text(record, columns.text_b)
    for a, b in _PAIRS:
        if record.get(a) is not None and record.get(b) is not None:
            return _text(record, a), _text(record, b)
    for name in _SINGLE:
        if name in record:
            return _text(record, name), None
    raise _Unusable("no_text")


def _label(record: Record, columns: Columns) -> str | float:
    name = columns.label or next((name for name in _LABELS if name in record), "label")
    value = record.get(name)
    if value is None or (isinstance(value, str) and value.strip() in _UNLABELLED):
        raise _Unusable("no_label")
    if not isinstance(value, str | int | float):
        raise _Unusable("label_of_another_type")
    return value


def _classified(id: str, record: Record, columns: Columns, counts: RowCounts) -> Row:
    label = _label(record, columns)
    if isinstance(label, float) and not label.is_integer():
        raise _Unusable("label_of_another_type")
    name = label.strip() if isinstance(label, str) else str(int(label))
    return Row(id, *_texts(record, columns), label=name)


def _measured(id: str, record: Record, columns: Columns, counts: RowCounts) -> Row:
    label = _label(record, columns)
    try:
        number = float(label)
    except (ValueError, OverflowError):
        number = math.nan
    if isinstance(label, bool) or not math.isfinite(number):
        raise _Unusable("label_not_a_number")
    return Row(id, *_texts(record, columns), label=number)


def _tagged(id: str, record: Record, columns: Columns, counts: RowCounts) -> Row:
    tokens, tags = record.get(columns.tokens), record.get(columns.tags)
    if not isinstance(tokens, list) or not tokens or not all(isinstance(t, str) and t for t in tokens):
        raise _Unusable("no_tokens")
    if not isinstance(tags, list) or not all(isinstance(t, str) and t for t in tags):
        raise _Unusable("no_tags")
    if len(tokens) != len(tags):
        raise _Unusable("tokens_and_tags_differ_in_number")
    return Row(id, " ".join(tokens), tokens=tuple(tokens), tags=tuple(tags))


def _answered(id: str, record: Record, columns: Columns, counts: RowCounts) -> Row:
    question = _text(record, columns.text_a or "question")
    context = _text(record, columns.text_b or "context")
    given = record.get("answers")
    if not isinstance(given, list) or not given:
        raise _Unusable("no_answer")
    answers: list[tuple[str, int]] = []
    for answer in given:
        text = answer.get("text") if isinstance(answer, dict) else None
        start = answer.get("answer_start") if isinstance(answer, dict) else None
        if isinstance(text, str) and isinstance(start, int) and (place := _nearest(context, text, start)) is not None:
            if place != start:
                counts["answers_moved"] += 1
            answers.append((text, place))
        else:
            counts["answers_dropped"] += 1
    if not answers:
        raise _Unusable("answer_not_in_context")
    return Row(id, question, context, answers=tuple(dict.fromkeys(answers)))


def _nearest(context: str, text: str, start: int) -> int | None:
    """Where ``text`` stands in ``context`` nearest to ``start`` (the earlier of two); None if nowhere."""
    start = max(0, min(start, len(context)))
    if not text.strip():
        return None
    before = context.rfind(text, 0, start + len(text))
    after = context.find(text, start)
    places = [place for place in (before, after) if place >= 0]
    return min(places, key=lambda place: abs(place - start), default=None)


_MAKERS: dict[TaskKind, Callable[[str, Record, Columns, RowCounts], Row]] = {
    "classification": _classified,
    "regression": _measured,
    "tokens": _tagged,
    "span": _answered,
}
assert set(_MAKERS) == set(get_args(TaskKind))


# ---------------------------------------------------------------- labels


def label_names(rows: Iterable[Row]) -> list[str]:
    """The names among the labels, or the tags, of ``rows``, sorted."""
    names: set[str] = set()
    for row in rows:
        names.update(row.tags or ())
        if isinstance(row.label, str):
            names.add(row.label)
    return sorted(names)


def check_labels(rows: Iterable[Row], names: Iterable[str], source: str | Path) -> None:
    """Refuse labels that training never saw.

    Args:
        rows: of ``source`` (development, test).
        names: the labels of the training rows.

    Raises:
        DataError: naming the unknown label, a row that has it, the known ones and the nearest.
    """
    known = sorted(names)
    for row in rows:
        strange = [name for name in label_names([row]) if name not in known]
        if strange:
            near = difflib.get_close_matches(strange[0], known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(
                f"{source}: the label {strange[0]!r} (row {row.id}) does not occur in the training data, which has "
                f"{', '.join(known) or 'none'}.{hint} Correct the row, or add training rows with this label."
            )


# ---------------------------------------------------------------- writing


def write_rows(path: str | Path, rows: Iterable[Row]) -> int:
    """Write rows as JSON lines that :func:`read_rows` reads back, through a file beside it; returns how many.

    Raises:
        ConfigError: ``path`` ends in neither ``.jsonl`` nor ``.jsonl.gz``.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ConfigError(f"Rows are written as .jsonl or .jsonl.gz, not as {path.name!r}; rename it.")
    partial = path.with_name(f".{path.name}.partial")
    written = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            out: Any = stack.enter_context(open(partial, "wb"))
            if path.name.endswith(".gz"):  # no name and time inside: the same rows are the same bytes
                out = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0))
            for row in rows:
                out.write(orjson.dumps(_record_of(row)) + b"\n")
                written += 1
        partial.replace(path)
    except OSError as error:
        raise output_error(path, error) from None
    finally:
        with suppress(OSError):  # it was renamed, or its folder could not be made
            partial.unlink()
    return written


def _record_of(row: Row) -> Record:
    if row.answers:
        answers = [{"text": text, "answer_start": start} for text, start in row.answers]
        return {"id": row.id, "question": row.text_a, "context": row.text_b, "answers": answers}
    if row.tokens is not None:
        return {"id": row.id, "tokens": row.tokens, "tags": row.tags}
    pair = {} if row.text_b is None else {"text_b": row.text_b}
    return {"id": row.id, "text_a": row.text_a, **pair, "label": row.label}

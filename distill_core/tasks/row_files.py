"""Files of labelled data as records, each with the place that it stands at."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson

from configs.errors import DataError
from data_prep.readers.streams import BOM, Decompressed, Lines, check_file, compression

Record = dict[str, Any]
Found = tuple[str, Record | None, str]
"""(where: file:line, the record or None, the reason why there is none)."""


def records(path: Path, kind: str, wanted: Sequence[str], tagged: tuple[str, str]) -> Iterator[Found]:
    """The records of a file by its ending; bad ones have a reason in their place.

    Args:
        kind: of the task.
        wanted: columns that a table must have.
        tagged: what tokens and tags are called in the records of a CoNLL file.

    Raises:
        DataError: the file is missing, of no known ending, or damaged, or a table lacks a wanted column.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}; correct the path of the task's data.")
    check_file(str(path))
    ending = Path(path.name[: -len(compression(path.name))] if compression(path.name) else path.name).suffix.lower()
    if ending in (".jsonl", ".ndjson") or (ending == ".json" and kind != "span"):
        return _json_lines(path)
    if ending == ".json":
        return _squad(path)
    if ending in (".csv", ".tsv") and kind in ("classification", "regression"):
        return _table(path, wanted, ending)
    if ending in (".txt", ".conll", ".bio") and kind == "tokens":
        return _conll(path, tagged)
    known = {"tokens": ".jsonl, .json, .txt, .conll, .bio", "span": ".jsonl, .json (SQuAD's layout)"}
    raise DataError(
        f"{path}: data of kind {kind!r} comes as {known.get(kind, '.jsonl, .json, .csv, .tsv')} (also with "
        f".gz, .zst or .xz), but this file ends in {ending!r}."
    )


def _lines(path: Path) -> Iterator[tuple[str, str | None, str]]:
    """(file:line, text without its line break, reason if there is no text) of every line."""
    lines = Lines(str(path))
    for number, (_, line) in enumerate(lines, 1):
        where = f"{path.name}:{number}"
        if line is None:
            yield where, None, "line_too_long"
            continue
        try:
            yield where, line.removeprefix(BOM).rstrip(b"\r").decode("utf-8"), ""
        except UnicodeDecodeError:
            yield where, None, "undecodable"
    _whole(path, lines.damage)


def _whole(path: Path, damage: str) -> None:
    if damage:
        raise DataError(f"{path} is a {damage.replace('_', ' ')}: it cannot be read to its end. Fetch it again.")


def _json_lines(path: Path) -> Iterator[Found]:
    for where, line, reason in _lines(path):
        if line is None:
            yield where, None, reason
        elif line.strip():
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                record = None
            yield where, record if isinstance(record, dict) else None, "no_json_record"


def _table(path: Path, wanted: Sequence[str], ending: str) -> Iterator[Found]:
    where = path.name
    lost: list[Found] = []

    def texts() -> Iterator[str]:
        nonlocal where
        for where, line, reason in _lines(path):  # the reader takes just the lines of its record
            if line is None:
                lost.append((where, None, reason))
            else:
                yield line + "\n"

    style: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if ending == ".tsv" else {}
    reader = csv.reader(texts(), **style)
    header: list[str] | None = None
    while True:
        try:
            fields = next(reader, None)
        except csv.Error:  # a field beyond csv's limit of 131072 characters, most often an unclosed quote
            yield where, None, "not_csv"
            continue
        yield from lost
        lost.clear()
        if fields is None:
            return
        if header is None:
            header = _check_header(path, [name.strip() for name in fields], wanted)
        elif fields:
            fits = len(fields) == len(header)
            yield where, dict(zip(header, fields, strict=True)) if fits else None, "wrong_number_of_fields"


def _check_header(path: Path, header: list[str], wanted: Sequence[str]) -> list[str]:
    for name in wanted:
        if name not in header:
            near = difflib.get_close_matches(name, header, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{path} has no column {name!r}; it has {', '.join(header)}.{hint}")
    return header


def _squad(path: Path) -> Iterator[Found]:
    with ExitStack() as stack:
        if compression(path.name):
            raw = Decompressed(str(path))
            content = stack.enter_context(io.BufferedReader(raw)).read()
            _whole(path, raw.damage)
        else:
            content = path.read_bytes()
    try:
        articles = orjson.loads(content.removeprefix(BOM))["data"]
        paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise DataError(
            f"{path} is not JSON in SQuAD's layout (data -> paragraphs -> context, qas). Correct it, or give a "
            ".jsonl with question, context and answers."
        ) from None
    number = 0
    for paragraph in paragraphs:
        questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
        for question in questions if isinstance(questions, list) else [None]:
            number += 1
            record = question | {"context": paragraph.get("context")} if isinstance(question, dict) else None
            yield f"{path.name}:{number}", record, "no_question"


def _conll(path: Path, tagged: tuple[str, str]) -> Iterator[Found]:
    """A sentence is where its first line is; a bad line spoils its sentence."""
    tokens: list[str] = []
    tags: list[str] = []
    start, problem = "", ""

    def sentence() -> Iterator[Found]:
        if (tokens or problem) and tokens != ["-DOCSTART-"]:
            yield start, None if problem else {tagged[0]: tokens[:], tagged[1]: tags[:]}, problem
        tokens.clear()
        tags.clear()

    for where, line, reason in _lines(path):
        if line is not None and not line.strip():
            yield from sentence()
            start = problem = ""
            continue
        start = start or where
        fields = [] if line is None else line.split("\t") if "\t" in line else line.split()
        if len(fields) < 2:
            problem = reason or "line_without_a_tag"
        else:
            tokens.append(fields[0])
            tags.append(fields[-1])
    yield from sentence()

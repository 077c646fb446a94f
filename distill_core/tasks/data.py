"""Labelled rows -> token sequences with targets, held in flat arrays; the batches have the corpus's shape."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from configs.errors import DataError
from data_prep.corpus import offsets_of, spread
from data_prep.tokenizer_base import Tokenizer
from distill_core.batch import IGNORED, Batch
from distill_core.models.attention import Kernel, layout
from distill_core.tasks.config import TaskConfig
from distill_core.tasks.rows import Row

Ints = NDArray[np.int64]
_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


@dataclass
class TaskData:
    """The sequences of a task's rows.

    ``ids``: int64 [N], all sequences one after another, with special tokens; ``offsets``: int64 [n + 1]; ``seconds``:
    int64 [n], the place in its sequence at which the second text begins (its length if there is none). ``targets``:
    classification int64 [n], regression float32 [n], tokens int64 [N] (-100 where there is no label), span int64
    [n, 2], first and last token of the answer in its sequence (0, 0 = [CLS]: not in this window). ``owner``: int64 [n],
    the row of each sequence; ``places``: int64 [N], for ``tokens`` the row's token, for ``span`` the character of
    the context at which the token begins, -1 elsewhere; ``ends``: int64 [N], for ``span`` the character before which
    the token ends, -1 elsewhere. ``own``: by the number of a teacher with another vocabulary: the same rows, one
    sequence each, as its tokenizer cuts them.
    """

    task: TaskConfig
    rows: list[Row]
    labels: list[str]
    ids: Ints
    offsets: Ints
    seconds: Ints
    targets: NDArray[Any]
    owner: Ints
    places: Ints
    ends: Ints
    own: dict[int, TaskData] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.owner)

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    def lengths(self, index: Ints) -> NDArray[np.int32]:
        """int32 [k]: tokens of the sequences ``index``."""
        return (self.offsets[index + 1] - self.offsets[index]).astype(np.int32)

    def batch(self, index: Ints, epochs: Ints, kernel: Kernel) -> Batch:
        """The sequences ``index`` in this order; ``epochs`` changes nothing here."""
        lengths = self.lengths(index).astype(np.int64)
        where = spread(self.offsets[index], lengths)
        positions = where - np.repeat(self.offsets[index], lengths)
        types = (positions >= np.repeat(self.seconds[index], lengths)).astype(np.int64)
        targets = self.targets[where] if self.task.kind == "tokens" else self.targets[index]
        return Batch(
            torch.from_numpy(self.ids[where]),
            torch.from_numpy(positions),
            layout(lengths.tolist(), kernel),
            types=torch.from_numpy(types) if types.any() else None,
            targets=torch.from_numpy(targets),
            task=self.task.kind,
            sequence_ids=index.astype(np.uint64),
            own={number: data.batch(index, epochs, kernel) for number, data in self.own.items()},
        )


@dataclass
class _Builder:
    """Sequences as they come."""

    ids: list[Ints] = field(default_factory=list)
    seconds: list[int] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)
    places: list[Ints] = field(default_factory=list)
    ends: list[Ints] = field(default_factory=list)

    def add(
        self, ids: Ints, second: int, target: Any, owner: int, places: Ints | None = None, ends: Ints | None = None
    ) -> None:
        nowhere = np.full(len(ids), -1, np.int64)
        self.ids.append(ids)
        self.seconds.append(second)
        self.targets.append(target)
        self.owner.append(owner)
        self.places.append(nowhere if places is None else places)
        self.ends.append(nowhere if ends is None else ends)


@dataclass(frozen=True)
class _Pieces:
    """A tokenizer with the special tokens around texts."""

    tokenizer: Tokenizer
    task: TaskConfig

    @property
    def cls(self) -> Ints:
        return np.array([self.tokenizer.special_ids["cls"]], np.int64)

    @property
    def sep(self) -> Ints:
        return np.array([self.tokenizer.special_ids["sep"]], np.int64)

    @property
    def middle(self) -> Ints:
        """Between two texts: [SEP]; twice for byte-level BPE (RoBERTa's </s></s>)."""
        return np.concatenate([self.sep, self.sep]) if self.tokenizer.kind == "bpe" else self.sep

    def second(self, first: Ints, whole: Ints) -> int:
        """Where the tokens of type 1 begin; RoBERTa's tokenizers make none."""
        return len(whole) if self.tokenizer.kind == "bpe" else len(first)

    def spaced(self, tokens: Sequence[str]) -> list[str]:
        """The tokens of a row as they would stand in its text: byte-level BPE writes the space into the next word."""
        if self.tokenizer.kind != "bpe":
            return list(tokens)
        return [token if place == 0 or _HAN.match(token) else f" {token}" for place, token in enumerate(tokens)]

    def encode(self, texts: Sequence[str]) -> list[tuple[Ints, Ints]]:
        """(ids, first characters) of each text, int64."""
        return [(ids.astype(np.int64), places.astype(np.int64)) for ids, places in self.tokenizer.encode(list(texts))]


def make_data(rows: list[Row], labels: list[str], task: TaskConfig, tokenizer: Tokenizer) -> TaskData:
    """Tokenise the rows of a task.

    Args:
        labels: in the order of the model's outputs; [] for regression and span.

    Raises:
        DataError: a label is not among ``labels``.
    """
    out = _Builder()
    _ENCODERS[task.kind](rows, labels, _Pieces(tokenizer, task), out)
    flat = np.concatenate if task.kind == "tokens" else np.array
    targets = flat(out.targets) if out.targets else np.zeros(0)
    return TaskData(
        task=task,
        rows=rows,
        labels=labels,
        ids=np.concatenate(out.ids),
        offsets=offsets_of(np.array([len(ids) for ids in out.ids], np.int64)),
        seconds=np.array(out.seconds, np.int64),
        targets=targets.astype(np.float32 if task.kind == "regression" else np.int64),
        owner=np.array(out.owner, np.int64),
        places=np.concatenate(out.places),
        ends=np.concatenate(out.ends),
    )


def _label(name: str | None, labels: dict[str, int], row: Row) -> int:
    if name not in labels:
        raise DataError(f"Row {row.id}: the label {name!r} is not one of the task's: {', '.join(labels)}.")
    return labels[name]


def _sequences(rows: list[Row], labels: list[str], pieces: _Pieces, out: _Builder) -> None:
    """Classification and regression: [CLS] a [SEP] or [CLS] a [SEP] b [SEP], the longer text cut first."""
    numbers = {name: i for i, name in enumerate(labels)}
    firsts = pieces.encode([row.text_a for row in rows])
    others = iter(pieces.encode([row.text_b for row in rows if row.text_b is not None]))
    for number, (row, (a, _)) in enumerate(zip(rows, firsts, strict=True)):
        regression = pieces.task.kind == "regression"
        target = float(row.label or 0) if regression else _label(str(row.label), numbers, row)
        if row.text_b is None:
            ids = np.concatenate([pieces.cls, a[: pieces.task.max_length - 2], pieces.sep])
            out.add(ids, len(ids), target, number)
            continue
        b, _ = next(others)
        room = pieces.task.max_length - 2 - len(pieces.middle)
        left = max(room - len(b), (room + 1) // 2)
        a = a[:left]
        b = b[: room - len(a)]
        first = np.concatenate([pieces.cls, a, pieces.middle])
        ids = np.concatenate([first, b, pieces.sep])
        out.add(ids, pieces.second(first, ids), target, number)


def _tokens(rows: list[Row], labels: list[str], pieces: _Pieces, out: _Builder) -> None:
    """Token classification: a label on the first piece of each token; long rows go on in further sequences."""
    numbers = {name: i for i, name in enumerate(labels)}
    room = pieces.task.max_length - 2
    encoded = iter(pieces.encode([token for row in rows for token in pieces.spaced(row.tokens or ())]))
    cls, sep, unknown = (pieces.tokenizer.special_ids[part] for part in ("cls", "sep", "unk"))
    for number, row in enumerate(rows):
        ids, targets, places = [cls], [IGNORED], [-1]

        def flush() -> None:
            whole = np.array([*ids, sep])  # noqa: B023
            target, marks = np.array([*targets, IGNORED]), np.array([*places, -1])  # noqa: B023
            out.add(whole, len(whole), target, number, marks)  # noqa: B023

        for place, tag in enumerate(row.tags or ()):
            found, _ = next(encoded)
            token = found[:room].tolist() or [unknown]  # a token of blanks has no pieces, but has a tag
            if len(ids) - 1 + len(token) > room:
                flush()
                ids, targets, places = [cls], [IGNORED], [-1]
            rest = len(token) - 1
            ids += token
            targets += [_label(tag, numbers, row)] + [IGNORED] * rest
            places += [place] + [-1] * rest
        flush()


def _spans(rows: list[Row], labels: list[str], pieces: _Pieces, out: _Builder) -> None:
    """Span extraction: [CLS] question [SEP] window of the context [SEP], windows overlapping by ``stride``."""
    task = pieces.task
    questions = pieces.encode([row.text_a for row in rows])
    contexts = pieces.encode([row.text_b or "" for row in rows])
    for number, (row, (question, _), (context, starts)) in enumerate(zip(rows, questions, contexts, strict=True)):
        first = np.concatenate([pieces.cls, question[: task.max_length // 2 - 2], pieces.middle])
        room = task.max_length - len(first) - 1
        overlap = min(task.overlap, room // 2)  # a long question leaves little: the windows must still move on
        ends, answer = _ends(starts, len(row.text_b or "")), _answer(row, starts)
        before, after = np.full(len(first), -1), np.array([-1])
        for at in range(0, max(1, len(context) - overlap), room - overlap):
            here = slice(at, at + room)
            ids = np.concatenate([first, context[here], pieces.sep])
            target = (0, 0)
            if answer is not None and at <= answer[0] and answer[1] < at + room:
                target = (answer[0] - at + len(first), answer[1] - at + len(first))
            marks = [np.concatenate([before, characters[here], after]) for characters in (starts, ends)]
            out.add(ids, pieces.second(first, ids), target, number, *marks)


def _ends(starts: Ints, length: int) -> Ints:
    """int64 [n]: the character before which each token ends: where the next character's first token begins."""
    return np.append(starts, length)[np.searchsorted(starts, starts, "right")]


def _answer(row: Row, starts: Ints) -> tuple[int, int] | None:
    """First and last token of a row's first answer; None if it has none, or the context has no tokens."""
    if not row.answers or not len(starts):
        return None
    text, begin = row.answers[0]
    begin += len(text) - len(text.lstrip())  # blanks have no tokens
    covering = max(0, int(np.searchsorted(starts, begin, "right")) - 1)
    first = int(np.searchsorted(starts, starts[covering], "left"))  # a character's first piece
    return first, max(first, int(np.searchsorted(starts, begin + len(text.strip()), "left")) - 1)


_ENCODERS: dict[str, Callable[[list[Row], list[str], _Pieces, _Builder], None]] = {
    "classification": _sequences,
    "regression": _sequences,
    "tokens": _tokens,
    "span": _spans,
}

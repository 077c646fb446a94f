"""The rows of a stage's task, read and tokenised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from configs.errors import DataError
from data_prep.tokenizer_base import Tokenizer
from distill_core.tasks.config import TaskConfig
from distill_core.tasks.data import TaskData, make_data
from distill_core.tasks.metrics import marks_entities
from distill_core.tasks.rows import Row, RowCounts, check_labels, label_names, read_rows


@dataclass(frozen=True)
class Task:
    """``labels``: in the order of the model's outputs; ``skipped``: sentences on rows that could not be used."""

    train: TaskData
    dev: TaskData
    labels: list[str]
    skipped: list[str]


def has_labels(task: TaskConfig) -> bool:
    return task.kind in ("classification", "tokens")


def read_labels(task: TaskConfig) -> list[str]:
    """The label names of a task in the order of the outputs; [] for regression and span."""
    if not has_labels(task):
        return []
    return task.labels or labels_of(read_rows(task.train, task.kind, RowCounts(), task.columns), task)


def labels_of(rows: list[Row], task: TaskConfig) -> list[str]:
    """The label names of a task with the training rows ``rows``.

    Raises:
        DataError: there is nothing to tell apart.
    """
    names = task.labels or label_names(rows)
    if len(names) < 2:
        raise DataError(f"All rows of {task.train} have the label {names[0]!r}; there is nothing to learn from them.")
    return names


def check_task_files(task: TaskConfig, who: str) -> None:
    """Read both files of a task once, before long work starts.

    Raises:
        DataError: a file cannot be read, holds no usable row, or has labels that the task has not.
    """
    try:
        train, dev = (read_rows(path, task.kind, RowCounts(), task.columns) for path in (task.train, task.dev))
        if has_labels(task):
            labels = labels_of(train, task)
            check_given(train, task)
            check_labels(dev, labels, task.dev)
            check_tags(labels, task)
    except DataError as error:
        raise DataError(f"{who}: {error}") from None


def check_tags(labels: list[str], task: TaskConfig) -> None:
    """Raise :class:`DataError` when entities are to be counted among tags that mark none."""
    if task.kind == "tokens" and task.main_metric != "token_accuracy" and not marks_entities(labels):
        raise DataError(
            f"The tags of {task.train} ({', '.join(labels[:5])} ...) are not of the form B-X, I-X, O, so that there "
            f"are no entities for the metric {task.main_metric}; set `metric: token_accuracy`, or correct the tags."
        )


def check_given(rows: list[Row], task: TaskConfig) -> None:
    """Raise :class:`DataError` when ``labels`` of the run file lack one of the training rows."""
    strange = sorted(set(label_names(rows)) - set(task.labels or label_names(rows)))
    if strange:
        raise DataError(
            f"{task.train} has the label{'s' if len(strange) > 1 else ''} {', '.join(strange[:5])}, but the task's "
            f"`labels` are {', '.join(task.labels or [])}. Add to `labels`, or correct the rows."
        )


def read_task(task: TaskConfig, rows: Path | None, tokenizer: Tokenizer) -> Task:
    """Train (from ``rows``, an augment stage's file, if given) and dev sequences of a task.

    Raises:
        DataError: a file cannot be read, holds no usable row, or dev has a label that train has not.
    """
    counts = RowCounts()
    own = read_rows(task.train, task.kind, counts, task.columns)
    train_rows = own if rows is None else read_rows(rows, task.kind, counts)
    dev_rows = read_rows(task.dev, task.kind, counts, task.columns)
    labels = labels_of(own, task) if has_labels(task) else []
    if labels:
        check_given(own, task)
        check_labels(dev_rows, labels, task.dev)
    train, dev = (make_data(rows, labels, task, tokenizer) for rows in (train_rows, dev_rows))
    return Task(
        train, dev, labels, [*(f"{name} {n}" for name, n in counts.items() if name != "rows"), *counts.messages]
    )

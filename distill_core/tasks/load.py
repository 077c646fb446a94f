"""The rows of a stage's task, read and tokenised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_prep.tokenizer_base import Tokenizer
from distill_core.tasks.config import TaskConfig
from distill_core.tasks.data import TaskData, make_data
from distill_core.tasks.rows import RowCounts, check_labels, label_names, read_rows


@dataclass(frozen=True)
class Task:
    """``labels``: in the order of the model's outputs; ``skipped``: sentences on rows that could not be used."""

    train: TaskData
    dev: TaskData
    labels: list[str]
    skipped: list[str]


def read_labels(task: TaskConfig) -> list[str]:
    """The label names of a task in the order of the outputs; [] for regression and span."""
    if task.kind in ("regression", "span"):
        return []
    return task.labels or label_names(read_rows(Path(task.train), task.kind, RowCounts(), task.columns))


def read_task(task: TaskConfig, rows: Path | None, tokenizer: Tokenizer) -> Task:
    """Train (from ``rows``, an augment stage's file, if given) and dev sequences of a task.

    Raises:
        DataError: a file cannot be read, holds no usable row, or dev has a label that train has not.
    """
    counts = RowCounts()
    own = read_rows(Path(task.train), task.kind, counts, task.columns)
    train_rows = own if rows is None else read_rows(rows, task.kind, counts)
    dev_rows = read_rows(Path(task.dev), task.kind, counts, task.columns)
    labels = [] if task.kind in ("regression", "span") else task.labels or label_names(own)
    if labels:
        check_labels(dev_rows, labels, task.dev)
    train, dev = (make_data(rows, labels, task, tokenizer) for rows in (train_rows, dev_rows))
    return Task(
        train, dev, labels, [*(f"{name} {n}" for name, n in counts.items() if name != "rows"), *counts.messages]
    )

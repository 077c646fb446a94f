"""A task: where its labelled rows are and how they become sequences."""

from __future__ import annotations

from pydantic import Field, model_validator

from configs.loader import Config, runtime
from distill_core.tasks.metrics import METRICS
from distill_core.tasks.rows import Columns, TaskKind


class TaskConfig(Config):
    """Labelled data: ``train`` and ``dev`` files of one kind."""

    kind: TaskKind
    """``classification`` (of a text or a pair), ``regression``, ``tokens`` (a tag for each token), ``span``
    (an answer inside a text)."""
    train: str = runtime()
    """A file; what it holds is part of a run's identity, where it lies is not."""
    dev: str = runtime()
    columns: Columns = Columns()
    labels: list[str] | None = None
    """Their order in the model; default: sorted, as found in ``train``."""
    max_length: int = Field(default=128, ge=8)
    """Tokens of a sequence; longer texts are cut (``tokens``, ``span``: into several sequences)."""
    stride: int | None = Field(default=None, ge=1)
    """``span``: tokens by which the windows over a long text overlap; default: a quarter of ``max_length``."""
    metric: str | None = None
    """By which `select: best` chooses, if no early_stopping names another; default: accuracy, pearson, f1 (tokens) or
    f1 (span)."""

    @model_validator(mode="after")
    def _known_metric(self) -> TaskConfig:
        if self.metric is not None and self.metric not in METRICS[self.kind]:
            raise ValueError(f"metric {self.metric!r} is not one of {', '.join(METRICS[self.kind])} ({self.kind})")
        if self.labels is not None and self.kind in ("regression", "span"):
            raise ValueError(f"`labels` has no meaning for a task of kind {self.kind}")
        if self.labels is not None and (len(self.labels) < 2 or len(set(self.labels)) < len(self.labels)):
            raise ValueError(f"`labels` must be at least two different names, not {', '.join(self.labels) or 'none'}")
        if self.stride is not None and self.kind != "span":
            raise ValueError(f"`stride` has no meaning for a task of kind {self.kind}")
        if self.overlap >= self.max_length // 2:
            raise ValueError(f"stride {self.overlap} must be less than half of max_length {self.max_length}")
        return self

    @property
    def overlap(self) -> int:
        return self.max_length // 4 if self.stride is None else self.stride

    @property
    def main_metric(self) -> str:
        return self.metric or METRICS[self.kind][0]

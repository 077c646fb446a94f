"""What a stage shows while it runs: TensorBoard, metrics.jsonl, log lines, progress for the launcher.

The only file that knows TensorBoard. Everything here happens on rank 0; other ranks hold a silent monitor.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import output_error
from configs.loader import to_yaml
from data_prep.corpus import Corpus
from data_prep.inspect import samples as masked_samples
from distill_core.clock import PARTS
from distill_core.flops import Flops

if TYPE_CHECKING:
    from distill_core.config import RunConfig

LINE_SECONDS = 10.0
SHARES = {"data/padding_share": "padding", "data/wait_share": "data wait"}


class Monitor:
    """Scalars, texts and progress of one stage."""

    def __init__(self, stage_folder: Path, logs: Path, title: dict[str, Any], first_step: int, steps: int) -> None:
        """``title``: stage, stage_index, stages; ``first_step``: where a resumed stage goes on."""
        from torch.utils.tensorboard import SummaryWriter

        self.steps = steps
        self.title = title
        self._progress = logs / "progress.json"
        self._metrics = stage_folder / "metrics.jsonl"
        self._last_line = self._last_progress = 0.0
        self._first_step = first_step
        self._began = time.monotonic()
        try:
            stage_folder.mkdir(parents=True, exist_ok=True)
            _forget_after(self._metrics, first_step)
            # Steps after the checkpoint happen again: TensorBoard hides the first telling of them.
            purge = first_step + 1 if first_step else None
            self._writer = SummaryWriter(str(stage_folder / "tensorboard"), purge_step=purge)
        except OSError as error:
            raise output_error(stage_folder, error) from error

    def layout(self, terms: list[str], with_teacher: bool) -> None:
        """The custom scalar page: the terms together, weighted terms together, students against teachers."""
        both = ["student", "teacher"] if with_teacher else ["student"]
        evaluation = {kind: ["Multiline", [f"eval/{who}_{kind}" for who in both]] for kind in ("loss", "accuracy")}
        pages = {
            "objective": {
                "terms": ["Multiline", [f"loss/{name}" for name in [*terms, "total"]]],
                "weighted terms": ["Multiline", [f"weighted/{name}" for name in terms]],
            },
            "held-out": evaluation,
            "speed": {
                "tokens per second": ["Multiline", ["speed/tokens_per_second"]],
                "step and data wait": ["Multiline", ["speed/step_seconds", "data/wait_seconds"]],
                "model FLOP utilization": ["Multiline", ["speed/flops_utilization"]],
                "share of the step": ["Multiline", [f"time/{part}" for part in PARTS]],
                "padding and data wait": ["Multiline", ["data/padding_share", "data/wait_share"]],
            },
        }
        self._writer.add_custom_scalars(pages)

    def text(self, tag: str, markdown: str) -> None:
        self._writer.add_text(tag, markdown, self._first_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One row: to TensorBoard and to metrics.jsonl. ``step`` counts finished optimiser steps."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        row = {"step": step, "time": round(time.time(), 3), **values}
        try:
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise output_error(self._metrics, error) from error

    def useful_flops(self, parts: Mapping[str, Flops], peak: float | None) -> None:
        """Say what counts as useful, by part and by what it is counted for, and what it is measured against."""
        rows = [
            f"| {part} | {count} | {each:.4g} |"
            for part, flops in parts.items()
            for count, each in flops.each.items()
            if each
        ]
        table = ["| part | for each of the | useful FLOPs |", "|---|---|---|", *rows]
        against = "" if peak is None else f"\n\nPeak of all ranks: {peak / 1e12:.4g} TFLOP/s"
        self.text("useful FLOPs", "\n".join(table) + against)

    def progress(self, step: int, row: Mapping[str, float], live: bool = True) -> None:
        """A log line now and then, and (``live``) the launcher's progress file at most once a second.

        ``row``: a summary of the meter.
        """
        loss, tokens_per_second = row["loss/total"], row["speed/tokens_per_second"]
        utilization = row.get("speed/flops_utilization")
        now = time.monotonic()
        rate = (step - self._first_step) / max(now - self._began, 1e-9)
        left = (self.steps - step) / rate if rate else 0.0
        last = step == self.steps
        if live and (last or now - self._last_progress >= 1.0):
            self._last_progress = now
            facts = {"step": step, "steps": self.steps, "loss": loss}
            facts |= {"tokens_per_second": tokens_per_second, "seconds_left": left}
            facts |= {} if utilization is None else {"utilization": utilization}
            aside = self._progress.with_suffix(".tmp")
            try:
                aside.write_text(json.dumps({**self.title, **facts}), encoding="utf-8")
                os.replace(aside, self._progress)
            except OSError as error:
                raise output_error(self._progress, error) from error
        if last or now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            words = [f"step {step}/{self.steps}", f"loss {loss:.4f}", f"{tokens_per_second:,.0f} tokens/s"]
            self.line("  ".join([*words, *_where_time_goes(row), f"{_clock(left)} left"]))

    def line(self, text: str) -> None:
        """A plain line in the log (rank-0.log; the launcher shows it too)."""
        print(
            f"[{self.title['stage_index'] + 1}/{self.title['stages']} {self.title['stage']}] {text}",
            flush=True,
        )

    def close(self) -> None:
        self._writer.close()


def _where_time_goes(row: Mapping[str, float]) -> list[str]:
    """Utilization, padding, waiting for data, and the other parts of a step that take a hundredth of it."""
    words = []
    if "speed/flops_utilization" in row:
        reached = row["speed/useful_tflops"]
        words.append(f"{row['speed/flops_utilization']:.0%} of the peak ({reached:.3g} useful TFLOP/s)")
    words += [f"{row[key]:.0%} {name}" for key, name in SHARES.items() if key in row]
    shown = [part for part in PARTS if part != "data" and row.get(f"time/{part}", 0.0) >= 0.01]
    parts = [f"{part} {row[f'time/{part}']:.0%}" for part in shown]
    return [*words, *([", ".join(parts)] if parts else [])]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _forget_after(metrics: Path, step: int) -> None:
    """Drop rows of steps that will be taken again, and a line torn by a crash."""
    if not metrics.is_file():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    aside = metrics.with_suffix(".tmp")
    aside.write_text("".join(kept), encoding="utf-8")
    os.replace(aside, metrics)


def start_monitor(
    config: RunConfig, index: int, corpus: Corpus, terms: list[str], first_step: int, steps: int
) -> Monitor:
    stage = config.stages[index]
    title = {"stage": stage.name, "stage_index": index, "stages": len(config.stages)}
    monitor = Monitor(config.stage_folder(index), config.folder / "logs", title, first_step, steps)
    monitor.layout(terms, with_teacher=stage.kind == "distill")
    monitor.text("config", f"```yaml\n{to_yaml(config)}\n```")
    if corpus.has_text:
        shown = "\n\n".join(f"    {line}" for line in masked_samples(corpus, "train", 5, 0))
        monitor.text("masked samples", shown)
    return monitor

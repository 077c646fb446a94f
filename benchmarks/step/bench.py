"""One setting and its variants: who does the step, built on the same corpus, teacher and batches."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from benchmarks.step.distilbert_peer import distilbert_loop
from benchmarks.step.ours import Bare, alone, build_parts, loader_of, real_loop, run_config
from benchmarks.step.plain import bert, plain_loop, saved_teacher
from benchmarks.step.settings import Setting
from benchmarks.step.text import Padded, padded
from benchmarks.step.textbrewer_peer import textbrewer_loop
from benchmarks.step.tinybert_peer import tinybert_loop
from data_prep.corpus import Corpus
from distill_core.batch import Batch
from distill_core.clock import PARTS
from distill_core.engine import Rank

OPTIONS: dict[str, dict[str, Any]] = {
    "compile": {"compile": "default"},
    "fp8-teacher": {"teacher_precision": "fp8"},
    "int8-teacher": {"teacher_precision": "int8"},
}
"""Of a variant of ours: what it changes in ``training``."""


class Unavailable(Exception):
    """A variant that cannot be run here, and why."""


class Runner(Protocol):
    def trained(self) -> dict[str, torch.nn.Parameter]: ...

    def step(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class Ready:
    """A step on ready batches as a runner."""

    do: Callable[[list[Batch]], None]
    batches: list[list[Batch]]
    done: int = 0

    def trained(self) -> dict[str, torch.nn.Parameter]:
        return {}

    def step(self) -> None:
        self.do(self.batches[self.done % len(self.batches)])
        self.done += 1

    def close(self) -> None:
        return None


@dataclass
class Bench:
    """A setting on this machine.

    ``steps``: how many different batches there are; step i of every variant is the same text. ``checkouts``: folders
    of peers' code by name (``tinybert``, ``distilbert``). ``training``: over the run's own ``training`` block.
    """

    setting: Setting
    corpus: Corpus
    folder: Path
    rank: Rank
    checkouts: dict[str, Path] = field(default_factory=dict)
    steps: int = 5
    training: dict[str, Any] = field(default_factory=dict)
    _metrics: dict[str, Path] = field(default_factory=dict)

    @property
    def vocabulary(self) -> int:
        return self.corpus.vocab_size

    @functools.cached_property
    def teacher(self) -> Path:
        return saved_teacher(self.setting.teacher, self.vocabulary, self.folder)

    @functools.cached_property
    def their_teacher(self) -> Any:
        """In fp32, shared by the peers that take Hugging Face's class."""
        from transformers import BertForMaskedLM

        loaded = BertForMaskedLM.from_pretrained(self.teacher, output_hidden_states=True)
        return loaded.to(self.rank.device).eval()

    def shared_bytes(self, variant: str) -> float:
        """Of the peers' teacher, for a variant that uses it; it is loaded then."""
        if variant.split()[0] not in ("hf", "textbrewer", "distilbert"):
            return 0.0
        return float(sum(p.numel() * p.element_size() for p in self.their_teacher.parameters()))

    def their_student(self) -> Any:
        return bert(self.setting.student_fields, self.vocabulary, seed=2).to(self.rank.device)

    @functools.cached_property
    def batches(self) -> list[list[Batch]]:
        """The micro-batches of each step."""
        loader = loader_of(self.config("bf16"), self.corpus, self.rank)
        found = [loader.step(number).batches for number in range(self.steps)]
        if any(len(step) != 1 for step in found):
            raise ValueError(f"{self.setting.name}: peers take one micro-batch a step, and here are several")
        return found

    @functools.cached_property
    def padded(self) -> list[Padded]:
        pad = self.corpus.special_ids["pad"]
        return [padded(step[0], self.setting.length, pad).to(self.rank.device) for step in self.batches]

    def tokens(self, step: int) -> int:
        """Real ones."""
        return sum(batch.n_tokens for batch in self.batches[step % self.steps])

    @property
    def fill(self) -> float:
        """Real tokens of a padded batch's."""
        real = sum(self.tokens(step) for step in range(self.steps))
        return real / (self.steps * self.setting.sequences * self.setting.length)

    def config(self, precision: Any, **training: Any) -> Any:
        given = {**self.training, **training}
        return run_config(self.setting, self.corpus, self.teacher, self.folder, precision, **given)

    def runner(self, variant: str) -> Runner:
        """``WHO PRECISION [OPTION]``: ours, bare, hf, textbrewer, distilbert, tinybert; bf16 or fp32; see ``OPTIONS``.

        Raises:
            Unavailable: a package or a checkout is missing.
        """
        who, precision = variant.split()[:2]
        try:
            return self._ours(variant) if who == "ours" else self._runner(who, precision)
        except ImportError as error:
            raise Unavailable(f"{variant}: {error.name or error} is not installed") from error

    def _ours(self, variant: str) -> Runner:
        if alone.engine is not None:
            raise ImportError(alone.engine, name="deepspeed")
        _, precision, *options = variant.split()
        config = self.config(precision, **{key: value for name in options for key, value in OPTIONS[name].items()})
        self._metrics[variant] = config.stage_folder(0) / "metrics.jsonl"
        return real_loop(build_parts(config, self.corpus, self.rank))

    def parts(self, variant: str) -> dict[str, float]:
        """What the real loop logged last of its parts, as shares of the step without waiting for data (or its turn).

        Empty for the others, and where only one line was logged: the unmeasured step is in it.
        """
        path = self._metrics.get(variant)
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
        if len(lines) < 2:
            return {}
        row = json.loads(lines[-1])
        parts = {part: float(row.get(f"time/{part}", 0.0)) for part in PARTS if part != "data"}
        whole = sum(parts.values())
        return {part: value / whole for part, value in parts.items()} if whole else {}

    def _runner(self, who: str, precision: Any) -> Runner:
        setting, folder = self.setting, self.folder
        if who == "bare":
            return Ready(Bare(self.config(precision), self.corpus, self.rank).step, self.batches)
        bf16 = precision == "bf16"
        if who == "tinybert":
            where = self._checkout(who)
            return tinybert_loop(setting, self.teacher, self.vocabulary, self.padded, bf16, folder, where)
        given = (setting, self.their_teacher, self.their_student(), self.padded, bf16)
        if who == "hf":
            return plain_loop(*given)
        if who == "textbrewer":
            return textbrewer_loop(*given, folder)
        return distilbert_loop(*given, folder, self._checkout(who))

    def _checkout(self, peer: str) -> Path:
        if peer not in self.checkouts:
            raise Unavailable(f"{peer}: give a checkout of its code with --{peer} PATH")
        return self.checkouts[peer]


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds of this process and its children on a CPU; of the wall, with everything done, on a GPU."""
    if device.type == "cuda":

        def synchronised() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return synchronised
    process = psutil.Process()

    def seconds() -> float:
        children = (child.cpu_times() for child in process.children(recursive=True))
        return time.process_time() + sum(times.user + times.system for times in children)

    return seconds

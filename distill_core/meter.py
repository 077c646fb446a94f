"""Running means of the loss terms, and how fast and how well used the machine is, between two log lines."""

from __future__ import annotations

import re
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from distill_core.batch import Batch, Count
from distill_core.clock import PARTS, Clock, Part
from distill_core.engine import Rank
from distill_core.flops import NO_FLOPS, Flops
from distill_core.objective import LossTerms


@dataclass
class Meter:
    """Running means between two log lines; one small reduction at each line, none in between.

    Nothing is read from the device before :meth:`summary`.
    """

    rank: Rank
    clock: Clock
    peak: float | None = None
    """FLOP/s that all ranks together could reach."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """By name, unweighted under ``loss/`` and weighted under ``weighted/``."""
    steps: int = 0
    tokens: float | Tensor = 0.0
    """Of all ranks."""
    flops: float | Tensor = 0.0
    """Useful ones, of all ranks."""
    rows: int = 0
    """Tokens of this rank."""
    slots: int = 0
    """Places that attention computes for them: more where it pads."""
    wait: float = 0.0
    before: dict[Part, float] = field(default_factory=dict)
    """The clock at the last line."""

    def add(self, losses: LossTerms) -> None:
        for name, (share, weight) in losses.parts.items():
            self._add(f"loss/{name}", share.detach())
            self._add(f"weighted/{name}", weight * share.detach())

    def _add(self, name: str, share: Tensor) -> None:
        self.sums[name] = self.sums[name] + share if name in self.sums else share

    def end_step(
        self, counts: Mapping[Count, Tensor], wait: float, batches: Sequence[Batch] = (), flops: Flops = NO_FLOPS
    ) -> None:
        """Count a step.

        Args:
            counts: of all ranks.
            wait: seconds that this rank has waited for its batches.
            batches: this rank's.
            flops: useful ones of the step, of everything that is trained in it.
        """
        self.steps += 1
        self.wait += wait
        self.tokens = self.tokens + counts["tokens"].double()
        for name, each in flops.each.items():
            self.flops = self.flops + each * counts[name].double()
        self.rows += sum(batch.n_tokens for batch in batches)
        self.slots += sum(slots(batch) for batch in batches)

    def summary(self) -> dict[str, float]:
        """Means over the steps since the last call. Collective."""
        names = list(self.sums)
        mine = [self.sums[name].double() for name in names]
        mine += [mine[0].new_tensor(float(value)) for value in (self.rows, self.slots)]
        summed = self.rank.sum(torch.stack(mine)).tolist()
        rows, slots = summed[-2:]
        row = {name: total / self.steps for name, total in zip(names, summed, strict=False)}
        row["loss/total"] = sum(mean for name, mean in row.items() if name.startswith("weighted/"))
        row |= self._speed()
        row["data/padding_share"] = 1 - rows / slots if slots else 0.0
        row["memory/gigabytes"] = memory_gigabytes(self.rank)
        self.sums, self.steps, self.tokens, self.flops = {}, 0, 0.0, 0.0
        self.rows, self.slots, self.wait = 0, 0, 0.0
        return row

    def _speed(self) -> dict[str, float]:
        """Tokens and useful FLOPs a second, and the shares of the time by part (of this rank)."""
        now = self.clock.seconds()
        parts = {part: now[part] - self.before.get(part, 0.0) for part in PARTS}
        self.before = now
        seconds = max(sum(parts.values()), 1e-9)
        flops = float(self.flops) / seconds
        row = {
            "speed/tokens_per_second": float(self.tokens) / seconds,
            "speed/step_seconds": seconds / self.steps,
            "speed/useful_tflops": flops / 1e12,
            "data/wait_seconds": self.wait / self.steps,
            "data/wait_share": self.wait / seconds,
        }
        if self.peak:
            row["speed/flops_utilization"] = flops / self.peak
        return row | {f"time/{part}": value / seconds for part, value in parts.items()}


def slots(batch: Batch) -> int:
    """Places that attention computes for the tokens of ``batch``: their number, but where any model's pads."""
    mask = batch.layout.key_mask
    return batch.n_tokens if mask is None else mask.shape[0] * mask.shape[-1]


def memory_gigabytes(rank: Rank) -> float:
    """Peak memory of this rank: device memory on a GPU, resident memory of the process otherwise."""
    if rank.device.type == "cuda":
        return torch.cuda.max_memory_allocated(rank.device) / 1e9
    return resident_gigabytes("VmHWM")


def resident_gigabytes(which: Literal["VmRSS", "VmHWM"]) -> float:
    """Resident memory of this process, now or at its peak.

    From Linux's /proc: ``getrusage`` would also count the peak of the launcher, out of which this process was started.
    Elsewhere, the peak by ``getrusage``.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        found = re.search(rf"^{which}:\s*(\d+) kB$", status, re.MULTILINE)
        assert found is not None
        return int(found.group(1)) * 1024 / 1e9
    except (OSError, AssertionError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

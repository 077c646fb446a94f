"""Running means of the loss terms and of speed, between two log lines."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from distill_core.batch import Count
from distill_core.engine import Rank
from distill_core.objective import LossTerms


@dataclass
class Meter:
    """Running means between two log lines; one small reduction at each line, none in between."""

    rank: Rank
    sums: dict[str, Tensor] = field(default_factory=dict)
    """By name, unweighted under ``loss/`` and weighted under ``weighted/``."""
    steps: int = 0
    tokens: float = 0.0
    wait: float = 0.0
    seconds: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def add(self, losses: LossTerms) -> None:
        for name, (share, weight) in losses.parts.items():
            self._add(f"loss/{name}", share.detach())
            self._add(f"weighted/{name}", weight * share.detach())

    def _add(self, name: str, share: Tensor) -> None:
        self.sums[name] = self.sums[name] + share if name in self.sums else share

    def end_step(self, counts: dict[Count, Tensor], wait: float) -> None:
        now = time.perf_counter()
        self.seconds += now - self.began
        self.began = now
        self.steps += 1
        self.wait += wait
        self.tokens += float(counts["tokens"])

    def restart_clock(self) -> None:
        """Do not count an evaluation or a checkpoint as a step's time."""
        self.began = time.perf_counter()

    def summary(self) -> dict[str, float]:
        """Means over the steps since the last call. Collective."""
        names = list(self.sums)
        summed = self.rank.sum(torch.stack([self.sums[name].double() for name in names])) / self.steps
        row = dict(zip(names, summed.tolist(), strict=True))
        row["loss/total"] = sum(mean for name, mean in row.items() if name.startswith("weighted/"))
        row["speed/tokens_per_second"] = self.tokens / self.seconds
        row["speed/step_seconds"] = self.seconds / self.steps
        row["data/wait_seconds"] = self.wait / self.steps
        row["memory/gigabytes"] = memory_gigabytes(self.rank)
        self.sums, self.steps, self.tokens, self.wait, self.seconds = {}, 0, 0.0, 0.0, 0.0
        return row


def memory_gigabytes(rank: Rank) -> float:
    """Peak memory of this rank: device memory on a GPU, resident memory of the process otherwise."""
    if rank.device.type == "cuda":
        return torch.cuda.max_memory_allocated(rank.device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

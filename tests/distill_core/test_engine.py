"""What the host does and does not wait for, with stand-ins for a GPU's tensors and streams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distill_core.batch import Batch
from distill_core.engine import Engine, Rank
from distill_core.stage import global_counts

GPU = torch.device("cuda", 0)


def test_counts_go_to_a_gpu_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy out of ordinary memory waits until the device has done all that was asked of it before."""
    done: list[Any] = []

    def pin(values: Tensor) -> Tensor:
        done.append("pinned")
        return values

    def to(values: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        done.append((device, non_blocking))
        return values

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    counts, _ = global_counts([Batch.of([[1, 2, 3]])], Rank(0, 0, 1, GPU))
    assert done == ["pinned", (GPU, True)]
    assert counts["tokens"].item() == 3


def test_counts_on_a_cpu() -> None:
    counts, vote = global_counts([Batch.of([[1, 2, 3], [4]]), Batch.of([[5]])], Rank(0, 0, 1, torch.device("cpu")))
    assert {name: count.item() for name, count in counts.items()} == {
        "tokens": 5,
        "masked": 1,  # counts that are divided by are at least 1
        "sampled": 1,
        "sequences": 3,
        "pairs": 11,
        "targets": 1,
    }
    assert not vote.passed()


class Watched:
    """A step's end that says in which order it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def settle(self) -> None:
        self.asked.append("settle")

    @property
    def skipped(self) -> Tensor:
        self.asked.append("skipped")
        return torch.tensor([3.0, 1.0])

    @property
    def norm(self) -> Tensor:
        self.asked.append("norm")
        return torch.tensor(2.0)


def test_what_a_step_left_on_its_own_stream_is_read_behind_it() -> None:
    engine: Any = Engine.__new__(Engine)
    engine._own = watched = Watched()
    assert engine.skipped() == (3, 1)
    assert engine.gradient_norm() == 2.0
    assert watched.asked == ["settle", "skipped", "settle", "norm"]

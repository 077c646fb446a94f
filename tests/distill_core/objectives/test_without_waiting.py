"""Losses on a GPU never ask for a size that only its tensors know, for which the host would have to wait.

Tensors without data stand in: torch refuses operations whose result's size depends on what is not there.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from distill_core.batch import Batch
from distill_core.objectives import tiles
from distill_core.objectives.soft_targets import row_temperatures
from distill_core.objectives.task import rows_of


def test_temperatures_by_row() -> None:
    with FakeTensorMode():
        weights = torch.rand(6)
        group = torch.zeros(6, dtype=torch.int64)
        assert row_temperatures(weights, group, 3, 8.0, 1.0).shape == (6,)
        with pytest.raises(Exception, match="bincount"):
            torch.bincount(group)  # what would have been refused


def test_labelled_tokens() -> None:
    batch = Batch.of([[1, 2, 3], [4, 5]])
    batch.targets, batch.task = torch.tensor([0, -100, 1, -100, 2]), "tokens"
    batch.labelled = batch.n_targets
    logits = torch.arange(10.0).view(5, 2)
    (rows,) = rows_of(logits, batch)
    assert torch.equal(rows, logits[[0, 2, 4]])
    mode = FakeTensorMode()
    with mode:
        batch.targets = torch.zeros(5, dtype=torch.int64)
        (rows,) = rows_of(torch.rand(5, 2), batch)
        assert rows.shape == (3, 2)


@pytest.mark.parametrize(("device", "expected"), [("cpu", [2, 1, 1]), ("cuda", [3, 1])])
def test_tiles_of_a_gpu_are_larger(device: str, expected: list[int]) -> None:
    where: Any = SimpleNamespace(lengths=(10, 9, 8, 2), sizes=SimpleNamespace(device=torch.device(device)))
    with patch.object(tiles, "ENTRIES", 200):
        cut = list(tiles.tiles(where, lambda length: length**2))
    assert [tile.sequences for tile in cut] == expected

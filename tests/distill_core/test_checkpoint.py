from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import CheckpointError, OutputError
from distill_core import checkpoint
from distill_core.engine import Rank
from distill_core.zero import FullState

RANK = Rank(0, 0, 1, torch.device("cpu"))
IDENTITY = {"seed": 1, "stage": {"name": "s", "steps": 3}}


class FakeEngine:
    """Gathers a state that depends on the step, as the real one does."""

    def full_state(self, optimizer_steps: int) -> FullState:
        generator = torch.Generator().manual_seed(optimizer_steps)
        weights = {"student.a": torch.randn(7, 3, generator=generator)}
        moments = {f"{m}/student.a": torch.randn(7, 3, generator=generator) for m in ("exp_avg", "exp_avg_sq")}
        return FullState(weights, moments, optimizer_steps)


def save(folder: Path, step: int, keep_last: int = 5) -> None:
    engine: Any = FakeEngine()
    checkpoint.save(folder, step, engine, IDENTITY, RANK, keep_last)


def assert_is(found: checkpoint.Checkpoint | None, step: int) -> None:
    assert found is not None
    assert found.step == step
    expected, state = FakeEngine().full_state(step), found.read()
    assert state.optimizer_steps == step
    assert state.weights.keys() == expected.weights.keys() and state.moments.keys() == expected.moments.keys()
    assert all(torch.equal(state.weights[k], expected.weights[k]) for k in expected.weights)
    assert all(torch.equal(state.moments[k], expected.moments[k]) for k in expected.moments)


def test_round_trip_and_newest(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none") == (None, [])
    save(tmp_path, 5)
    save(tmp_path, 10)
    found, passed = checkpoint.newest(tmp_path)
    assert_is(found, 10)
    assert passed == []
    assert found is not None and found.identity == IDENTITY


def test_keeps_the_last(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep_last=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    draw = random.Random(0)
    files = [p for p in sorted((tmp_path / "step-00000002").iterdir()) if p.name != "manifest.json"]
    for trial in range(60):
        path = files[trial % len(files)]
        good = path.read_bytes()
        bad = bytearray(good)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(bad))
        found, passed = checkpoint.newest(tmp_path)
        assert_is(found, 1)
        assert path.name in passed[0] and "step-00000002" in passed[0]
        path.write_bytes(good)
    assert_is(checkpoint.newest(tmp_path)[0], 2)


@pytest.mark.parametrize("harm", ["truncated", "missing file", "no manifest", "manifest of zeros"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, harm: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    newer = tmp_path / "step-00000002"
    if harm == "truncated":
        data = (newer / "moments.safetensors").read_bytes()
        (newer / "moments.safetensors").write_bytes(data[:-4])
    elif harm == "missing file":
        (newer / "weights.safetensors").unlink()
    elif harm == "no manifest":
        (newer / "manifest.json").unlink()
    else:
        (newer / "manifest.json").write_bytes(b"\0" * 100)
    found, passed = checkpoint.newest(tmp_path)
    assert_is(found, 1)
    assert len(passed) == 1


@pytest.mark.parametrize("call", ["replace", "open", "fsync"])
def test_a_failing_disk_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    save(tmp_path, 1)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OutputError, match="disk is full"):
            save(tmp_path, 2)
    found, passed = checkpoint.newest(tmp_path)
    assert_is(found, 1)
    assert passed == []
    save(tmp_path, 2)
    assert_is(checkpoint.newest(tmp_path)[0], 2)
    assert not list(tmp_path.glob(".tmp-*"))


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 3)
    save(tmp_path, 3)
    assert_is(checkpoint.newest(tmp_path)[0], 3)


def test_identity_shows_the_difference() -> None:
    checkpoint.check_identity(IDENTITY, dict(IDENTITY), "x")
    changed = {"seed": 2, "stage": {"name": "s", "steps": 3, "kind": "distill"}}
    with pytest.raises(CheckpointError) as error:
        checkpoint.check_identity(IDENTITY, changed, "The checkpoint X")
    assert "seed: 1 -> 2" in str(error.value)
    assert "stage.kind: None -> 'distill'" in str(error.value)

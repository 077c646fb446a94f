"""Bytes on the wire are counted rightly, and are the least there is without ZeRO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from benchmarks.scaling import SENT, Wire, least_bytes, traffic_rows
from benchmarks.step.plain import saved_teacher
from benchmarks.step.settings import Shape
from benchmarks.step.text import prepared
from tests import ranks

PROGRAM = Path(__file__).parent / "scaling_program.py"


@pytest.mark.ranks
def test_two_ranks_send_one_all_reduce_of_the_gradients(tmp_path: Path) -> None:
    corpus = prepared("lines-32", ["builtin:sample"], 600, tmp_path / "corpora", 0.2)
    saved_teacher(Shape(2, 24, 2, 48), corpus.vocab_size, tmp_path)
    ranks.start(PROGRAM, 2, str(tmp_path))
    found: list[Any] = [json.loads((tmp_path / f"found-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    at_once, in_parts, parted = found[0]
    assert at_once["micro_steps"] == 1 and in_parts["micro_steps"] >= 2
    slack = 1e3  # counts and loss terms
    for case in (at_once, in_parts):
        least = least_bytes(case["parameters"], 4, 2)
        assert least <= case["bytes"] <= 1.05 * least + slack
    assert parted["bytes"] >= least_bytes(parted["parameters"], 2, 2)
    rows = traffic_rows(2, found)
    assert [row[1] for row in rows] == ["fp32, ZeRO 0", "fp32, ZeRO 0", "bf16, ZeRO 1"]
    assert float(rows[0][4]) == pytest.approx(1.0, abs=0.06) and float(rows[0][5]) == pytest.approx(2.0, abs=0.12)


def test_what_a_ring_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    def collective(*_: Any, **__: Any) -> None:
        return None

    for name in ("all_reduce", "broadcast", "all_gather", "reduce_scatter_tensor"):
        monkeypatch.setattr(dist, name, collective)
    monkeypatch.setattr(dist, "all_gather_into_tensor", lambda *args, **_: dist.all_gather(args[0], args[1]))
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 4)
    for name in SENT:
        if hasattr(dist, name):
            monkeypatch.setattr(dist, name, getattr(dist, name))  # what install() replaces is put back at the end
    wire = Wire()
    wire.install()
    whole, part = torch.zeros(8), torch.zeros(2)
    dist.all_reduce(whole, group=None)
    assert wire.bytes == 2 * 3 / 4 * 32 == least_bytes(8, 4, 4)
    wire.clear()
    dist.reduce_scatter_tensor(part, whole)
    dist.all_gather([part] * 4, part)
    assert wire.bytes == 2 * 3 / 4 * 32 and wire.calls == {"reduce_scatter_tensor": 1, "all_gather": 1}
    wire.clear()
    dist.all_gather_into_tensor(whole, part)  # made of another collective, and counted once
    assert wire.bytes == 3 / 4 * 32 and wire.calls == {"all_gather_into_tensor": 1}
    wire.clear()
    dist.broadcast(whole, 0)
    assert wire.bytes == 3 / 4 * 32
    wire.clear()
    assert wire.bytes == 0 and not wire.calls

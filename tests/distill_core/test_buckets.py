"""Gradients that are sent beside the last backward pass: which, when, to whom, and to the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from data_prep.corpus import Corpus
from distill_core import buckets
from distill_core.buckets import Bucket, Buckets, buckets_of
from tests.ranks import start

PROGRAM = Path(__file__).with_name("bucket_program.py")


def test_buckets_cover_what_each_rank_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "SIZE", 6)
    sizes = {"embedding": 7, "bias": 2, "first": 4, "second": 3, "head": 5, "head bias": 1}
    parameters = {name: nn.Parameter(torch.zeros(size)) for name, size in sizes.items()}
    names = [["embedding", "first", "second", "head"], ["bias", "head bias"]]
    flats = [torch.arange(20.0), torch.arange(100.0, 104.0)]  # 19 and 3, filled up for two ranks
    optimizer = SimpleNamespace(
        bf16_groups=[[parameters[name] for name in group] for group in names], fp32_groups_gradients_flat=flats
    )
    found = buckets_of(optimizer, list(parameters.values()), 2)
    assert [bucket.places for bucket in found] == [(2, 3), (4, 5), (0, 1)]
    kept: dict[int, list[float]] = {0: [], 1: []}
    for bucket in found:
        for owner, piece in bucket.pieces:
            kept[owner] += piece.tolist()
    assert sorted(kept[0]) == [*range(10), 100, 101]
    assert sorted(kept[1]) == [*range(10, 19), 102]


def test_buckets_are_sent_when_full_and_in_their_order() -> None:
    first, second, third = (Bucket(places, ()) for places in ((4, 5), (2, 3), (0, 1)))
    sent: list[Bucket] = []
    some = Buckets([first, second, third], sent.append)
    for place in range(6):
        some.arrived(place)  # an earlier micro-step
    assert sent == []
    some.begin()
    for place in (5, 2, 3):
        some.arrived(place)
    assert sent == []  # the second is full, and waits for the first
    some.arrived(4)
    assert sent == [first, second]
    some.arrived(1)  # the gradient of 0 never comes
    some.finish()
    assert sent == [first, second, third]
    some.finish()
    assert len(sent) == 3


@pytest.mark.ranks
@pytest.mark.timeout(600)
def test_two_ranks_that_send_early_end_in_the_same_bits(tiny_corpus: Corpus, tmp_path: Path) -> None:
    start(PROGRAM, 2, str(tiny_corpus.folder), str(tmp_path), timeout=300.0)
    results = json.loads((tmp_path / "results.json").read_text())
    early, late = results["early"], results["late"]
    assert results["same"] and early["rows"] == late["rows"]
    assert max(row[2] for row in early["rows"]) > 1  # micro-steps
    assert early["buckets"] > 5 and early["late"] == [0, 0, 0]  # all were sent before the backward pass was over
    assert early["sent"] == pytest.approx(late["sent"], rel=0.01)

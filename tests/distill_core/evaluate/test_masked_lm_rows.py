"""Held-out quality with a few rows of logits at a time is that of all at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distill_core.decoder import Undecoded, Weights
from distill_core.evaluate import masked_lm


@pytest.mark.parametrize("rows", [0, 1, 5, 12])
@pytest.mark.parametrize("decoded", [False, True])
def test_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch, rows: int, decoded: bool) -> None:
    monkeypatch.setattr(masked_lm, "ROWS", 5)
    draw = torch.Generator().manual_seed(0)
    words, bias, vectors = (torch.randn(size, generator=draw) for size in ((7, 3), (7,), (rows, 3)))
    labels = torch.randint(7, (rows,), generator=draw)
    calls: list[int] = []

    def decoder(values: Tensor, use: object) -> object:
        calls.append(len(values))
        return use(values, Weights(words, bias, None))  # type: ignore[operator]

    logits = vectors @ words.T + bias
    loss, guesses = masked_lm.judged(Undecoded(logits, None) if decoded else Undecoded(vectors, decoder), labels)
    assert loss.item() == pytest.approx(F.cross_entropy(logits.double(), labels, reduction="sum").item(), rel=1e-5)
    assert torch.equal(guesses, logits.argmax(-1))
    assert calls == ([] if decoded else [rows])  # one, on all ranks, however many rows each has

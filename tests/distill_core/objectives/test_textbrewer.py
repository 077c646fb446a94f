"""TextBrewer's public loss functions as a second oracle, at equal lengths and where the definitions agree.

Where they do not (masks and padding, means over the batch), what is different is written beside the test.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from textbrewer import losses as textbrewer
from textbrewer import schedulers
from textbrewer.distiller_utils import probability_shift_
from torch import Tensor

from distill_core.features import Features, Heads
from distill_core.objectives.base import Schedule
from tests.distill_core.objectives.streams import build, draw, masked_stream, shape, stream

B, L, H, V = 3, 5, 4, 7


def states(seed: int, width: int) -> list[Tensor]:
    return [draw(seed + i, B, L, width) for i in range(2)]


def ours(kind: str, mine: list[Tensor], theirs: list[Tensor], lengths: list[int], **fields: Any) -> float:
    """Mean on the real tokens of padded hidden states; layers 1 and 2."""
    real = [torch.arange(L) < length for length in lengths]
    streams = [{i: torch.cat([t[b][real[b]] for b in range(B)]) for i, t in enumerate(s, 1)} for s in (mine, theirs)]
    term = build(kind, shape(mine[0].shape[-1], 2), shape(theirs[0].shape[-1], 2), **fields)
    batch = stream(lengths)
    (value,) = term(*(Features(hidden=dict(s)) for s in streams), batch, 0.0).values()
    return value.item() / batch.counts()[term.count]


EQUAL, MIXED = [L] * B, [5, 2, 3]
MASK = (torch.arange(L) < torch.tensor(MIXED)[:, None]).double()


@pytest.mark.parametrize(
    ("kind", "theirs"), [("hidden_mse", "hid_mse_loss"), ("hidden_cosine", "cos_loss"), ("pkd", "pkd_loss")]
)
def test_hidden_states(kind: str, theirs: str) -> None:
    a, b = states(0, H), states(10, H)
    loss = getattr(textbrewer, theirs)
    assert ours(kind, a, b, EQUAL, layers=[(1, 1)]) == pytest.approx(loss(a[0], b[0]).item(), rel=1e-9)
    assert ours(kind, a, b, MIXED, layers=[(1, 1)]) == pytest.approx(loss(a[0], b[0], MASK).item(), rel=1e-9)


def test_gram_matrices() -> None:
    a, b = states(0, H), states(10, H)
    for layers in ([(1, 1)], [((1, 2), (1, 2))]):
        pair = (0, 0) if layers == [(1, 1)] else (0, 1)
        two = [[s[i] for i in pair] for s in (a, b)]
        assert ours("fsp", a, b, EQUAL, layers=layers) == pytest.approx(textbrewer.fsp_loss(*two).item(), rel=1e-9)
        assert ours("fsp", a, b, MIXED, layers=layers) == pytest.approx(
            textbrewer.fsp_loss(*two, MASK).item(), rel=1e-9
        )
        assert ours("nst", a, b, EQUAL, layers=layers) == pytest.approx(textbrewer.mmd_loss(*two).item(), rel=1e-9)
        # With a mask it divides by the padded length instead of the width, in both models.
        quirk = textbrewer.mmd_loss(*two, MASK).item() * (L / H) ** 2
        assert ours("nst", a, b, MIXED, layers=layers) == pytest.approx(quirk, rel=1e-9)


def test_gram_matrices_of_different_widths() -> None:
    a, b = states(0, H), states(10, H + 3)
    wanted = textbrewer.mmd_loss([a[0], a[0]], [b[0], b[0]]).item()
    assert ours("nst", a, b, EQUAL, layers=[(1, 1)]) == pytest.approx(wanted, rel=1e-9)


SHIFT = pytest.mark.parametrize("shift", [False, True])


@SHIFT
@pytest.mark.parametrize(("kind", "loss"), [("kd_ce", textbrewer.kd_ce_loss), ("kd_mse", textbrewer.kd_mse_loss)])
@pytest.mark.parametrize(
    ("rule", "lengths", "mean"),
    [
        ("constant", [9], "sequence"),
        ("flsw", [9], "sequence"),
        ("cwsm", [9], "sequence"),
        ("flsw", [5, 1, 3], "batch"),
        ("cwsm", [5, 1, 3], "batch"),
    ],
)
def test_logits(kind: str, loss: Any, rule: str, lengths: list[int], mean: str, shift: bool) -> None:
    """It takes the mean of a rule's weights over all rows; ours over a sequence's agrees on a single sequence."""
    mine, theirs, batch = 2 * draw(0, 9, V), 2 * draw(1, 9, V), masked_stream(lengths, V, seed=3)
    assert batch.rows is not None and batch.labels is not None and 0 < batch.n_masked < 9
    scheduler = {
        "constant": schedulers.constant_temperature_scheduler,
        "flsw": schedulers.flsw_temperature_scheduler_builder(0.5, 2.0),
        "cwsm": schedulers.cwsm_temperature_scheduler_builder(0.5),
    }[rule]
    labels = torch.full((1, 9), -100)
    labels[0, batch.rows] = batch.labels
    targets = theirs.clone()[None]  # it shifts in place
    if shift:
        targets = probability_shift_(targets, labels)
    wanted = loss(mine[None], targets.view(1, 9, V), scheduler(mine[None], targets.view(1, 9, V), 4.0))
    fields = {"beta": None if rule == "constant" else 0.5, "gamma": 2.0 if rule == "flsw" else None}
    fields |= {
        "rule_mean": mean,
        "positions": "all",
        "temperature": 4.0,
        "temperature_rule": rule,
        "probability_shift": shift,
    }
    term = build(kind, shape(4, vocab=V), shape(4, vocab=V), **fields)
    found = term(Features(logits={"all": mine}), Features(logits={"all": theirs}), batch, 0.0)[kind] / 9
    assert found.item() == pytest.approx(wanted.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("kind", "how", "loss"),
    [("attention_ce", "each", textbrewer.att_ce_loss), ("attention_ce", "mean", textbrewer.att_ce_mean_loss)],
)
def test_attention_cross_entropy_on_scores(kind: str, how: str, loss: Any) -> None:
    """On scores; all real, so that the mask (without which it sets negative scores' targets to 0) does nothing."""
    mine, theirs = heads(0), heads(10)
    wanted = loss(scores(mine), scores(theirs), torch.ones(B, L))
    assert attention(kind, how, mine, theirs) == pytest.approx(wanted.item(), rel=1e-9)


def test_attention_mse_on_probabilities() -> None:
    mine, theirs = heads(0), heads(10)
    p, q = scores(mine).softmax(-1), scores(theirs).softmax(-1)
    for mask in (None, torch.ones(B, L)):
        # The masked form divides by the heads too, since it repeats the mask for each; so does the mean.
        wanted = textbrewer.att_mse_loss(p, q, mask).item()
        assert attention("attention_probs", "each", mine, theirs) == pytest.approx(wanted, rel=1e-9)
    wanted = textbrewer.att_mse_sum_loss(p, q).item()
    assert attention("attention_probs", "sum", mine, theirs) == pytest.approx(wanted, rel=1e-9)


def heads(seed: int) -> Heads:
    return Heads(*(draw(seed + i, B * L, 2, 3) for i in range(3)))


def scores(heads: Heads) -> Tensor:
    q, k = (t.view(B, L, 2, 3).transpose(1, 2) for t in (heads.query, heads.key))
    return q @ k.mT / 3**0.5


def attention(kind: str, how: str, mine: Heads, theirs: Heads) -> float:
    two = shape(6).model_copy(update={"num_attention_heads": 2})
    term, batch = build(kind, two, two, layers=[(1, 1)], heads=how), stream(EQUAL)
    (value,) = term(Features(heads={1: mine}), Features(heads={1: theirs}), batch, 0.0).values()
    return value.item() / batch.counts()[term.count]


def test_weight_schedules() -> None:
    for x in (0.0, 0.3, 1.0):
        assert Schedule(start=0, end=1).at(x) == pytest.approx(schedulers.linear_growth_weight_scheduler(x))
        assert Schedule(start=1, end=0).at(x) == pytest.approx(schedulers.linear_decay_weight_scheduler(x))

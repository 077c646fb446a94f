"""Losses between vocabulary logits against loops from the formulas, and their laws."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from configs.errors import ConfigError
from distill_core.batch import Batch
from distill_core.features import Features, Rows
from distill_core.models.attention import Kernel
from distill_core.objectives import OBJECTIVES, logits, strips
from distill_core.objectives.base import Schedule, Term
from tests.distill_core.objectives import reference
from tests.distill_core.objectives.streams import (
    FEW,
    build,
    draw,
    kernels,
    lengths_of,
    masked_stream,
    same_gradient,
    shape,
)

KINDS = ["kd_ce", "kd_kl", "kd_mse"]
POSITIONS: list[Rows] = ["masked", "all", "sampled"]
V = 7
PAIRS = [(0, 5), (6, 2)]


def rows_of(batch: Batch, positions: Rows) -> list[int]:
    rows = batch.at(positions)
    return list(range(batch.n_tokens)) if rows is None else rows.tolist()


def run(term: Term, mine: Tensor, theirs: Tensor, batch: Batch, progress: float = 0.0) -> tuple[float, Tensor]:
    """Mean and gradient; ``mine`` and ``theirs`` are the logits at the term's rows."""
    (positions,) = term.needs().student.logits
    leaf, given_logits = mine.clone().requires_grad_(), theirs.clone()
    sums = term(Features(logits={positions: leaf}), Features(logits={positions: given_logits}), batch, progress)
    assert list(sums) == term.names()
    mean = sums[term.kind] / max(1.0, batch.counts()[term.count])
    mean.backward()
    assert torch.equal(given_logits, theirs)  # the teacher's features belong to all terms
    assert leaf.grad is not None
    return mean.item(), leaf.grad


def formula(kind: str, mine: Tensor, theirs: Tensor, batch: Batch, positions: Rows, fields: dict[str, Any]) -> Tensor:
    rows, base = rows_of(batch, positions), fields["temperature"]
    where = [n for n, length in enumerate(batch.layout.lengths) for _ in range(length)]
    assert batch.rows is not None and batch.labels is not None
    if fields["probability_shift"]:
        gold = dict(zip(batch.rows.tolist(), batch.labels.tolist(), strict=True))
        theirs = reference.shifted(theirs, [gold.get(row) for row in rows])
    theirs = reference.fair(theirs, fields["fair_pairs"])
    temperatures = [base] * len(rows)
    if fields["temperature_rule"] != "constant":
        rule = fields["temperature_rule"]
        weights = reference.flsw(mine.detach(), theirs, fields["gamma"]) if rule == "flsw" else reference.cwsm(mine)
        temperatures = reference.temperatures(weights, [where[row] for row in rows], base, fields["beta"])
    losses = getattr(reference, kind)(mine, theirs, temperatures)
    if fields.get("temperature_squared"):
        losses = [loss * t**2 for loss, t in zip(losses, temperatures, strict=True)]
    return reference.total(losses) / len(rows)


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(
    lengths=lengths_of,
    positions=st.sampled_from(POSITIONS),
    temperature=st.sampled_from([0.7, 1.0, 8.0]),
    squared=st.booleans(),
    rule=st.sampled_from(["constant", "flsw", "cwsm"]),
    beta=st.sampled_from([0.3, 4.0]),
    shift=st.booleans(),
    pairs=st.sampled_from([[], PAIRS]),
    chunk=st.sampled_from([1, 3, 2048]),
    kernel=kernels,
    seed=st.integers(0, 999),
)
def test_values_and_gradients_are_those_of_the_formula(
    kind: str,
    lengths: list[int],
    positions: Rows,
    temperature: float,
    squared: bool,
    rule: str,
    beta: float,
    shift: bool,
    pairs: list[tuple[int, int]],
    chunk: int,
    kernel: Kernel,
    seed: int,
) -> None:
    batch = masked_stream(lengths, V, seed, kernel)
    n = len(rows_of(batch, positions))
    assume(n > 0)
    fields: dict[str, Any] = {"temperature": temperature, "temperature_rule": rule, "probability_shift": shift}
    fields |= {
        "fair_pairs": pairs,
        "beta": None if rule == "constant" else beta,
        "gamma": 1.5 if rule == "flsw" else None,
    }
    fields |= {} if kind == "kd_mse" else {"temperature_squared": squared}
    mine, theirs = 2 * draw(seed, n, V), 2 * draw(seed + 1000, n, V)
    with patch.object(logits, "CHUNK", chunk), patch.object(strips, "ENTRIES", (chunk + 1) // 2 * V):
        term = build(kind, shape(4, vocab=V), shape(4, vocab=V), positions=positions, **fields)
        found, gradient = run(term, mine, theirs, batch)
    leaf = mine.clone().requires_grad_()
    wanted = formula(kind, leaf, theirs, batch, positions, fields)
    wanted.backward()
    assert found == pytest.approx(wanted.item(), rel=1e-6, abs=1e-12)
    same_gradient(gradient, leaf.grad)


@FEW
@given(lengths=lengths_of, kernel=kernels, seed=st.integers(0, 999))
def test_the_labels_own_loss_is_that_of_the_formula(lengths: list[int], kernel: Kernel, seed: int) -> None:
    batch = masked_stream(lengths, V, seed, kernel)
    assume(batch.n_masked > 0)
    assert batch.labels is not None
    leaf = (2 * draw(seed, batch.n_masked, V)).requires_grad_()
    term = build("mlm", shape(4, vocab=V), None)
    found = term(Features(logits={"masked": leaf}), Features(), batch, 0.0)["mlm"] / batch.counts()[term.count]
    found.backward()
    copy = leaf.detach().clone().requires_grad_()
    losses = [-reference.log_softmax(row)[label] for row, label in zip(copy, batch.labels.tolist(), strict=True)]
    wanted = reference.total(losses) / len(losses)
    wanted.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    same_gradient(leaf.grad, copy.grad)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_like_its_teacher_is_at_the_minimum(kind: str, positions: Rows) -> None:
    batch = masked_stream([6, 5, 2], V)
    same = 3 * draw(0, len(rows_of(batch, positions)), V).float()
    term = build(kind, shape(4, vocab=V), shape(4, vocab=V), positions=positions, temperature=2.0)
    found, gradient = run(term, same, same, batch)
    p = (same.double() / 2).softmax(-1)
    assert found == pytest.approx(float(-(p * p.log()).sum(-1).mean()) if kind == "kd_ce" else 0.0, rel=1e-6, abs=1e-12)
    assert gradient.abs().max() < 1e-7


def test_cross_entropy_differs_from_kl_by_the_teachers_entropy() -> None:
    batch, (mine, theirs) = masked_stream([9], V), (draw(0, 9, V), draw(1, 9, V))
    both = [
        build(k, shape(4, vocab=V), shape(4, vocab=V), positions="all", temperature=3.0) for k in ("kd_ce", "kd_kl")
    ]
    (ce, ce_gradient), (kl, kl_gradient) = (run(term, mine, theirs, batch) for term in both)
    p = (theirs / 3).softmax(-1)
    assert ce - kl / 9 == pytest.approx(float(-(p * p.log()).sum(-1).mean()), rel=1e-9)  # kd_kl has T² by default
    torch.testing.assert_close(kl_gradient, 9 * ce_gradient)


def test_temperature_squared_keeps_the_gradients_size() -> None:
    """For small logits: KL falls as 1 / T², and the gradient of T² KL stays."""
    batch, size = masked_stream([40], V), {1.0: 0.0, 8.0: 0.0}
    mine, theirs = 0.05 * draw(0, 40, V), 0.05 * draw(1, 40, V)
    kl = {}
    for t in size:
        plain, squared = (
            build("kd_kl", shape(4, vocab=V), shape(4, vocab=V), positions="all", temperature=t, temperature_squared=s)
            for s in (False, True)
        )
        kl[t], gradient = run(plain, mine, theirs, batch)
        scaled, scaled_gradient = run(squared, mine, theirs, batch)
        assert scaled == pytest.approx(t**2 * kl[t], rel=1e-12)
        torch.testing.assert_close(scaled_gradient, t**2 * gradient)
        size[t] = float(scaled_gradient.norm())
    assert kl[1.0] / kl[8.0] == pytest.approx(64, rel=0.02)
    assert size[8.0] == pytest.approx(size[1.0], rel=0.02)
    falls = {
        t: run(
            build("kd_ce", shape(4, vocab=V), shape(4, vocab=V), positions="all", temperature=t), mine, theirs, batch
        )
        for t in size
    }
    assert float(falls[1.0][1].norm() / falls[8.0][1].norm()) == pytest.approx(64, rel=0.02)


def test_temperature_moves_along_its_schedule() -> None:
    batch, (mine, theirs) = masked_stream([9], V), (draw(0, 9, V), draw(1, 9, V))
    moving = build("kd_ce", shape(4, vocab=V), shape(4, vocab=V), positions="all", temperature={"start": 8, "end": 2})
    for progress, temperature in ((0.0, 8.0), (0.5, 5.0), (1.0, 2.0)):
        still = build("kd_ce", shape(4, vocab=V), shape(4, vocab=V), positions="all", temperature=temperature)
        assert run(moving, mine, theirs, batch, progress)[0] == pytest.approx(
            run(still, mine, theirs, batch)[0], rel=1e-12
        )


def test_a_rules_temperature_has_no_gradient_and_is_the_base_for_equal_rows() -> None:
    batch, mine, theirs = masked_stream([5], V), draw(0, 1, V).expand(5, V), draw(1, 1, V).expand(5, V)
    for rule in ({"temperature_rule": "flsw", "beta": 2.0, "gamma": 1.0}, {"temperature_rule": "cwsm", "beta": 2.0}):
        ruled = build("kd_ce", shape(4, vocab=V), shape(4, vocab=V), positions="all", temperature=4.0, **rule)
        plain = build("kd_ce", shape(4, vocab=V), shape(4, vocab=V), positions="all", temperature=4.0)
        found, wanted = (run(term, mine, theirs, batch) for term in (ruled, plain))
        assert found[0] == pytest.approx(wanted[0], rel=1e-12)
        torch.testing.assert_close(found[1], wanted[1])


@pytest.mark.parametrize(
    "rule", [{"temperature_rule": "flsw", "beta": 2.0, "gamma": 1.0}, {"temperature_rule": "cwsm", "beta": 0.5}]
)
def test_a_rules_temperatures_do_not_depend_on_the_grouping(rule: dict[str, Any]) -> None:
    batch, (mine, theirs) = masked_stream([5, 3], V), (2 * draw(0, 8, V), 2 * draw(1, 8, V))
    term = build("kd_ce", shape(4, vocab=V), shape(4, vocab=V), positions="all", temperature=4.0, **rule)
    whole = run(term, mine, theirs, batch)[0] * 8
    parts = [run(term, mine[a:b], theirs[a:b], masked_stream([b - a], V))[0] * (b - a) for a, b in ((5, 8), (0, 5))]
    assert sum(parts) == pytest.approx(whole, rel=1e-12)


def test_the_shift_gives_the_gold_label_the_highest_logit_and_leaves_other_rows() -> None:
    batch = masked_stream([12], V, seed=3)
    assert batch.rows is not None and batch.labels is not None and 0 < batch.n_masked < 12
    theirs = draw(1, 12, V)
    term = build("kd_mse", shape(4, vocab=V), shape(4, vocab=V), positions="all", probability_shift=True)
    assert isinstance(term, logits.LogitsMatch)
    moved = logits.shifted(theirs, term._gold(batch))
    assert torch.equal(moved[batch.rows].argmax(-1), batch.labels)
    assert torch.equal(moved.sort(-1).values, theirs.sort(-1).values)
    plain = [row for row in range(12) if row not in batch.rows.tolist()]
    assert torch.equal(moved[plain], theirs[plain])


def test_a_student_of_a_fair_teacher_gives_both_tokens_of_a_pair_the_same_probability() -> None:
    """It loses nothing so, whatever the shift did before: fairness comes last."""
    batch, theirs = masked_stream([9], V, seed=3), 3 * draw(1, 9, V)
    for shift in (False, True):
        fields = {"positions": "all", "fair_pairs": PAIRS, "probability_shift": shift}
        term = build("kd_kl", shape(4, vocab=V), shape(4, vocab=V), **fields)
        assert isinstance(term, logits.LogitsMatch)
        gold = [None if label < 0 or not shift else label for label in term._gold(batch).tolist()]
        mine = reference.fair(reference.shifted(theirs, gold), PAIRS)
        found, gradient = run(term, mine, theirs, batch)
        assert found == pytest.approx(0, abs=1e-12) and gradient.abs().max() < 1e-12
        p = mine.softmax(-1)
        for a, b in PAIRS:
            assert torch.equal(p[:, a], p[:, b])
        assert run(term, theirs, theirs, batch)[0] > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_chunk_is_kept_for_the_backward_pass(kind: str) -> None:
    batch, largest, seen = masked_stream([64], V), 0, 0
    term = build(kind, shape(4, vocab=V), shape(4, vocab=V), positions="all")
    leaf, theirs = draw(0, 64, V).bfloat16().requires_grad_(), draw(1, 64, V).bfloat16()

    def pack(t: Tensor) -> Tensor:
        nonlocal largest, seen
        seen += t.numel() if t.dtype == torch.float32 and t.shape[-1] == V else 0
        largest = max(largest, t.numel())
        return t

    with patch.object(logits, "CHUNK", 8), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        value = term(Features(logits={"all": leaf}), Features(logits={"all": theirs}), batch, 0.0)[kind]
    assert seen == 0  # no fp32 copy of logits waits
    value.backward()
    assert leaf.grad is not None and value.dtype == torch.float32
    whole, gradient = run(term, leaf.detach(), theirs, batch)
    assert value.item() / 64 == pytest.approx(whole, rel=1e-6)
    torch.testing.assert_close(leaf.grad / 64, gradient, rtol=2e-2, atol=1e-6)


def test_no_rows_no_loss() -> None:
    batch = masked_stream([2], V)
    batch.rows, batch.labels = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    for kind in KINDS:
        for rule in ({}, {"temperature_rule": "cwsm", "beta": 1.0}):
            term = build(kind, shape(4, vocab=V), shape(4, vocab=V), probability_shift=True, **rule)
            assert run(term, draw(0, 0, V), draw(1, 0, V), batch)[0] == 0


def test_counts_follow_the_positions() -> None:
    for positions, count in (("masked", "masked"), ("all", "tokens"), ("sampled", "sampled")):
        term = build("kd_ce", shape(4), shape(4), positions=positions)
        assert term.count == count and term.needs().teacher.logits == term.needs().student.logits == {positions}


@pytest.mark.parametrize("kind", KINDS)
def test_vocabularies_of_another_size_are_refused_with_what_works_instead(kind: str) -> None:
    with pytest.raises(ConfigError, match="the student has 19 tokens and the teacher 20") as refused:
        build(kind, shape(4, vocab=19), shape(4, vocab=20))
    advice = str(refused.value)
    assert advice.startswith(kind) and "data.tokenizer.vocab" in advice
    named = advice.split("on whole texts (")[1].split(")")[0].split(", ")
    assert named == ["task_kd", "pkd"]
    assert all(OBJECTIVES[works].aligned == "sequences" for works in named)


def test_bad_settings_are_refused() -> None:
    def config(**fields: Any) -> Any:
        return logits.KdCeConfig(kind="kd_ce", **fields)

    with pytest.raises(ValidationError, match="greater than 0"):
        config(temperature=0.0)
    with pytest.raises(ValidationError, match="a temperature must stay above 0"):
        config(temperature=Schedule(start=8, end=0))
    with pytest.raises(ValidationError, match="`rule_mean: batch` belongs to temperature_rule: flsw or cwsm"):
        config(rule_mean="batch")
    with pytest.raises(ValidationError, match="`gamma` belongs to temperature_rule: flsw"):
        config(temperature_rule="cwsm", beta=1.0, gamma=1.0)
    with pytest.raises(
        ValidationError, match="`beta` belongs to temperature_rule: flsw or cwsm, and is required there"
    ):
        config(temperature_rule="cwsm")
    with pytest.raises(ValidationError, match="fair_pairs names 3 more than once"):
        config(fair_pairs=[(3, 4), (5, 3)])
    with pytest.raises(ConfigError, match="the token id 19, but the vocabulary has ids 0 to 18"):
        build("kd_ce", shape(4), shape(4), fair_pairs=[(19, 1)])

"""The end of a step on one rank: clipped AdamW, sums over micro-steps, steps that are not finite. Two ranks:
test_two_ranks.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from distill_core.engine import Rank
from distill_core.reduction import Gradients, ShardedStep, Step, WholeStep
from distill_core.training import TrainingConfig

RANK = Rank(0, 0, 1, torch.device("cpu"))
SIZES = [(3, 2), (4,)]


def buffers(masters: list[Tensor]) -> SimpleNamespace:
    """What is used of DeepSpeed's bf16 optimizer, on one rank: a group for each master."""
    gradients = [torch.full((master.numel(),), 7.0) for master in masters]  # what another step has left
    parameters = [[nn.Parameter(master.detach().bfloat16())] for master in masters]

    def update() -> None:
        for (parameter,), master in zip(parameters, masters, strict=True):
            parameter.data.copy_(master.detach())

    return SimpleNamespace(
        bf16_groups=parameters,
        fp32_groups_gradients=[[gradient] for gradient in gradients],
        fp32_groups_flat_partition=masters,
        fp32_groups_gradients_flat=gradients,
        fp32_groups_gradient_flat_partition=[g.view_as(m) for g, m in zip(gradients, masters, strict=True)],
        update_lp_params=update,
    )


class Twins:
    """Parameters under a step of ours, and how it is given their gradients."""

    def __init__(self, kind: str, clipping: float) -> None:
        generator = torch.Generator().manual_seed(3)
        self.masters: list[Any] = [nn.Parameter(torch.randn(size, generator=generator)) for size in SIZES]
        adam = torch.optim.AdamW(self.masters, lr=0.1, fused=True)
        self.step: Step
        self.seen: list[Tensor] = self.masters
        if kind == "whole":
            self.step = WholeStep(adam, clipping, RANK, torch.float32)
        else:
            optimizer = buffers(self.masters)
            self.seen = [parameter for group in optimizer.bf16_groups for parameter in group]
            self.step = ShardedStep(optimizer, adam, clipping, RANK, torch.float32)

    def backward(self, gradients: list[Tensor | None], last: bool = True) -> None:
        """One micro-step; None: this one has no part in it."""
        losses = [(p * g).sum().float() for p, g in zip(self.seen, gradients, strict=True) if g is not None]
        self.step.backward(torch.stack(losses).sum(), last)


Kind = Literal["whole", "sharded"]
both = pytest.mark.parametrize("kind", ["whole", "sharded"])


@both
@pytest.mark.parametrize("clipping", [0.0, 0.5, 100.0])
def test_takes_the_steps_of_clipped_adamw(kind: Kind, clipping: float) -> None:
    twins = Twins(kind, clipping)
    plain = [nn.Parameter(master.detach().clone()) for master in twins.masters]
    reference = torch.optim.AdamW(plain, lr=0.1)
    generator = torch.Generator().manual_seed(4)
    for number in range(4):
        for parameter in plain:
            parameter.grad = torch.zeros_like(parameter)
        for last in (True,) if number % 2 == 0 else (False, True):
            # bf16 numbers, so that both see the same; the second parameter has no gradient in the last step.
            drawn = [torch.randn(size, generator=generator).bfloat16() for size in SIZES]
            twins.backward([drawn[0], drawn[1] if number < 3 else None], last)
            for parameter, gradient in zip(plain, drawn, strict=True):
                if number < 3 or parameter is plain[0]:
                    parameter.grad += gradient
        norm = torch.nn.utils.clip_grad_norm_(plain, clipping or float("inf"))
        reference.step()
        twins.step.step()
        assert twins.step.norm.item() == pytest.approx(norm.item())
        for master, parameter, seen in zip(twins.masters, plain, twins.seen, strict=True):
            torch.testing.assert_close(master.detach(), parameter.detach(), rtol=1e-5, atol=1e-6)
            assert torch.equal(seen.detach(), master.detach().to(seen.dtype))
        assert all(parameter.grad is None for parameter in twins.seen)
    assert twins.step.skipped.tolist() == [0, 0]


@both
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(kind: Kind) -> None:
    twins = Twins(kind, 1.0)
    adam = twins.step.adam

    def step(value: float) -> list[Tensor]:
        twins.backward([torch.ones(SIZES[0]), torch.tensor([value, 1.0, 1.0, 1.0])])
        twins.step.step()
        return [master.detach().clone() for master in twins.masters]

    first = step(2.0)
    for count, value in enumerate((float("nan"), float("inf")), start=1):
        assert all(torch.equal(a, b) for a, b in zip(step(value), first, strict=True))
        assert twins.step.skipped.tolist() == [count, count]
    assert [adam.state[master]["step"].item() for master in twins.masters] == [1, 1]
    assert step(2.0)[1][0] < first[1][0]
    assert twins.step.skipped.tolist() == [2, 0]


def test_gradients_are_summed_in_fp32_as_they_come_and_dropped() -> None:
    optimizer = buffers([torch.zeros(2), torch.zeros(3)])
    (used,), (unused,) = optimizer.bf16_groups
    gradients = Gradients(optimizer)
    for value in (256.0, 1.0, 1.0):  # bf16 would lose both of the ones
        (used * value).sum().backward()
        assert used.grad is None and unused.grad is None
    gradients.complete()
    assert [sums.tolist() for sums in optimizer.fp32_groups_gradients_flat] == [[258.0] * 2, [0.0] * 3]
    (unused * 2.0).sum().backward()  # a new step
    gradients.complete()
    assert [sums.tolist() for sums in optimizer.fp32_groups_gradients_flat] == [[0.0] * 2, [2.0] * 3]
    gradients.close()
    used.sum().backward()
    assert used.grad is not None


class Stream:
    """A stand-in for a GPU's: notes who waits for whom, and what is entered."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def wait_stream(self, other: Stream) -> None:
        self.notes.append(f"{self.name} waits for {other.name}")

    def __enter__(self) -> None:
        self.notes.append(f"on {self.name}")

    def __exit__(self, *error: object) -> None:
        self.notes.append(f"off {self.name}")


def test_the_end_of_a_step_has_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    main, side = Stream("main", notes), Stream("side", notes)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    twins = Twins("sharded", 1.0)
    own: Any = twins.step
    own._stream = side
    monkeypatch.setattr(twins.step.adam, "step", lambda: notes.append("adam"))
    twins.backward([torch.ones(size) for size in SIZES], last=False)
    assert notes == []
    twins.backward([torch.ones(size) for size in SIZES])
    twins.step.step()
    block = ["side waits for main", "on side"]
    assert notes == [*block, "off side", *block, "adam", "off side"]
    notes.clear()
    twins.step.settle()
    assert notes == ["main waits for side"]


@pytest.mark.parametrize(
    ("fields", "alone"),
    [
        ({"precision": "fp32", "zero_stage": 3}, 0),
        ({"precision": "fp32", "zero_stage": 1}, 0),
        ({"zero_stage": 1}, 1),
        ({"zero_stage": 2}, 1),
        ({"zero_stage": 3, "offload": "optimizer"}, 3),
        ({"precision": "fp16", "zero_stage": 2}, 2),
    ],
)
def test_one_rank_divides_nothing(fields: dict[str, Any], alone: int) -> None:
    training = TrainingConfig(steps=1, global_batch_size=1, **fields)
    assert training.stage_on(1) == alone
    assert training.stage_on(2) == training.zero_stage

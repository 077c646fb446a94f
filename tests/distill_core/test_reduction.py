"""The end of a ZeRO-1 step on one rank: clipped AdamW, and steps that are not finite. Two: test_two_ranks.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from distill_core.engine import Rank
from distill_core.reduction import ShardedStep

RANK = Rank(0, 0, 1, torch.device("cpu"))


def buffers(masters: list[torch.Tensor]) -> SimpleNamespace:
    """What ShardedStep uses of DeepSpeed's bf16 optimizer, on one rank."""
    gradients = [torch.zeros_like(master) for master in masters]

    def clear() -> None:
        for gradient in gradients:
            gradient.zero_()

    return SimpleNamespace(
        fp32_groups_flat_partition=masters,
        fp32_groups_gradients_flat=gradients,
        fp32_groups_gradient_flat_partition=gradients,
        update_lp_params=lambda: None,
        clear_hp_grads=clear,
    )


@pytest.mark.parametrize("clipping", [0.0, 0.5, 100.0])
def test_takes_the_steps_of_clipped_adamw(clipping: float) -> None:
    generator = torch.Generator().manual_seed(3)
    masters = [torch.randn(size, generator=generator) for size in (7, 4)]
    plain = [torch.nn.Parameter(master.clone()) for master in masters]
    optimizer = buffers(masters)
    sharded = ShardedStep(optimizer, torch.optim.AdamW(masters, lr=0.1, fused=True), clipping, RANK, torch.float32)
    reference = torch.optim.AdamW(plain, lr=0.1)
    for _ in range(3):
        for mine, theirs in zip(optimizer.fp32_groups_gradients_flat, plain, strict=True):
            theirs.grad = torch.randn(theirs.shape, generator=generator)
            mine.copy_(theirs.grad)
        norm = torch.nn.utils.clip_grad_norm_(plain, clipping or float("inf"))
        reference.step()
        sharded.step()
        assert sharded.norm.item() == pytest.approx(norm.item())
        for master, parameter in zip(masters, plain, strict=True):
            torch.testing.assert_close(master, parameter.detach(), rtol=1e-5, atol=1e-6)
        assert all(not gradient.any() for gradient in optimizer.fp32_groups_gradients_flat)
    assert sharded.skipped.tolist() == [0, 0]


def test_a_step_that_is_not_finite_changes_nothing_but_the_count() -> None:
    masters = [torch.ones(5), torch.ones(2)]
    optimizer = buffers(masters)
    adam = torch.optim.AdamW(masters, lr=0.1, fused=True)
    sharded = ShardedStep(optimizer, adam, 1.0, RANK, torch.float32)

    def step(value: float) -> list[float]:
        optimizer.fp32_groups_gradients_flat[1][0] = value
        sharded.step()
        return [master[0].item() for master in masters]

    first = step(2.0)
    for count, value in enumerate((float("nan"), float("inf")), start=1):
        assert step(value) == first
        assert sharded.skipped.tolist() == [count, count]
    assert [adam.state[master]["step"].item() for master in masters] == [1, 1]
    assert step(2.0)[1] < first[1]
    assert sharded.skipped.tolist() == [2, 0]

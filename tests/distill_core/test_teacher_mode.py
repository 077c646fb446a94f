"""A teacher answers in inference mode, and what it says enters losses all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distill_core.batch import Batch
from distill_core.features import FeatureRequest, Features
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.objective import Teacher, ordinary

SHAPE = EncoderConfig(
    vocab_size=50, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, pooler=True
)
REQUEST = FeatureRequest(frozenset({0, 1, 2}), frozenset({1, 2}), frozenset({"masked", "all"}), pooled=True)
BATCH = Batch.of([[5, 6, 7, 8], [9, 10]], rows=torch.tensor([1, 4]))


def tensors(features: Features) -> list[Tensor]:
    found: list[Tensor] = []
    features.moved(lambda values: found.append(values) or values)  # type: ignore[func-returns-value]
    return found


def teacher(sharded: bool, dtype: torch.dtype) -> tuple[Teacher, list[bool]]:
    torch.manual_seed(0)
    made, modes = Teacher(Encoder(SHAPE).to(dtype), REQUEST, sharded=sharded), list[bool]()
    made.encoder.register_forward_pre_hook(lambda *_: modes.append(torch.is_inference_mode_enabled()))
    return made, modes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_in_either_mode(dtype: torch.dtype) -> None:
    (quick, quick_modes), (sharded, sharded_modes) = teacher(False, dtype), teacher(True, dtype)
    found, expected = tensors(quick(BATCH)), tensors(sharded(BATCH))
    assert (quick_modes, sharded_modes) == ([True], [False])
    assert len(found) == 3 + 2 * 3 + 2 + 1
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(found, expected, strict=True))
    assert not any(values.is_inference() or values.requires_grad for values in found)


def test_autograd_may_keep_what_it_says() -> None:
    answered, _ = teacher(False, torch.float32)
    features = answered(BATCH)
    mine = torch.ones(6, 8, requires_grad=True)
    target = features.hidden[2]
    (torch.nn.functional.mse_loss(mine, target) + (mine * target).sum()).backward()  # both keep the target
    assert mine.grad is not None
    torch.testing.assert_close(mine.grad, 2 * (1 - target) / target.numel() + target)
    logits: Any = features.logits["masked"]
    assert logits.shape == (2, 50) and not logits.is_inference()


def test_ordinary_tensors_are_on_the_same_memory() -> None:
    with torch.inference_mode():
        whole = torch.arange(12.0).view(3, 4)
        part = whole.t()[1:3]
    made = ordinary(part)
    assert torch.equal(made, part) and made.data_ptr() == part.data_ptr() and made.stride() == part.stride()
    assert not made.is_inference() and ordinary(made) is made

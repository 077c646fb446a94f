"""Packed weights of a frozen teacher: the same answers, no second copy, and nothing packed that must not be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from distill_core.batch import Batch
from distill_core.features import FeatureRequest
from distill_core.models import frozen
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.models.frozen import PackedLinear, pack
from distill_core.objective import Teacher

REQUEST = FeatureRequest(hidden=frozenset({0, 2}), heads=frozenset({1}), logits=frozenset({"masked"}))
CAN = frozen._can_be_packed(nn.Linear(16, 16).bfloat16().requires_grad_(False))


def encoder(dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Encoder:
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = Encoder(EncoderConfig(**(shape | {"intermediate_size": 48, "max_position_embeddings": 16} | changes)))
    return made.to(dtype).eval()


def packed(module: nn.Module) -> int:
    return sum(isinstance(part, PackedLinear) for part in module.modules())


def test_a_teacher_answers_as_before() -> None:
    plain, teacher = encoder(), Teacher(encoder(), REQUEST)
    assert packed(teacher) == (2 * 6 if CAN else 0)
    state = teacher.encoder.state_dict()
    assert list(state) == list(plain.state_dict())
    assert all(torch.equal(state[name], values) for name, values in plain.state_dict().items())
    assert teacher.parameter_count == sum(p.numel() for p in plain.parameters())
    for rows in (torch.tensor([0, 3, 7]), torch.zeros(0, dtype=torch.int64)):
        batch = Batch.of([[1, 2, 3, 4, 5], [6, 7, 8]], rows=rows)
        with torch.no_grad():
            expected, found = plain(batch, REQUEST), teacher(batch)
        for layer, values in expected.hidden.items():
            torch.testing.assert_close(found.hidden[layer], values, atol=0.02, rtol=0.02)
        torch.testing.assert_close(found.logits["masked"], expected.logits["masked"], atol=0.02, rtol=0.02)


def test_weights_are_held_once() -> None:
    linear = nn.Linear(64, 32).bfloat16().requires_grad_(False)
    network = nn.Sequential(linear)
    pack(network)
    assert [tuple(p.shape) for p in network.parameters()] == [(32, 64), (32,)]
    assert network[0].bias is linear.bias
    x = torch.randn(5, 64).bfloat16()
    torch.testing.assert_close(network(x), linear(x), atol=0.02, rtol=0.02)


def test_what_is_left_alone() -> None:
    learning, wide = encoder(), encoder(torch.float32).requires_grad_(False)
    for model in (learning, wide):
        pack(model)
        assert packed(model) == 0
    teacher = Teacher(encoder(), REQUEST)
    assert isinstance(teacher.encoder, Encoder) and packed(teacher.encoder.cls) == 0  # others decode with its weights


def test_a_torch_without_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_linear: nn.Linear) -> nn.Module:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")

    monkeypatch.setattr(frozen, "PackedLinear", refuse)
    assert not frozen._can_be_packed(nn.Linear(8, 8).bfloat16().requires_grad_(False))

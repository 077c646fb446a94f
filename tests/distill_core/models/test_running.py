"""Layers computed twice and parts compiled give what the plain model gives."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch._dynamo import config as dynamo

from configs.errors import ConfigError
from distill_core.batch import Batch
from distill_core.features import FeatureRequest
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.models.layer import Layer
from distill_core.models.running import COMPILED, MODES, VARIANTS, checkpoint_layers, compile_parts
from distill_core.training import TrainingConfig

SHAPE = EncoderConfig(
    vocab_size=30,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=16,
    hidden_dropout_prob=0.3,
    attention_probs_dropout_prob=0.2,
)
REQUEST = FeatureRequest(hidden=frozenset({0, 2, 3}), heads=frozenset({1, 3}), logits=frozenset({"masked"}))
BATCH = Batch.of([[3, 4, 5, 6, 7], [8, 9, 3], [5, 4, 2]], rows=torch.tensor([0, 3, 6]))


def gradients(encoder: Encoder) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Of a sum over all features, with dropout from a fixed seed, over two backward passes."""
    encoder.train().zero_grad()
    torch.manual_seed(5)
    for _ in range(2):
        features = encoder(BATCH, REQUEST)
        total = features.logits["masked"].pow(2).sum() + sum(h.pow(3).sum() for h in features.hidden.values())
        for heads in features.heads.values():
            total = total + sum(values.sin().sum() for values in heads)
        total.backward()
    return total.detach(), {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointed_layers_give_the_same_bits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plain = Encoder(SHAPE).to(dtype)
    twice = copy.deepcopy(plain)
    checkpoint_layers(twice.bert.encoder.layer)
    total, expected = gradients(plain)
    calls = []
    forward = Layer.forward
    monkeypatch.setattr(Layer, "forward", lambda self, *given: calls.append(1) or forward(self, *given))
    fresh = copy.deepcopy(plain)
    checkpoint_layers(fresh.bert.encoder.layer)
    again, found = gradients(fresh)
    assert len(calls) == 2 * 2 * SHAPE.num_hidden_layers  # forward and again in backward
    assert torch.equal(total, again) and found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert gradients(twice)[0] == total


def test_compiled_parts_give_the_same_losses() -> None:
    torch.manual_seed(0)
    plain = Encoder(SHAPE.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}))
    assert sum(isinstance(part, COMPILED) for part in plain.modules()) == 3 * SHAPE.num_hidden_layers
    compiled = copy.deepcopy(plain)
    names = list(compiled.state_dict())
    compile_parts(compiled, "default")
    assert list(compiled.state_dict()) == names
    total, expected = gradients(plain)
    again, found = gradients(compiled)
    torch.testing.assert_close(again, total, rtol=1e-5, atol=0)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_compiling_without_a_compiler_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    compile_parts(Encoder(SHAPE), "off")
    with pytest.raises(ConfigError, match="there is no compiler"):
        compile_parts(Encoder(SHAPE), "default")


def test_compiling_for_a_gpu_needs_triton_and_a_c_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="Triton is not installed"):
        compile_parts(Encoder(SHAPE), "default")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ConfigError, match="C compiler, but gcc is not found"):
        compile_parts(Encoder(SHAPE), "default")
    (tmp_path / "mycc").touch(mode=0o755)
    monkeypatch.setenv("CC", "mycc")
    compile_parts(Encoder(SHAPE), "default")
    monkeypatch.setenv("CC", "another")
    with pytest.raises(ConfigError, match="another is not found"):
        compile_parts(Encoder(SHAPE), "default")


def test_no_mode_has_cuda_graphs() -> None:
    """Parts that are compiled one by one would overwrite each other's outputs."""
    offered = set(get_args(TrainingConfig.model_fields["compile"].annotation)) - {"off"}
    assert offered == set(MODES)
    options = torch._inductor.list_mode_options()
    assert not any(options[mode].get("triton.cudagraphs") for mode in MODES.values())


def test_parts_share_one_limit_of_variants() -> None:
    """Twelve layers have more variants than torch keeps by default; none of them may silently run uncompiled."""
    with dynamo.patch(recompile_limit=8, accumulated_recompile_limit=256):
        compile_parts(Encoder(SHAPE), "default")
        assert dynamo.recompile_limit == VARIANTS
        assert dynamo.accumulated_recompile_limit == 4 * VARIANTS

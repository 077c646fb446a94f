"""Attention's kernels: which is taken where, with what, and to the same numbers."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen
import torch.nn.functional as F
from torch import Tensor

from configs.errors import ConfigError
from distill_core.build import stage_kernel
from distill_core.engine import Rank
from distill_core.frozen import check_device
from distill_core.models.attention import Kernel, attend, choose_kernel, layout
from distill_core.models.config import EncoderConfig
from distill_core.training import TrainingConfig

KERNELS: list[Kernel] = ["runs", "padded"]
CPU = torch.device("cpu")


def test_attention_dropout_on_both_kernels() -> None:
    q = torch.randn(10, 2, 4, generator=torch.Generator().manual_seed(0))
    for kernel in KERNELS:
        where = layout([6, 4], kernel)
        torch.manual_seed(0)
        assert not torch.equal(attend(q, q, q, where, 0.5), attend(q, q, q, where, 0.0))
        kept = attend(q, q, q, where, 0.0)
        torch.testing.assert_close(kept, attend(q, q, q, layout([6, 4], "runs")), atol=1e-6, rtol=0)


def test_kernels_by_device() -> None:
    assert choose_kernel("auto", CPU) == "runs"
    assert choose_kernel("auto", torch.device("mps")) == "padded"
    assert choose_kernel("padded", CPU) == "padded"
    assert choose_kernel("auto", CPU, flash=True) == "runs"


@pytest.mark.parametrize(("capability", "newer"), [((9, 0), True), ((8, 0), True), ((7, 5), False)])
def test_flash_kernels_where_the_gpu_has_them(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], newer: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda", 0)
    assert choose_kernel("auto", gpu, flash=True) == ("varlen" if newer else "padded")
    assert choose_kernel("auto", gpu) == ("mixed" if newer else "padded")  # fp32, or attention dropout
    assert choose_kernel("runs", gpu, flash=True) == "runs"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose_kernel("auto", gpu, flash=True) == choose_kernel("auto", gpu) == "padded"


def flash(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float) -> Tensor:
    """What the kernels for GPUs compute."""
    parts = []
    for start, stop in itertools.pairwise(bounds.tolist()):
        scores = torch.einsum("qhd,khd->hqk", q[start:stop].float(), k[start:stop].float()) * scale
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[start:stop].float()))
    return torch.cat(parts).to(q.dtype)


@pytest.fixture
def flash_calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each call; a reference on the CPU stands in for torch's, of which it has the signature."""
    calls: list[dict[str, Any]] = []
    signature = inspect.signature(torch.nn.attention.varlen.varlen_attn)

    def stand_in(*given: Any, **named: Any) -> Tensor:
        bound = signature.bind(*given, **named)
        calls.append(bound.arguments)
        bound.apply_defaults()
        of = bound.arguments
        assert of["window_size"] == (-1, -1)  # both ways
        return flash(of["query"], of["key"], of["value"], of["cu_seq_q"], of["scale"])

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", stand_in)
    return calls


def heads(tokens: int, size: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    return torch.randn(3, tokens, 2, size, generator=torch.Generator().manual_seed(0)).to(dtype).unbind()


@pytest.mark.parametrize("size", [8, 26])
def test_what_the_flash_kernels_are_called_with(flash_calls: list[dict[str, Any]], size: int) -> None:
    q, k, v = heads(12, size)
    found = attend(q, k, v, layout([6, 4, 2], "varlen"))
    torch.testing.assert_close(found, attend(q, k, v, layout([6, 4, 2], "runs")), atol=1e-6, rtol=0)
    (call,) = flash_calls
    assert call["query"].shape[-1] % 8 == 0 and call["cu_seq_q"].dtype == torch.int32
    assert call["cu_seq_q"] is call["cu_seq_k"] and call["max_q"] == call["max_k"] == 6
    assert call["scale"] == pytest.approx(size**-0.5)


@pytest.mark.parametrize("lengths", [[6, 4, 2], [4, 4, 4]])
@pytest.mark.parametrize(
    ("dtype", "dropout", "taken"),
    [
        (torch.bfloat16, 0.0, True),
        (torch.float16, 0.0, True),
        (torch.float32, 0.0, False),  # a teacher in fp32, or the student whose losses are compared
        (torch.bfloat16, 0.1, False),  # a student beside a teacher that has the flash kernels
    ],
)
def test_each_call_takes_what_it_can(
    flash_calls: list[dict[str, Any]], lengths: list[int], dtype: torch.dtype, dropout: float, taken: bool
) -> None:
    q, k, v = heads(12, dtype=dtype)
    torch.manual_seed(0)
    found = attend(q, k, v, layout(lengths, "mixed"), dropout)
    assert len(flash_calls) == taken
    torch.manual_seed(0)
    other: Kernel = "varlen" if taken else "padded"
    assert torch.equal(found, attend(q, k, v, layout(lengths, other), dropout))
    if not dropout:
        expected = attend(q.float(), k.float(), v.float(), layout(lengths, "runs"))
        torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=0)


@pytest.mark.parametrize(("lengths", "masked"), [([6, 4, 2], True), ([4, 4, 4], False)])
def test_sequences_of_one_length_need_no_mask(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], masked: bool
) -> None:
    """With a mask scaled_dot_product_attention has no flash kernels on a GPU."""
    sdpa, seen = F.scaled_dot_product_attention, []

    def watched(*given: Any, **named: Any) -> Tensor:
        seen.append((given[0].shape, named.get("attn_mask") is not None))
        return sdpa(*given, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    q, k, v = heads(12)
    found = attend(q, k, v, layout(lengths, "padded"))
    assert seen == [((3, 2, max(lengths), 8), masked)]
    torch.testing.assert_close(found, attend(q, k, v, layout(lengths, "runs")), atol=1e-6, rtol=0)


def test_layouts() -> None:
    assert layout([5, 5, 2, 5], "runs").runs == ((0, 2, 5), (10, 1, 2), (12, 1, 5))
    spread = layout([3, 1], "padded")
    assert spread.slots is not None and spread.slots.tolist() == [0, 1, 2, 3]
    assert spread.key_mask is not None and spread.key_mask.shape == (2, 1, 1, 3)
    mixed = layout([3, 1], "mixed")
    assert mixed.slots is not None and mixed.key_mask is not None and mixed.bounds is not None
    for kernel in ("padded", "mixed"):
        even = layout([3, 3], kernel)
        assert even.slots is None and even.key_mask is None
    bounds = layout([3, 1], "varlen").bounds
    assert bounds is not None and bounds.tolist() == [0, 3, 4] and bounds.dtype == torch.int32


@pytest.mark.parametrize(
    ("fields", "dropout", "expected"),
    [
        ({}, 0.0, "varlen"),
        ({"teacher_precision": "int8"}, 0.0, "varlen"),
        ({"precision": "fp16"}, 0.0, "varlen"),
        ({}, 0.1, "mixed"),
        ({"teacher_precision": "fp32"}, 0.0, "mixed"),
        ({"precision": "fp32"}, 0.0, "mixed"),
        ({"attention": "padded"}, 0.0, "padded"),
        ({"attention": "varlen"}, 0.0, "varlen"),
    ],
)
def test_of_a_stage(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], dropout: float, expected: Kernel) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    training = TrainingConfig(steps=1, global_batch_size=1, **fields)
    shape = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    students = [
        EncoderConfig(**shape, intermediate_size=8, attention_probs_dropout_prob=p)  # type: ignore[arg-type]
        for p in (0.0, dropout)
    ]
    assert stage_kernel(training, students, torch.device("cuda", 0)) == expected


@pytest.mark.parametrize("field", ["precision", "teacher_precision"])
def test_varlen_is_refused_in_fp32(field: str) -> None:
    with pytest.raises(ValueError, match=f"16 bits only, and {field} is fp32"):
        TrainingConfig.model_validate({"steps": 1, "global_batch_size": 1, "attention": "varlen", field: "fp32"})


def test_varlen_is_refused_where_there_are_no_such_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    training = TrainingConfig(steps=1, global_batch_size=1, attention="varlen")
    with pytest.raises(ConfigError, match=r"needs a GPU of compute capability 8\.0"):
        check_device(training, Rank(0, 0, 1, CPU), "Stage 'a'")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    check_device(training, Rank(0, 0, 1, torch.device("cuda", 0)), "Stage 'a'")

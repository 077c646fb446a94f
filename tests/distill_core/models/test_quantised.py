"""Linear layers in 8 bits against the same product in fp64, and which layers they take the place of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distill_core.models import quantised
from distill_core.models.quantised import CACHED_ROWS, LastInput, QuantisedLinear, quantise, quantise_layers


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 17), seed=st.integers(0, 99), size=st.floats(1e-6, 1e6))
def test_values_are_off_by_half_a_step_at_most(rows: int, columns: int, seed: int, size: float) -> None:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    kept, scale = quantise(values, "int8")
    assert kept.dtype == torch.int8 and scale.shape == (rows, 1)
    assert ((kept.float() * scale - values).abs() <= 0.5001 * scale).all()
    assert (kept.abs().amax(1) == 127).all()  # the whole range is used in every row


def test_rows_of_zeros_stay_zeros() -> None:
    kept, scale = quantise(torch.zeros(2, 8), "int8")
    assert not kept.any() and torch.isfinite(scale).all()


@pytest.mark.parametrize("rows", [0, 1, 40, CACHED_ROWS + 3])
@pytest.mark.parametrize("bias", [True, False])
def test_product_is_that_of_the_rounded_factors(rows: int, bias: bool) -> None:
    """By integers in fp64: only the last rounding is the layer's own."""
    torch.manual_seed(1)
    linear, x = nn.Linear(24, 16, bias=bias), torch.randn(rows, 24)
    layer = QuantisedLinear(linear, "int8")
    (a, row), (w, out) = quantise(x, "int8") if rows else (x, x[:, :1]), quantise(linear.weight.detach(), "int8")
    expected = (a.double() @ w.double().t()) * row.double() * out.double().t()
    expected += linear.bias.detach().double() if bias else 0.0
    torch.testing.assert_close(layer(x), expected.float(), rtol=1e-5, atol=1e-6)


def test_is_near_the_layer_in_place_of_which_it_stands() -> None:
    torch.manual_seed(2)
    linear, x = nn.Linear(64, 128), torch.randn(50, 64)
    exact = linear(x).detach()
    error = (QuantisedLinear(linear, "int8")(x) - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.02


def test_a_change_of_dtype_is_of_the_outputs_only() -> None:
    layer = QuantisedLinear(nn.Linear(16, 8), "int8").to(torch.bfloat16)
    assert (layer.weight.dtype, layer.scale.dtype) == (torch.int8, torch.float32)
    assert layer(torch.randn(4, 16).bfloat16()).dtype == torch.bfloat16


def test_layers_of_odd_sizes_are_left_as_they_are() -> None:
    inner = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 9), nn.LayerNorm(9))
    assert quantise_layers(inner, "int8") == 1
    assert isinstance(inner[0], QuantisedLinear) and type(inner[2]) is nn.Linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_fp8_product_is_that_of_the_rounded_factors(bias: bool, dtype: torch.dtype) -> None:
    """As the kernel of a GPU is called, carried out on the CPU; its sum is rounded to bf16."""
    torch.manual_seed(3)
    linear, x = nn.Linear(32, 48, bias=bias), torch.randn(40, 32).to(dtype)
    layer = QuantisedLinear(linear, "fp8").to(dtype)
    (a, row), (w, out) = quantise(x, "fp8"), quantise(linear.weight.detach(), "fp8")
    assert a.dtype == w.dtype == layer.weight.dtype == torch.float8_e4m3fn and layer.scale.dtype == torch.float32
    expected = (a.double() @ w.double().t()) * row.double() * out.double().t()
    expected += linear.bias.detach().bfloat16().double() if bias else 0.0
    found = layer(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=2**-9)
    error = (found.double() - linear(x.float()).detach().double()).norm() / expected.norm()
    assert 1e-3 < error < 0.05


def test_layers_with_the_same_input_round_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded: list[torch.Tensor] = []

    def counted(values: torch.Tensor, bits: quantised.Bits) -> tuple[torch.Tensor, torch.Tensor]:
        rounded.append(values)
        return quantise(values, bits)

    monkeypatch.setattr(quantised, "quantise", counted)
    last, (x, y) = LastInput(), torch.randn(2, 5, 16).unbind()
    with torch.inference_mode():
        found = [last.quantised(one, "int8")[0] for one in (x, x, x, y, x)]
    assert [one is wanted for one, wanted in zip(rounded, (x, y, x), strict=True)] == [True] * 3
    assert torch.equal(found[3], quantise(y, "int8")[0]) and torch.equal(found[4], found[0])
    layers = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    quantise_layers(layers, "int8")
    one, other = layers
    assert isinstance(one, QuantisedLinear) and isinstance(other, QuantisedLinear) and one.last is other.last

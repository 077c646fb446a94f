"""Linear layers of a frozen model in 8 bits: the weight has a scale for each output, the input one for each row.

Symmetric, without calibration: w ~ s_o * q with s_o = max |w_o| / top, and the same for each row of the input at run
time (as in LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339, without its columns of outliers). Products are summed in
int32 (int8) or fp32 (fp8, e4m3) and scaled back in fp32.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_core.kernels import few_kernels

Bits = Literal["int8", "fp8"]
TOP = {"int8": 127.0, "fp8": 448.0}
STORED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
MULTIPLE = {"int8": 8, "fp8": 16}
"""Of which both sizes of a weight must be one, as the kernels ask."""
FEWEST_ROWS = 32
"""cuBLAS refuses products of up to 16 rows of int8."""
CACHED_ROWS = 256
"""At a time on a CPU, so that what is wide stays in the processor's cache (1.7x over all rows at once)."""


class LastInput:
    """The last input of some layers in 8 bits: query, key and value get the same one, which is rounded once.

    An input must not be written into between two of them.
    """

    def __init__(self) -> None:
        self._whose: Callable[[], Tensor | None] = lambda: None
        self._found: tuple[Tensor, Tensor] | None = None

    def quantised(self, x: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
        if self._found is None or self._whose() is not x:
            self._found, self._whose = quantise(x, bits), weakref.ref(x)
        return self._found


class QuantisedLinear(nn.Module):
    """In the place of a frozen ``nn.Linear``; takes and gives [M, in] and [M, out] of the dtype of its input."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, bits: Bits, last: LastInput | None = None) -> None:
        """``linear``: in fp32, so that it is rounded once; ``last``: shared with layers of the same input."""
        super().__init__()
        self.bits, self.last = bits, last or LastInput()
        self.out_features, self.in_features = linear.weight.shape
        weight, scale = quantise(linear.weight.detach().float(), bits)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.flatten())
        dtype = torch.bfloat16 if bits == "fp8" else torch.float32  # as the kernels add it
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().to(dtype, copy=True))

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        """Moves to a device as other modules do; of a change of dtype it is spared."""
        kept = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, values in kept.items():
            setattr(self, name, values.to(getattr(self, name).device))
        return self

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" and len(x):
            return self.product(*self.last.quantised(x, self.bits), x.dtype)
        out = x.new_empty(len(x), self.out_features)
        for first in range(0, len(x), CACHED_ROWS):
            some = x[first : first + CACHED_ROWS]
            out[first : first + CACHED_ROWS] = self.product(*quantise(some, self.bits), torch.float32)
        return out

    def product(self, rows: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """[M, out] of inputs in 8 bits [M, in] with the scales of their rows [M, 1]."""
        if self.bits == "fp8":  # by the kernel alone: rounded to bf16 once, with the bias in it
            found = torch._scaled_mm(
                rows, self.weight.t(), scale_a=scale, scale_b=self.scale[None], bias=self.bias, out_dtype=torch.bfloat16
            )
            return found.to(dtype)
        padded = F.pad(rows, (0, 0, 0, FEWEST_ROWS - len(rows))) if len(rows) < FEWEST_ROWS else rows
        return _scaled_back(torch._int_mm(padded, self.weight.t())[: len(rows)], scale, self.scale, self.bias, dtype)


@few_kernels(lambda products, rows, *_: (products, rows))
def _scaled_back(products: Tensor, rows: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    wide = products.float().mul_(rows)
    return (wide.mul_(scale) if bias is None else torch.addcmul(bias, wide, scale)).to(dtype)


@few_kernels(lambda values, bits: (values,))
def quantise(values: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """[R, C] -> 8-bit [R, C] and fp32 [R, 1], of which the product is nearest to ``values``; reckoned in fp32."""
    values = values.float()
    scale = values.abs().amax(1, keepdim=True).clamp_(min=1e-12).div_(TOP[bits])
    scaled = values / scale
    return (scaled.round_() if bits == "int8" else scaled).to(STORED[bits]), scale


def quantise_layers(layers: nn.Module, bits: Bits) -> int:
    """Replace the linear layers in ``layers``, of the sizes that the kernels take; how many they were."""
    found, last = 0, LastInput()
    for parent in list(layers.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and all(size % MULTIPLE[bits] == 0 for size in child.weight.shape):
                setattr(parent, name, QuantisedLinear(child, bits, last))
                found += 1
    return found

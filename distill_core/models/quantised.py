"""Linear layers of a frozen model in 8 bits: the weight has a scale for each output, the input one for each row.

Symmetric, without calibration: w ~ s_o * q with s_o = max |w_o| / top, and the same for each row of the input at run
time (as in LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339, without its columns of outliers). Products are summed in
int32 (int8) or fp32 (fp8, e4m3) and scaled back in fp32.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Bits = Literal["int8", "fp8"]
TOP = {"int8": 127.0, "fp8": 448.0}
STORED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
MULTIPLE = {"int8": 8, "fp8": 16}
"""Of which both sizes of a weight must be one, as the kernels ask."""
FEWEST_ROWS = 32
"""cuBLAS refuses products of up to 16 rows of int8."""
CACHED_ROWS = 256
"""At a time on a CPU, so that what is wide stays in the processor's cache (1.7x over all rows at once)."""


class QuantisedLinear(nn.Module):
    """In the place of a frozen ``nn.Linear``; takes and gives [M, in] and [M, out] of the dtype of its input."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, bits: Bits) -> None:
        """``linear``: in fp32, so that it is rounded once."""
        super().__init__()
        self.bits = bits
        self.out_features, self.in_features = linear.weight.shape
        weight, scale = quantise(linear.weight.detach().float(), bits)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.flatten())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        """Moves to a device as other modules do; of a change of dtype it is spared."""
        kept = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, values in kept.items():
            setattr(self, name, values.to(getattr(self, name).device))
        return self

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_empty(len(x), self.out_features)
        step = CACHED_ROWS if x.device.type == "cpu" else max(1, len(x))
        for first in range(0, len(x), step):
            out[first : first + step] = self._product(x[first : first + step])
        return out

    def _product(self, x: Tensor) -> Tensor:
        """In fp32."""
        rows, scale = quantise(x.float(), self.bits)
        if self.bits == "fp8":
            wide = torch._scaled_mm(
                rows, self.weight.t(), scale_a=scale, scale_b=self.scale[None], out_dtype=torch.bfloat16
            ).float()
            return wide if self.bias is None else wide.add_(self.bias)
        padded = F.pad(rows, (0, 0, 0, FEWEST_ROWS - len(rows))) if len(rows) < FEWEST_ROWS else rows
        wide = torch._int_mm(padded, self.weight.t())[: len(rows)].float().mul_(scale)
        return wide.mul_(self.scale) if self.bias is None else torch.addcmul(self.bias, wide, self.scale)


def quantise(values: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """[R, C] fp32 -> 8-bit [R, C] and fp32 [R, 1], of which the product is nearest to ``values``."""
    scale = values.abs().amax(1, keepdim=True).clamp_(min=1e-12).div_(TOP[bits])
    scaled = values / scale
    return (scaled.round_() if bits == "int8" else scaled).to(STORED[bits]), scale


def quantise_layers(layers: nn.Module, bits: Bits) -> int:
    """Replace the linear layers in ``layers``, of the sizes that the kernels take; how many they were."""
    found = 0
    for parent in list(layers.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and all(size % MULTIPLE[bits] == 0 for size in child.weight.shape):
                setattr(parent, name, QuantisedLinear(child, bits))
                found += 1
    return found

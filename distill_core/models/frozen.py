"""Weights of a frozen model in the order in which the CPU's bf16 products read them.

torch brings the weight of every ``linear`` into oneDNN's order anew at each call, some 13 % of a teacher's products.
The operators are private (``torch.compile`` writes them into what it freezes), so they are tried first, and where a
torch lacks them or answers otherwise nothing changes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """``linear``, which loses its weight, with the bits of its outputs up to the order of sums."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features = linear.out_features
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """The weight as it was: the bits that a teacher is known by."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight.detach().to_dense()

    def forward(self, x: Tensor) -> Tensor:
        if not len(x):
            return x.new_empty(0, self.out_features)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]


def pack(layers: nn.Module) -> None:
    """Replace the bf16 linear maps of frozen ``layers`` on a CPU; anything else is left as it is."""
    for module in list(layers.modules()):
        for name, linear in list(module.named_children()):
            if isinstance(linear, nn.Linear) and _can_be_packed(linear):
                setattr(module, name, PackedLinear(linear))


def _can_be_packed(linear: nn.Linear) -> bool:
    weight = linear.weight
    if weight.requires_grad or weight.dtype != torch.bfloat16 or weight.device.type != "cpu":
        return False
    x = torch.linspace(-1, 1, 2 * linear.in_features, dtype=torch.bfloat16).view(2, -1)
    try:
        found, expected = PackedLinear(linear)(x), F.linear(x, weight, linear.bias)
    except (AttributeError, RuntimeError):  # another torch, or a build without oneDNN
        return False
    most = float(expected.abs().max())
    if not math.isfinite(most):  # damaged weights: training says so, by name
        return False
    return bool(torch.allclose(found, expected, rtol=0.02, atol=0.02 * most))

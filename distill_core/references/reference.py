"""What a batch carries of its references."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class References:
    """R tokens of the references of B sequences, in the sequences' order.

    ``ids``, ``positions``: int64 [R] (positions from 0 in each reference); ``sizes``: int64 [B], 0: no reference;
    ``vectors``: float [R, H_T], the teacher's last hidden state; ``lengths``: ``sizes`` on the host.
    """

    ids: Tensor
    positions: Tensor
    sizes: Tensor
    vectors: Tensor
    lengths: tuple[int, ...]

    @property
    def sequence(self) -> Tensor:
        """int64 [R], the number of each token's sequence."""
        numbers = torch.arange(len(self.lengths), device=self.sizes.device)
        return numbers.repeat_interleave(self.sizes, output_size=sum(self.lengths))

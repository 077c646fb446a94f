"""The end of a bf16 step under ZeRO 1: reduce-scatter, clip, Adam, all-gather, and nothing that the host waits for.

DeepSpeed 0.19 sends these gradients by an all-reduce, of which each rank keeps its part only: with the all-gather of
the weights half as many bytes again as one all-reduce of the gradients. It also reads the norm on the host twice a
step. Here each rank gets the sum of its own part alone (ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054, section 7.2),
so that a step sends as much as one all-reduce; the factor of clipping and the verdict on a step that is not finite stay
on the device, where the fused Adam takes them. On a GPU all of it runs on a stream of its own, beside what the main
one does before the student is used again: the next step's teachers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from distill_core.collectives import communication

if TYPE_CHECKING:
    from distill_core.engine import Rank


class ShardedStep:
    """Works on the flat buffers of DeepSpeed's bf16 optimizer: fp32 gradients, fp32 masters of this rank's part, bf16
    weights.

    Args:
        optimizer: DeepSpeed's, with the accumulated gradients of this rank (it must not reduce them itself).
        adam: fused; its parameters are the masters.
        clipping: largest global norm, 0: none.
        sent: the precision in which gradients travel; they are added up in it.
    """

    def __init__(self, optimizer: Any, adam: torch.optim.AdamW, clipping: float, rank: Rank, sent: torch.dtype) -> None:
        self.optimizer, self.adam, self.clipping, self.rank, self.sent = optimizer, adam, clipping, rank, sent
        self.norm = torch.zeros((), device=rank.device)
        """Global norm of the last step's gradients before clipping."""
        self.skipped = torch.zeros(2, device=rank.device)
        """Steps left out because their gradients were not finite: in all, and in a row up to now."""
        self._stream: torch.cuda.Stream | None = None
        if rank.device.type == "cuda":
            self._stream = torch.cuda.Stream(rank.device)  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def settle(self) -> None:
        """What follows on this stream sees the step's weights. The host does not wait."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    @torch.no_grad()
    def step(self) -> None:
        """Update the weights with the accumulated gradients, and clear these. Collective."""
        with self._beside():
            parts = self.optimizer.fp32_groups_gradient_flat_partition
            for whole, mine in zip(self.optimizer.fp32_groups_gradients_flat, parts, strict=True):
                self._reduce(whole, mine)
            norms = torch.stack([torch.linalg.vector_norm(part) for part in parts])
            self.norm = self.rank.sum((norms * norms).sum()).sqrt()
            lost = (~torch.isfinite(self.norm)).float()
            self.skipped += lost
            self.skipped[1] *= lost  # a step that was taken ends the row
            self._update(parts, lost)
            self.optimizer.update_lp_params()
            self.optimizer.clear_hp_grads()

    def _reduce(self, whole: Tensor, mine: Tensor) -> None:
        """The sum over the ranks of this rank's part of ``whole``, into ``mine`` (a view of it)."""
        if self.rank.world_size == 1:
            return
        sum_of_part = torch.empty_like(mine, dtype=self.sent)
        reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # its older name
        sent = whole.to(self.sent)
        with communication.timed():
            reduce_scatter(sum_of_part, sent)
        mine.copy_(sum_of_part)

    def _update(self, parts: list[Tensor], lost: Tensor) -> None:
        for master, part in zip(self.optimizer.fp32_groups_flat_partition, parts, strict=True):
            master.grad = part
        # The fused kernel divides gradients by the one and does nothing at all where the other is 1.
        scale = (self.norm / self.clipping).clamp(min=1.0) if self.clipping else torch.ones_like(self.norm)
        self.adam.grad_scale, self.adam.found_inf = scale, lost  # type: ignore[attr-defined]
        self.adam.step()

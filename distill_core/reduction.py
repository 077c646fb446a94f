"""The end of a step on the device: reduce, clip, Adam, and nothing that the host waits for.

:class:`WholeStep`: every rank holds all of the parameters in fp32 (ZeRO 0). :class:`ShardedStep`: bf16 under ZeRO 1. In
both the factor of clipping and the verdict on a step that is not finite stay on the device, where the fused Adam takes
them: one pass over gradients for the norm, one for the update.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distill_core.buckets import Bucket, Buckets, buckets_of
from distill_core.collectives import communication

if TYPE_CHECKING:
    from distill_core.engine import Rank


class Step(ABC):
    """What both have in common.

    Args:
        adam: fused; its parameters are what is updated.
        clipping: largest global norm, 0: none.
        sent: the precision in which gradients travel; they are added up in it.
    """

    def __init__(self, adam: torch.optim.AdamW, clipping: float, rank: Rank, sent: torch.dtype) -> None:
        self.adam, self.clipping, self.rank, self.sent = adam, clipping, rank, sent
        self.norm = torch.zeros((), device=rank.device)
        """Global norm of the last step's gradients before clipping."""
        self.skipped = torch.zeros(2, device=rank.device)
        """Steps left out because their gradients were not finite: in all, and in a row up to now."""

    def backward(self, total: Tensor, last: bool) -> None:
        """A micro-step's gradients, added to what is there; ``last``: :meth:`step` comes next."""
        del last
        total.backward()  # type: ignore[no-untyped-call]

    @abstractmethod
    def step(self) -> None:
        """Update the weights with the accumulated gradients, and clear these. Collective."""

    def settle(self) -> None:  # noqa: B027 (nothing to do is right for most)
        """What follows on this stream sees the step's weights. The host does not wait."""

    def close(self) -> None:  # noqa: B027
        """The parameters are as they were, without hooks."""

    def _update(self, norm: Tensor) -> None:
        """AdamW with the gradients, of which ``norm`` is the global norm; nothing where that is not finite."""
        self.norm = norm
        lost = (~torch.isfinite(norm)).float()
        self.skipped += lost
        self.skipped[1] *= lost  # a step that was taken ends the row
        # The fused kernel divides gradients by the one and does nothing at all where the other is 1.
        scale = (norm / self.clipping).clamp(min=1.0) if self.clipping else torch.ones_like(norm)
        self.adam.grad_scale, self.adam.found_inf = scale, lost  # type: ignore[attr-defined]
        self.adam.step()


class WholeStep(Step):
    """All of it on each rank: one all-reduce of the gradients (none for one rank alone), and Adam on the parameters."""

    @torch.no_grad()
    def step(self) -> None:
        parameters = [p for group in self.adam.param_groups for p in group["params"] if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:  # ranks must send the same ones, and Adam's moments fade
                parameter.grad = torch.zeros_like(parameter)
        if self.rank.world_size > 1:
            self._reduce(parameters)
        self._update(torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters]))
        for parameter in parameters:
            parameter.grad = None

    def _reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        """Gradients become views of their sum over the ranks."""
        flat = torch.cat([p.grad.flatten().to(self.sent) for p in parameters if p.grad is not None])
        dist.all_reduce(flat)
        parts = torch.split(flat.to(parameters[0].dtype), [parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)


class ShardedStep(Step):
    """Works on the flat buffers of DeepSpeed's bf16 optimizer: fp32 gradients, fp32 masters of this rank's part, bf16
    weights.

    DeepSpeed 0.19 sends these gradients by an all-reduce, of which each rank keeps its part only: with the all-gather
    of the weights half as many bytes again as one all-reduce of the gradients. It also reads the norm on the host twice
    a step. Here each rank gets the sum of its own part alone (ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054, section
    7.2), so that a step sends as much as one all-reduce. On a GPU all of it runs on a stream of its own: gradients are
    sent beside the rest of the last backward pass (``buckets.py``); norm, Adam and the all-gather of the weights
    run beside what the main stream does before the student is used again, the next step's teachers. For that its
    collectives have DeepSpeed's process group, a second one of all ranks: the counts of the next step go through the
    first, and collectives of one group wait for each other.

    Args:
        optimizer: DeepSpeed's, which must neither accumulate nor reduce gradients itself.
        adam: its parameters are the masters.
    """

    def __init__(self, optimizer: Any, adam: torch.optim.AdamW, clipping: float, rank: Rank, sent: torch.dtype) -> None:
        super().__init__(adam, clipping, rank, sent)
        self.optimizer, self.gradients = optimizer, Gradients(optimizer)
        self.buckets: Buckets | None = None
        self._stream: torch.cuda.Stream | None = None
        if rank.device.type == "cuda":
            self._stream = torch.cuda.Stream(rank.device)  # type: ignore[no-untyped-call]

    def send_early(self, order: Sequence[nn.Parameter]) -> None:
        """From now on send gradients in buckets as they come, and not all at once behind the last backward pass (as on
        a CPU, where nobody else is there to send them).

        Args:
            order: all parameters as the forward pass comes to them.
        """
        self.buckets = Buckets(buckets_of(self.optimizer, order, self.rank.world_size), self._send)
        self.gradients.arrived = self.buckets.arrived

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def settle(self) -> None:
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    def close(self) -> None:
        self.gradients.close()

    def backward(self, total: Tensor, last: bool) -> None:
        if self.buckets is not None and last:
            self.buckets.begin()
        super().backward(total, last)
        if last:
            self._reduce_rest()

    @torch.no_grad()
    def _reduce_rest(self) -> None:
        """What has not been sent yet. Here and not in :meth:`step`: students that are trained side by side share a
        process group, and all ranks must send the same in the same order."""
        with self._beside():
            self.gradients.complete()
            if self.buckets is not None:
                self.buckets.finish()
                return
            parts = self.optimizer.fp32_groups_gradient_flat_partition
            for whole, mine in zip(self.optimizer.fp32_groups_gradients_flat, parts, strict=True):
                self._reduce(whole, mine)

    @torch.no_grad()
    def step(self) -> None:
        with self._beside():
            parts = self.optimizer.fp32_groups_gradient_flat_partition
            norms = torch.stack([torch.linalg.vector_norm(part) for part in parts])
            norm = self.rank.sum((norms * norms).sum(), self._group).sqrt()
            for master, part in zip(self.optimizer.fp32_groups_flat_partition, parts, strict=True):
                master.grad = part
            self._update(norm)
            self.optimizer.update_lp_params()

    def _reduce(self, whole: Tensor, mine: Tensor) -> None:
        """The sum over the ranks of this rank's part of ``whole``, into ``mine`` (a view of it)."""
        if self.rank.world_size == 1:
            return
        sum_of_part = torch.empty_like(mine, dtype=self.sent)
        reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # its older name
        sent = whole.to(self.sent)
        with communication.timed():
            reduce_scatter(sum_of_part, sent, group=self._group)
        mine.copy_(sum_of_part)

    @torch.no_grad()
    def _send(self, bucket: Bucket) -> None:
        """The sum over the ranks of each piece of ``bucket`` to the rank that keeps it."""
        with self._beside():
            for owner, piece in bucket.pieces:
                sent = piece.to(self.sent)
                with communication.timed():
                    dist.reduce(sent, owner, group=self._group)
                if owner == self.rank.rank and sent is not piece:
                    piece.copy_(sent)

    @property
    def _group(self) -> Any:
        return self.optimizer.dp_process_group if self.rank.world_size > 1 else None


class Gradients:
    """Adds the micro-steps' 16-bit gradients up in fp32, each as soon as autograd has made it, and drops it then.

    The first micro-step's are written over what the last step has left, so that nothing has to be cleared.
    """

    def __init__(self, optimizer: Any) -> None:
        """``optimizer``: DeepSpeed's; the sums are views of its flat buffers."""
        self._sums: list[Tensor] = []
        self._begun: list[bool] = []
        self.arrived: Callable[[int], None] = lambda place: None
        """Called with the number of each parameter (through all groups) whose gradient has been added."""
        self._hooks = []
        for parameters, sums in zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients, strict=True):
            for parameter, total in zip(parameters, sums, strict=True):
                take = partial(self._take, len(self._sums))
                self._hooks.append(parameter.register_post_accumulate_grad_hook(take))
                self._sums.append(total.view_as(parameter))
                self._begun.append(False)

    @torch.no_grad()
    def _take(self, place: int, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        if self._begun[place]:
            self._sums[place].add_(parameter.grad)
        else:
            self._sums[place].copy_(parameter.grad)
            self._begun[place] = True
        parameter.grad = None
        self.arrived(place)

    def complete(self) -> None:
        """No gradient came: zero. The next one begins a new sum."""
        for place, begun in enumerate(self._begun):
            if not begun:
                self._sums[place].zero_()
            self._begun[place] = False

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

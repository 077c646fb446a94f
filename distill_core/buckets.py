"""Gradients that are sent while the backward pass goes on: which go together, and when.

A bucket is a run of parameters in the flat buffer of DeepSpeed's bf16 optimizer, and is sent when the last gradient of
the run has come. Which rank keeps which part of the buffer is given (equal shares of it in order), so each piece of a
bucket is reduced to its rank; together that is as many bytes as one reduce-scatter of the buffer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

SIZE = 2**21
"""Entries from which on a bucket is full: 4 MiB in bf16. Not measured."""


@dataclass(frozen=True)
class Bucket:
    places: tuple[int, ...]
    """The numbers of its parameters, through all groups."""
    pieces: tuple[tuple[int, Tensor], ...]
    """(rank, its part: a view of the flat gradients)."""


def buckets_of(optimizer: Any, order: Sequence[nn.Parameter], ranks: int) -> list[Bucket]:
    """In the order in which backward passes fill them.

    Args:
        optimizer: DeepSpeed's bf16 one.
        order: all parameters as the forward pass comes to them.
    """
    turn = {id(parameter): number for number, parameter in enumerate(order)}
    found: list[tuple[int, Bucket]] = []
    first = 0
    for parameters, flat in zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients_flat, strict=True):
        end = sum(parameter.numel() for parameter in parameters)
        stop, begin = len(parameters), end
        for place in reversed(range(len(parameters))):
            begin -= parameters[place].numel()
            if end - begin >= SIZE or place == 0:
                earliest = min(turn[id(parameter)] for parameter in parameters[place:stop])
                places = tuple(range(first + place, first + stop))
                found.append((earliest, Bucket(places, _pieces(flat, begin, end, ranks))))
                stop, end = place, begin
        first += len(parameters)
    return [bucket for _, bucket in sorted(found, key=lambda each: each[0], reverse=True)]


def _pieces(flat: Tensor, begin: int, end: int, ranks: int) -> tuple[tuple[int, Tensor], ...]:
    share = flat.numel() // ranks
    cuts = [begin, *(border for border in range(share, flat.numel(), share) if begin < border < end), end]
    return tuple((low // share, flat[low:high]) for low, high in itertools.pairwise(cuts))


class Buckets:
    """The buckets of one step: each is sent when it is full, and never before one that stands ahead of it.

    So all ranks send them in the same order, also where some parameter has no gradient on one of them.
    """

    def __init__(self, buckets: Sequence[Bucket], send: Callable[[Bucket], None]) -> None:
        self._buckets, self._send = buckets, send
        self._of = {place: number for number, bucket in enumerate(buckets) for place in bucket.places}
        self._missing: list[int] = []
        self._next = len(buckets)

    def begin(self) -> None:
        """The last backward pass begins: from now on gradients are complete when they come."""
        self._missing = [len(bucket.places) for bucket in self._buckets]
        self._next = 0

    def arrived(self, place: int) -> None:
        """The gradient of parameter ``place`` has come; nothing happens before :meth:`begin`."""
        if self._next == len(self._buckets):
            return
        self._missing[self._of[place]] -= 1
        while self._next < len(self._buckets) and not self._missing[self._next]:
            self._send(self._buckets[self._next])
            self._next += 1

    def finish(self) -> None:
        """Send those that did not become full."""
        for bucket in self._buckets[self._next :]:
            self._send(bucket)
        self._next = len(self._buckets)

"""Shards -> batches.

Sample s of a run is sequence ``order(seed, epoch)[s mod n]`` with epoch = s div n: a pure function, so the
data position of a run is one number and no shuffled index is ever stored. An optimiser step takes the next
``global_batch_size`` samples; :func:`cut` deals them to ranks and micro-steps by token count.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from configs.errors import DataError
from data_prep.corpus import Split
from distill_core.batch import Batch
from distill_core.buffers import Buffers
from distill_core.models.attention import Kernel, layout

Ints = NDArray[np.int64]
Order = Literal["shuffled", "corpus"]


# ---------------------------------------------------------------- order

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(index: Ints, n: int, seed: int, epoch: int) -> Ints:
    """The image of ``index`` (int64, each in [0, n)) under the epoch's permutation of [0, n).

    A four-round Feistel network on the smallest even number of bits that holds n - 1; values that fall
    outside [0, n) are encrypted again (cycle walking), so the map is a bijection for every n and needs no memory.
    """
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    with np.errstate(over="ignore"):
        base = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64) + _GOLDEN * np.uint64(epoch + 1))
        keys = [_mix(base + _GOLDEN * np.uint64(r + 1))[0] for r in range(4)]

        def encrypt(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
            left, right = x >> half, x & low
            for key in keys:
                left, right = right, left ^ (_mix(right + key) & low)
            return (left << half) | right

        out = encrypt(np.asarray(index, np.int64).astype(np.uint64))
        outside = out >= n
        while outside.any():
            out[outside] = encrypt(out[outside])
            outside = out >= n
    return out.astype(np.int64)


def samples(start: int, count: int, n: int, seed: int, order: Order = "shuffled") -> tuple[Ints, Ints]:
    """(sequence index, epoch), both int64 [count], of the samples ``start`` ... of a run over n sequences."""
    position = np.arange(start, start + count, dtype=np.int64)
    epoch, place = position // n, position % n
    if order == "corpus":
        return place, epoch
    index = np.empty_like(place)
    for e in np.unique(epoch):
        here = epoch == e
        index[here] = permute(place[here], n, seed, int(e))
    return index, epoch


# ---------------------------------------------------------------- cutting


def cut(lengths: NDArray[np.integer], world_size: int, micro_batch_tokens: int) -> list[list[Ints]]:
    """Deal the sequences of a step to ``bins[micro_step][rank]`` (positions in ``lengths``, longest first).

    Every rank has the same number of micro-steps, the smallest for which the longest-first greedy deal
    keeps each bin within ``micro_batch_tokens``; no bin is empty.

    Raises:
        DataError: when that cannot be done.
    """
    n, total = len(lengths), int(lengths.sum())
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    sizes = lengths[order].tolist()
    if n and sizes[0] > micro_batch_tokens:
        raise DataError(
            f"A batch cannot be cut: a sequence has {sizes[0]} tokens, but micro_batch_tokens is "
            f"{micro_batch_tokens}; raise it."
        )
    micro_steps = max(1, -(-total // (world_size * micro_batch_tokens)))
    while micro_steps * world_size <= n:
        bins, loads = _deal(sizes, micro_steps * world_size)
        if max(loads) <= micro_batch_tokens:
            ranked = sorted(range(len(bins)), key=lambda b: (-loads[b], b))
            full = [order[bins[b]] for b in ranked]
            return [full[m * world_size : (m + 1) * world_size] for m in range(micro_steps)]
        micro_steps += 1
    raise DataError(
        f"A batch cannot be cut: {n} sequences with {total} tokens do not fill {world_size} ranks with micro-batches "
        f"of at most {micro_batch_tokens} tokens. Raise global_batch_size to a multiple of the ranks, or raise "
        "micro_batch_tokens."
    )


def _deal(sizes: list[int], n_bins: int) -> tuple[list[list[int]], list[int]]:
    """Longest first, each into the emptiest bin (ties: the lowest number)."""
    heap = [(0, b) for b in range(n_bins)]
    bins: list[list[int]] = [[] for _ in range(n_bins)]
    loads = [0] * n_bins
    for place, size in enumerate(sizes):
        load, b = heapq.heappop(heap)
        bins[b].append(place)
        loads[b] = load + size
        heapq.heappush(heap, (loads[b], b))
    return bins, loads


# ---------------------------------------------------------------- batches


class Source(Protocol):
    """What batches are made of: the sequences of a corpus's split, or the rows of a task."""

    def __len__(self) -> int: ...

    def lengths(self, index: Ints) -> NDArray[np.int32]: ...

    def batch(self, index: Ints, epochs: Ints, kernel: Kernel) -> Batch: ...


@dataclass(frozen=True)
class CorpusSource:
    """A split of a prepared corpus. ``sampled``: the share of the rows that are sampled, None: none are."""

    split: Split
    seed: int = 0
    sampled: float | None = None
    buffers: Buffers = field(default_factory=Buffers, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.split)

    def lengths(self, index: Ints) -> NDArray[np.int32]:
        return self.split.lengths(index)

    def batch(self, index: Ints, epochs: Ints, kernel: Kernel) -> Batch:
        """The masked batch of the sequences ``index`` (in this order); epoch e sees mask view e.

        Raises:
            DataError: a shard is damaged.
        """
        masked = self.split.masked(index, epochs, self.buffers)
        for ids in (masked.ids.view(np.uint32), masked.labels):
            check_ids(ids, self.split.vocab_size)
        lengths = np.diff(masked.offsets)
        names, sampled = masked.sequence_ids, None
        if self.sampled is not None:
            rows = sampled_rows(names, epochs, lengths, masked.positions, self.seed, self.sampled)
            sampled = torch.from_numpy(rows)
        ours = torch.from_numpy
        return Batch(
            ours(masked.ids),
            ours(masked.positions),
            layout(lengths.tolist(), kernel),
            types=None if masked.types is None else ours(masked.types),
            rows=ours(masked.rows),
            labels=ours(masked.labels),
            sampled=sampled,
            order=None if masked.order is None else ours(masked.order),
            sequence_ids=names,
        )


def check_ids(ids: NDArray[np.integer], vocab_size: int) -> None:
    """Raise DataError when there is an id beyond the vocabulary: a model would read what lies behind its table."""
    largest = int(ids.max(initial=0))
    if largest >= vocab_size:
        raise DataError(
            f"A shard holds the token id {largest}, but the vocabulary has {vocab_size} entries. `distill data verify` "
            "lists damaged files; delete their shard folders and the manifest.json of the data folder and run "
            "`distill prep`, which makes them anew."
        )


def sampled_rows(
    names: NDArray[np.uint64], epochs: Ints, lengths: Ints, positions: NDArray[np.integer], seed: int, share: float
) -> Ints:
    """int64, rows of a stream drawn with probability ``share`` by a hash of (seed, sequence id, epoch, position)."""
    with np.errstate(over="ignore"):
        keys = _mix(names + _GOLDEN * np.uint64(seed & 0xFFFFFFFF))
        keys = _mix(keys + _GOLDEN * (epochs + 1).astype(np.uint64))
        drawn = _mix(np.repeat(keys, lengths) + _GOLDEN * (positions.astype(np.uint64) + np.uint64(1)))
    return np.flatnonzero(drawn < np.uint64(min(share * 2.0**64, 2.0**64 - 2048)))


@dataclass
class Step:
    """This rank's micro-batches of one optimiser step."""

    number: int
    epoch: float
    batches: list[Batch]


@dataclass(frozen=True)
class Loader:
    """Training steps of one rank, from any step on."""

    source: Source
    seed: int
    global_batch_size: int
    micro_batch_tokens: int
    rank: int
    world_size: int
    kernel: Kernel
    order: Order = "shuffled"
    ahead: int = 2
    threads: int = 1
    pinned: bool = False

    def step(self, number: int) -> Step:
        """Step ``number`` (0-based): a pure function of it and of the settings."""
        n = len(self.source)
        index, epoch = samples(number * self.global_batch_size, self.global_batch_size, n, self.seed, self.order)
        bins = cut(self.source.lengths(index), self.world_size, self.micro_batch_tokens)
        mine = [micro[self.rank] for micro in bins]
        batches = [self.source.batch(index[places], epoch[places], self.kernel) for places in mine]
        return Step(number, (number + 1) * self.global_batch_size / n, batches)

    def steps(self, first: int, last: int) -> Iterator[tuple[Step, float]]:
        """Steps ``first`` to ``last - 1``, each with the seconds spent waiting for it.

        Up to ``ahead`` steps are prepared by ``threads`` threads while one is trained on (the kernels that read and
        mask hold no lock of Python's). An error is raised when its step's turn comes. With ``pinned`` the batches lie
        in page-locked memory, out of which the device fetches them by itself.
        """
        coming: deque[Future[Step]] = deque()
        numbers = iter(range(first, last))
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="loader")
        try:
            for _ in range(first, last):
                while len(coming) <= self.ahead and (number := next(numbers, None)) is not None:
                    coming.append(pool.submit(self._prepared, number))
                began = time.perf_counter()
                step = coming.popleft().result()
                yield step, time.perf_counter() - began
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepared(self, number: int) -> Step:
        step = self.step(number)
        return replace(step, batches=[batch.pin_memory() for batch in step.batches]) if self.pinned else step


def held_out_batches(
    source: Source, limit: int, seed: int, micro_batch_tokens: int, rank: int, world_size: int, kernel: Kernel
) -> Iterator[Batch]:
    """This rank's share of ``limit`` sequences of ``source``: the same ones at every evaluation.

    A corpus is seen under mask view 0.
    """
    index, _ = samples(0, min(limit, len(source)), len(source), seed)
    try:
        bins = cut(source.lengths(index), world_size, micro_batch_tokens)
    except DataError:  # too few to give every rank one; whole copies leave the means as they are
        index = np.tile(index, world_size)
        bins = cut(source.lengths(index), world_size, micro_batch_tokens)
    for micro in bins:
        mine = index[micro[rank]]
        yield source.batch(mine, np.zeros(len(mine), np.int64), kernel)

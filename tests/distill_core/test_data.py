from __future__ import annotations

import threading
import time
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from data_prep.corpus import Corpus
from distill_core.batch import Batch, Stored
from distill_core.data import CorpusSource, Loader, Step, cut, held_out_batches, permute, samples

SEEDS = st.integers(0, 2**63 - 1)

# ---------------------------------------------------------------- order


@given(n=st.integers(1, 3000), seed=SEEDS, epoch=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_permute_is_a_bijection(n: int, seed: int, epoch: int) -> None:
    image = permute(np.arange(n), n, seed, epoch)
    assert image.dtype == np.int64
    assert np.array_equal(np.sort(image), np.arange(n))


@given(n=st.integers(2**20, 2**62), seed=SEEDS, epoch=st.integers(0, 1000), start=st.integers(0, 2**20 - 64))
@settings(max_examples=60, deadline=None)
def test_permute_of_huge_corpora_stays_inside_and_never_collides(n: int, seed: int, epoch: int, start: int) -> None:
    image = permute(np.arange(start, start + 64), n, seed, epoch)
    assert len(np.unique(image)) == 64
    assert image.min() >= 0 and image.max() < n


@given(n=st.integers(2, 500), seed=SEEDS, epoch=st.integers(0, 50), data=st.data())
@settings(max_examples=40, deadline=None)
def test_permute_is_a_function_of_each_index_alone(n: int, seed: int, epoch: int, data: st.DataObject) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=20)), np.int64)
    before = index.copy()
    assert np.array_equal(permute(index, n, seed, epoch), permute(np.arange(n), n, seed, epoch)[index])
    assert np.array_equal(index, before)


def test_orders_differ_by_seed_and_epoch_and_look_shuffled() -> None:
    n = 2000
    orders = [permute(np.arange(n), n, seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    for i, a in enumerate(orders):
        assert abs(np.corrcoef(np.arange(n), a)[0, 1]) < 0.1
        for b in orders[:i]:
            assert (a == b).mean() < 0.01
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.1


@given(n=st.integers(1, 60), start=st.integers(0, 500), count=st.integers(0, 200), seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_samples_are_epoch_after_epoch(n: int, start: int, count: int, seed: int) -> None:
    index, epoch = samples(start, count, n, seed)
    assert epoch.tolist() == [(start + i) // n for i in range(count)]
    expected = [permute(np.arange(n), n, seed, e)[p] for e in np.unique(epoch) for p in range(n)]
    first = start - int(epoch[0]) * n if count else 0
    assert index.tolist() == [int(x) for x in expected[first : first + count]]


@given(n=st.integers(1, 60), start=st.integers(0, 500), counts=st.lists(st.integers(0, 50), max_size=5), seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_samples_do_not_depend_on_how_they_are_asked_for(n: int, start: int, counts: list[int], seed: int) -> None:
    whole, epochs = samples(start, sum(counts), n, seed)
    at, parts = start, []
    for count in counts:
        parts.append(samples(at, count, n, seed))
        at += count
    assert [i for index, _ in parts for i in index.tolist()] == whole.tolist()
    assert [e for _, epoch in parts for e in epoch.tolist()] == epochs.tolist()


# ---------------------------------------------------------------- cutting


@given(
    lengths=st.lists(st.integers(1, 64), min_size=1, max_size=80),
    world_size=st.integers(1, 5),
    micro_batch_tokens=st.integers(1, 400),
)
@settings(max_examples=300, deadline=None)
def test_cut_deals_every_sequence_once_within_the_budget(
    lengths: list[int], world_size: int, micro_batch_tokens: int
) -> None:
    sizes = np.array(lengths, np.int32)
    try:
        bins = cut(sizes, world_size, micro_batch_tokens)
    except DataError:
        # Never where the sequences are enough for bins so many that a greedy deal must fit (Graham 1969: its fullest
        # bin exceeds the mean by less than the longest item).
        bins_possible = len(lengths) // world_size * world_size
        assert bins_possible == 0 or sum(lengths) / bins_possible + max(lengths) > micro_batch_tokens
        return
    assert all(len(micro) == world_size for micro in bins)
    places = [int(p) for micro in bins for mine in micro for p in mine]
    assert sorted(places) == list(range(len(lengths)))
    for micro in bins:
        for mine in micro:
            own = sizes[mine]
            assert len(own) > 0
            assert own.sum() <= micro_batch_tokens
            assert (np.diff(own) <= 0).all()  # longest first: long runs of equal lengths
    assert len(bins) >= -(-sum(lengths) // (world_size * micro_batch_tokens))


@given(lengths=st.lists(st.integers(1, 64), min_size=8, max_size=80), world_size=st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_cut_needs_one_micro_step_where_the_budget_is_ample(lengths: list[int], world_size: int) -> None:
    bins = cut(np.array(lengths), world_size, 64 * 80)
    assert len(bins) == 1
    loads = [sum(lengths[p] for p in mine) for mine in bins[0]]
    assert max(loads) - min(loads) <= max(lengths)  # balanced: ranks wait little for one another


def test_a_sequence_longer_than_the_budget() -> None:
    with pytest.raises(DataError, match=r"cannot be cut: a sequence has 70 tokens, but micro_batch_tokens is 64"):
        cut(np.array([3, 70]), 1, 64)


@pytest.mark.parametrize(("lengths", "world_size", "tokens"), [([5, 5], 3, 64), ([9, 9, 9], 2, 10), ([], 1, 10)])
def test_too_few_sequences_for_the_ranks(lengths: list[int], world_size: int, tokens: int) -> None:
    with pytest.raises(DataError, match="cannot be cut"):
        cut(np.array(lengths, np.int32), world_size, tokens)


# ---------------------------------------------------------------- batches


def loader(corpus: Corpus, rank: int, world_size: int, tokens: int = 300) -> Loader:
    return Loader(CorpusSource(corpus.split("train")), 11, 24, tokens, rank, world_size, "runs")


def masked_sequences(batch: Batch) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """(ids, masked positions, labels) of each sequence of a batch."""
    out, start = [], 0
    for length in batch.layout.lengths:
        here = (batch.rows >= start) & (batch.rows < start + length)
        places = (batch.rows[here] - start).tolist()
        ids, labels = batch.ids[start : start + length].tolist(), batch.labels[here].tolist()
        out.append((tuple(ids), tuple(places), tuple(labels)))
        start += length
    return out


def test_a_step_is_the_same_whatever_the_ranks_and_the_budget(tiny_corpus: Corpus) -> None:
    n = len(tiny_corpus.split("train"))
    numbers = [0, 1, n // 24, 2 * n // 24 + 1]  # within the first epochs, over their ends
    for number in numbers:
        found = []
        for world_size, tokens in ((1, 300), (2, 300), (3, 120), (1, 4000)):
            steps = [loader(tiny_corpus, rank, world_size, tokens).step(number) for rank in range(world_size)]
            assert len({len(step.batches) for step in steps}) == 1
            batches = [batch for step in steps for batch in step.batches]
            assert all(0 < batch.n_tokens <= tokens for batch in batches)
            found.append(sorted(sequence for batch in batches for sequence in masked_sequences(batch)))
        assert len(found[0]) == 24
        assert all(other == found[0] for other in found)


def test_one_epoch_holds_every_sequence_once(tiny_corpus: Corpus) -> None:
    split = tiny_corpus.split("train")
    index, epoch = samples(0, 2 * len(split), len(split), 11)
    for e in (0, 1):
        assert np.array_equal(np.sort(index[epoch == e]), np.arange(len(split)))


def test_a_batch_is_a_stream_of_real_tokens(tiny_corpus: Corpus) -> None:
    split, special = tiny_corpus.split("train"), tiny_corpus.special_ids
    index = np.array([5, 0, 17], np.int64)
    batch = CorpusSource(split).batch(index, np.array([0, 1, 0]), "runs")
    lengths = split.lengths(index).tolist()
    assert list(batch.layout.lengths) == lengths and batch.n_tokens == sum(lengths)
    start = 0
    for length, number, view in zip(lengths, index, (0, 1, 0), strict=True):
        ids = batch.ids[start : start + length].long()
        assert ids[0] == special["cls"] and ids[-1] == special["sep"]
        assert batch.positions[start : start + length].tolist() == list(range(length))
        original = torch.from_numpy(split.gather(np.array([number])).ids.astype(np.int64))
        here = (batch.rows >= start) & (batch.rows < start + length)
        places, labels = batch.rows[here] - start, batch.labels[here]
        assert torch.equal(original[places], labels)
        restored = ids.clone()
        restored[places] = labels
        assert torch.equal(restored, original)
        masks = split.masks(np.array([number]), np.array([view]))
        assert places.tolist() == masks.positions.tolist() and ids[places].tolist() == masks.ids.tolist()
        start += length
    assert special["pad"] not in batch.ids.tolist()
    assert not set(special.values()) & set(batch.labels.tolist())


def test_epochs_see_other_masks(tiny_corpus: Corpus) -> None:
    split = tiny_corpus.split("train")
    index = np.arange(50, dtype=np.int64)
    rows = [CorpusSource(split).batch(index, np.full(50, view), "runs").rows.tolist() for view in (0, 1, 2)]
    assert rows[0] != rows[1]
    assert rows[0] == rows[2]  # two stored views: epoch 2 uses view 0 again


def test_held_out_evaluation_takes_the_same_sequences_on_any_ranks(tiny_corpus: Corpus) -> None:
    split = tiny_corpus.split("held_out")
    found = []
    for world_size, tokens in ((1, 200), (2, 150), (3, 500)):
        batches = [
            batch
            for rank in range(world_size)
            for batch in held_out_batches(CorpusSource(split), 30, 11, tokens, rank, world_size, "runs")
        ]
        found.append(sorted(sequence for batch in batches for sequence in masked_sequences(batch)))
    assert len(found[0]) == 30 and found[0] == found[1] == found[2]
    everything = list(held_out_batches(CorpusSource(split), 10**6, 11, 500, 0, 1, "runs"))
    assert sum(len(batch.layout.lengths) for batch in everything) == len(split)


# ---------------------------------------------------------------- the loader's thread


def test_steps_come_in_order_from_any_first_step(tiny_corpus: Corpus) -> None:
    ours = loader(tiny_corpus, 0, 1)
    found = list(ours.steps(3, 7))
    assert [step.number for step, _ in found] == [3, 4, 5, 6]
    assert all(wait >= 0 for _, wait in found)
    for step, _ in found:
        again = ours.step(step.number)
        assert step.epoch == again.epoch
        for a, b in zip(step.batches, again.batches, strict=True):
            assert torch.equal(a.ids, b.ids) and torch.equal(a.rows, b.rows) and torch.equal(a.labels, b.labels)
    assert list(ours.steps(5, 5)) == []


def test_an_error_in_the_thread_reaches_the_training_loop(tiny_corpus: Corpus) -> None:
    with pytest.raises(DataError, match="a sequence has"):
        list(loader(tiny_corpus, 0, 1, tokens=3).steps(0, 2))


def test_leaving_early_stops_the_thread(tiny_corpus: Corpus) -> None:
    steps = replace(loader(tiny_corpus, 0, 1), threads=3, ahead=5).steps(0, 10**9)
    next(steps)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("loader")]
    steps.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


@pytest.mark.parametrize(("threads", "ahead"), [(1, 1), (3, 1), (2, 7), (4, 4)])
def test_threads_and_depth_change_nothing(tiny_corpus: Corpus, threads: int, ahead: int) -> None:
    """Under another number of threads, with all steps kept: no buffer is written over."""
    ours = replace(loader(tiny_corpus, 0, 1, tokens=4000), threads=threads, ahead=ahead)
    found = [step for step, _ in ours.steps(0, 30)]
    assert [step.number for step in found] == list(range(30))
    for step in found:
        for a, b in zip(step.batches, ours.step(step.number).batches, strict=True):
            assert all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("ids", "positions", "rows", "labels"))


def test_no_more_steps_are_prepared_than_asked_for(tiny_corpus: Corpus) -> None:
    prepared: list[int] = []

    class Counting(Loader):
        def step(self, number: int) -> Step:
            prepared.append(number)
            return super().step(number)

    plain = loader(tiny_corpus, 0, 1)
    counting = Counting(*(getattr(plain, f.name) for f in fields(plain)))
    steps = replace(counting, ahead=3).steps(0, 50)
    for done in range(1, 6):
        next(steps)
        time.sleep(0.05)
        assert len(prepared) <= done + 3
    assert prepared == list(range(8))


def test_an_error_waits_for_its_turn(tiny_corpus: Corpus) -> None:
    class Failing(Loader):
        def step(self, number: int) -> Step:
            if number == 2:
                raise DataError("step 2")
            return super().step(number)

    plain = loader(tiny_corpus, 0, 1)
    steps = replace(Failing(*(getattr(plain, f.name) for f in fields(plain))), ahead=4, threads=2).steps(0, 9)
    assert [next(steps)[0].number for _ in range(2)] == [0, 1]
    with pytest.raises(DataError, match="step 2"):
        next(steps)


def test_moving_leaves_no_tensor_behind(tiny_corpus: Corpus) -> None:
    """``meta`` stands for a device: whatever tensor a batch has must be there, and counts must not need it."""
    source = CorpusSource(tiny_corpus.split("train"), sampled=0.2)
    batch = source.batch(np.arange(4), np.zeros(4, np.int64), "padded")
    batch.targets, batch.task = torch.where(batch.ids % 2 == 0, -100, 1), "tokens"
    batch.stored = (Stored(torch.zeros(3), {1: torch.zeros(2)}),)
    batch.own = {1: Batch.of([[1, 2, 3]])}
    moved = batch.to(torch.device("meta"))
    assert moved.counts() == batch.counts() and batch.counts()["targets"] > 0

    def tensors(thing: object) -> list[torch.Tensor]:
        if isinstance(thing, torch.Tensor):
            return [thing]
        if isinstance(thing, dict):
            return [t for value in thing.values() for t in tensors(value)]
        if isinstance(thing, tuple):
            return [t for value in thing for t in tensors(value)]
        return [t for f in fields(thing) for t in tensors(getattr(thing, f.name))] if is_dataclass(thing) else []

    assert len(tensors(moved)) == len(tensors(batch)) > 12
    assert {t.device.type for t in tensors(moved)} == {"meta"}

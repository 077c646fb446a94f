"""The kernels that read: against slices by numpy, and never a byte behind a file."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_prep.checks import CONTENT, INDEX, PARTS, known, unread
from data_prep.corpus import Corpus
from data_prep.gathering import gather
from data_prep.mapped import OUTSIDE, Arrays, Mapped, find
from data_prep.masking import MaskRule, drawn

CLS, SEP = 7, 8
RULE = MaskRule(rate=0.15, mask=0.8, random=0.1, mask_id=4, vocab_size=300, special_ids=(0, 1, 2, 3, 4))


def at_the_edge(array: NDArray[Any]) -> NDArray[Any]:
    """A copy whose last byte is the last of a page, before one that cannot be read."""
    pages = -(-array.nbytes // mmap.PAGESIZE)
    room = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    everything = np.frombuffer(room, np.uint8)
    protect, last = ctypes.CDLL(None).mprotect, everything.ctypes.data + pages * mmap.PAGESIZE
    assert protect(ctypes.c_void_p(last), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    copy = everything[pages * mmap.PAGESIZE - array.nbytes : pages * mmap.PAGESIZE].view(array.dtype)
    copy[:] = array.ravel()
    return copy.reshape(array.shape)


def shard(tokens: NDArray[Any], continues: NDArray[np.bool_], rows: list[list[tuple[int, int]]]) -> Arrays:
    """Sequences of pieces (start, count) over these tokens."""
    pieces = np.array([piece for row in rows for piece in row], np.int64).reshape(-1, 2)
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    bits = np.packbits(continues, bitorder="little")
    return Arrays(*(at_the_edge(array) for array in (tokens, bits, offsets, pieces)))


def random_shard(rng: np.random.Generator, dtype: type, specials: float) -> tuple[Arrays, list[list[tuple[int, int]]]]:
    """One with pieces of all lengths; some end where the file does."""
    n = int(rng.integers(1, 700))
    tokens = np.where(rng.random(n) < specials, 1, rng.integers(5, 300, n)).astype(dtype)
    rows = []
    for _ in range(int(rng.integers(1, 12))):
        starts = rng.integers(0, n + 1, int(rng.integers(1, 4))).tolist()
        rows.append([(a, n - a if rng.random() < 0.3 else int(rng.integers(0, n - a + 1))) for a in starts])
    return shard(tokens, rng.random(n) < 0.4, rows), rows


@given(st.integers(0, 2**32), st.sampled_from([np.uint16, np.uint32]))
@settings(max_examples=60, deadline=None)
def test_a_batch_is_slices(seed: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    shards, rows = zip(*[random_shard(rng, dtype, 0) for _ in range(int(rng.integers(1, 6)))], strict=True)
    mapped, places = Mapped(shards, dtype is np.uint32, False), [(s, row) for s in range(len(rows)) for row in rows[s]]
    bases = np.arange(len(shards), dtype=np.uint64) << np.uint64(32)
    index = rng.integers(0, len(places), 20)
    owner, local, offsets, names, bad = find(mapped.table, bases, index)
    assert bad == -1 and [places[i][0] for i in index] == owner.tolist() == (names >> np.uint64(32)).tolist()
    assert (names & np.uint64(2**32 - 1)).tolist() == local.tolist() == (index - mapped.starts[owner]).tolist()
    ids, bits = np.zeros(offsets[-1], dtype), np.zeros((offsets[-1] + 63) // 64, np.uint64)
    none, no_bits = (np.zeros(0, np.uint8), np.zeros(0, np.int64)), np.zeros(0, np.uint64)
    gather(mapped.table, owner, local, offsets, (CLS, SEP), ids, bits, *none)
    plain = np.zeros_like(ids)
    gather(mapped.table, owner, local, offsets, (CLS, SEP), plain, no_bits, *none)
    expected, continues = list[int](), list[bool]()
    for s, row in (places[i] for i in index):
        inner = [bool(b) for b in np.unpackbits(shards[s].bits, bitorder="little")]
        expected += [CLS, *(token for a, n in row for token in shards[s].tokens[a : a + n].tolist()), SEP]
        continues += [False, *(b and k > 0 for a, n in row for k, b in enumerate(inner[a : a + n])), False]
    assert ids.tolist() == plain.tolist() == expected
    assert np.unpackbits(bits.view(np.uint8), count=len(ids), bitorder="little").tolist() == continues


def test_a_batch_of_what_is_not_there() -> None:
    arrays, rows = random_shard(np.random.default_rng(0), np.uint16, 0)
    mapped, bases = Mapped([arrays], False, False), np.zeros(1, np.uint64)
    for wrong in (-1, len(rows)):
        assert find(mapped.table, bases, np.array([0, wrong]))[-1] == OUTSIDE
    arrays.offsets[len(rows)] = 1 << 40
    assert find(mapped.table, bases, np.array([0, len(rows) - 1]))[-1] == 0


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.01, 0.3]))
@settings(max_examples=30, deadline=None)
def test_masks_do_not_depend_on_the_type_of_tokens(seed: int, specials: float) -> None:
    found = []
    for dtype in (np.uint16, np.uint32):
        rng = np.random.default_rng(seed)
        arrays, rows = random_shard(rng, dtype, specials)
        n = np.arange(len(rows))
        found.append(drawn(Mapped([arrays], dtype is np.uint32, False), RULE, 3, n, n.astype(np.uint64), n))
    for field in ("offsets", "positions", "ids"):
        assert np.array_equal(*(getattr(masks, field) for masks in found))


def test_what_is_known_is_what_is_not_unread(kind_corpus: Corpus) -> None:
    part = Corpus.open(kind_corpus.folder).split("train")
    assert part._touched is not None
    table, blocks, rng = part._mapped.table, part._touched.blocks, np.random.default_rng(0)
    for share in (0.0, 0.5, 0.9, 1.0):
        blocks.state[:] = rng.random(len(blocks.state)) < share
        for number in range(0, len(part), 7):
            owner, local, *_ = find(table, part._bases, np.array([number]))
            left = [len(unread(table, tuple(blocks), stage, owner, local)) for stage in (INDEX, PARTS, CONTENT)]
            assert known(table, tuple(blocks), False, owner, local) == (sum(left[:2]) == 0)
            assert known(table, tuple(blocks), True, owner, local) == (sum(left) == 0)

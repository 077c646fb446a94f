from __future__ import annotations

import errno
import os
import random
import resource
import signal
import struct
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError, OutputError
from data_prep import shards
from data_prep.shards import (
    ShardWriter,
    allow_open_files,
    map_array,
    read_index,
    read_manifest,
    shard_trouble,
)

U16, U32 = np.dtype(np.uint16), np.dtype(np.uint32)


def document(*sizes: int, start: int = 10) -> list[tuple[np.ndarray, np.ndarray]]:
    out = []
    for size in sizes:
        ids = np.arange(start, start + size)
        out.append((ids, ids % 3 == 1))
        start += size
    return out


def add(writer: ShardWriter, *documents: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Into the training split, all at once; empty sentences and documents are left out."""
    kept = [[pair for pair in one if len(pair[0])] for one in documents]
    kept = [one for one in kept if one]
    flat = [pair for one in kept for pair in one]
    ids = np.concatenate([np.zeros(0, writer.dtype), *(ids.astype(writer.dtype) for ids, _ in flat)])
    bits = np.concatenate([np.zeros(0, np.bool_), *(bits for _, bits in flat)])
    lengths, sizes = np.array([len(ids) for ids, _ in flat], np.int32), np.array([len(one) for one in kept], np.int64)
    writer.splits["train"].add(ids, bits, lengths, sizes)


def write(final: Path, documents: list[list[tuple[np.ndarray, np.ndarray]]], dtype: np.dtype = U16) -> Path:
    with ShardWriter(final, dtype) as writer:
        for one in documents[:2]:
            add(writer, one)
        add(writer, *documents[2:])
        for split in writer.splits.values():
            split.close()
        writer.finish({"note": "test"})
    return final


@pytest.mark.parametrize("dtype", [U16, U32])
def test_round_trip(tmp_path: Path, dtype: np.dtype) -> None:
    documents = [document(3, 0, 5), document(0), document(9, start=100), document(1, 1, 1, start=300)]
    folder = write(tmp_path / "s", documents, dtype) / "train"
    flat = [pair for one in documents for pair in one if len(pair[0])]
    n = sum(len(ids) for ids, _ in flat)
    tokens = map_array(folder / "tokens.bin", dtype.name, (n,))
    bits = np.unpackbits(map_array(folder / "words.bits", "u1", ((n + 7) // 8,)), count=n, bitorder="little")
    index = read_index(folder / "tokens.idx")
    assert tokens.tolist() == np.concatenate([ids for ids, _ in flat]).tolist()
    assert bits.astype(bool).tolist() == np.concatenate([b for _, b in flat]).tolist()
    assert index.lengths.tolist() == [3, 5, 9, 1, 1, 1]
    assert index.documents.tolist() == [0, 2, 3, 6]  # the empty document is none


@pytest.mark.parametrize(("dtype", "code"), [(U16, 8), (U32, 4)])
def test_index_is_megatrons(tmp_path: Path, dtype: np.dtype, code: int) -> None:
    """Byte for byte what megatron.core's indexed_dataset reads."""
    folder = write(tmp_path / "s", [document(3, 5), document(2)], dtype) / "train"
    expected = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, 3, 3)
    expected += np.array([3, 5, 2], "<i4").tobytes()
    expected += (np.array([0, 3, 8], "<i8") * dtype.itemsize).tobytes()
    expected += np.array([0, 2, 3], "<i8").tobytes()
    assert (folder / "tokens.idx").read_bytes() == expected


def test_a_long_index_is_written_by_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (write(tmp_path / "a", [document(3, 5), document(2, 7, 1)]) / "train" / "tokens.idx").read_bytes()
    monkeypatch.setattr(shards, "_POINTERS", 2)
    assert (write(tmp_path / "b", [document(3, 5), document(2, 7, 1)]) / "train" / "tokens.idx").read_bytes() == whole


def test_an_empty_split_is_sound(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", [])
    assert shard_trouble(folder, thorough=True) == []
    assert len(map_array(folder / "held_out" / "tokens.bin", "uint16", (0,))) == 0
    assert read_index(folder / "train" / "tokens.idx").documents.tolist() == [0]


def test_nothing_under_the_final_name_until_finish(tmp_path: Path) -> None:
    def interrupted() -> None:
        with ShardWriter(tmp_path / "s", U16) as writer:
            add(writer, document(4))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OutputError, match="disk is full"):
            write(tmp_path / "s", [document(4)])
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "s", [document(4)])


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", [document(30, 40)])
    draw = random.Random(3)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "manifest.json" and p.stat().st_size]
    for trial in range(60):
        path = files[trial % len(files)]
        good = path.read_bytes()
        bad = bytearray(good)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(bad))
        (trouble,) = shard_trouble(folder, thorough=True)
        assert str(path) in trouble
        path.write_bytes(good)


def test_short_and_missing_files_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", [document(30)])
    tokens = folder / "train" / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    (trouble,) = shard_trouble(folder, thorough=False)
    assert str(tokens) in trouble and "58 bytes instead of 60" in trouble
    with pytest.raises(DataError, match="58 bytes instead of 60"):
        map_array(tokens, "uint16", (30,))
    tokens.unlink()
    assert "is missing" in shard_trouble(folder, thorough=False)[0]


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": 99}', "\0\0\0"])
def test_a_bad_manifest_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"distill prep"):
        read_manifest(tmp_path)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no prepared data"):
        read_manifest(tmp_path)


def test_a_disk_that_fills_while_tokens_are_written(tmp_path: Path) -> None:
    """What the files still hold in their buffers cannot be written either; nothing stays behind."""
    hindered = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
        with pytest.raises(OutputError, match="File too large"):
            write(tmp_path / "s", [document(5000) for _ in range(10)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, hindered)
    assert list(tmp_path.iterdir()) == []


def test_too_many_maps_for_the_limit_of_open_files(tmp_path: Path) -> None:
    write(tmp_path / "s", [document(4)])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    maps = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
        with pytest.raises(DataError, match="ulimit -n"):
            maps += [map_array(tmp_path / "s" / "train" / "tokens.bin", "uint16", (4,)) for _ in range(100)]
        allow_open_files(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(612, limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

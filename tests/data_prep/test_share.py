"""Weights, limits, parts and counts by source: the same whatever the blocks, batches and workers are."""

from __future__ import annotations

import gzip
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.loader import validate
from data_prep import block as block_module
from data_prep.block import cleaned, numbered
from data_prep.config import DataConfig, SourceConfig
from data_prep.corpus import Corpus
from data_prep.documents import Counts
from data_prep.inspect import totals
from data_prep.pipeline import prepare, verify
from data_prep.readers import labels, open_sources
from data_prep.shards import ShardWriter, read_index
from data_prep.share import copies
from data_prep.sources import blocks_of
from data_prep.stream import raw_stream
from tests.data_prep.conftest import sample_config
from tests.data_prep.reading import lines, records
from tests.data_prep.test_pipeline import stable

TEXTS = [f"第{i}篇文章讲的是公园里的花和树。" + "春天来了，" * (i % 7) for i in range(400)]


def write(folder: Path, name: str, texts: list[str]) -> Path:
    path = folder / name
    content = lines(*({"text": text} for text in texts))
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    return path


def read(config: DataConfig, block_bytes: int = 1 << 20) -> tuple[list[str], Counts]:
    """The cleaned texts of all blocks of about that size, as preparation takes them."""
    counts, found = Counts(), list[str]()
    config = config.model_copy(update={"block_megabytes": max(1, block_bytes >> 20)})
    readers = open_sources(config)
    if block_bytes < 1 << 20:
        for reader in readers:
            real = reader.blocks
            reader.blocks = lambda _, real=real: real(block_bytes)  # type: ignore[method-assign]
    for block in blocks_of(config, readers):
        for stream in cleaned(config, readers[block.source], block, counts):
            found += stream.texts()
    kept, dropped = sum(map(len, found)), counts["characters_dropped"]
    assert counts["characters_read"] + counts["characters_rewritten"] == kept + dropped + sum(counts.removed.values())
    return found, counts


def of(*sources: SourceConfig) -> DataConfig:
    return sample_config(sources=list(sources))


# ---------------------------------------------------------------- weights


def test_copies_have_the_weight_as_their_mean() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 100_000, np.uint64)
    for weight in (1, 1.5, 2, 2.25, 7.9):
        found = copies(hashes, weight)
        assert set(found.tolist()) <= {int(weight), int(weight) + 1}
        assert abs(found.mean() - weight) < 0.01
    assert (copies(hashes, 0.3) == 1).all()  # the others have been left out before


@pytest.mark.parametrize("batch", [100, 1 << 18])
@pytest.mark.parametrize("block_bytes", [500, 1 << 20])
def test_a_share_does_not_depend_on_blocks_and_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, block_bytes: int
) -> None:
    path = str(write(tmp_path, "a.jsonl", TEXTS))
    expected, _ = read(of(SourceConfig(path=path, weight=0.3)))
    monkeypatch.setattr(block_module, "BATCH", batch)
    found, counts = read(of(SourceConfig(path=path, weight=0.3)), block_bytes)
    assert found == expected
    assert 80 < len(found) < 160
    assert records(counts) == {"documents": len(found), "dropped_left_out_by_weight": 400 - len(found)}
    more, _ = read(of(SourceConfig(path=path, weight=0.6)))
    assert set(found) < set(more) < set(TEXTS)
    other = sample_config(sources=[SourceConfig(path=path, weight=0.3)], seed=5)
    assert read(other)[0] != found


@pytest.mark.parametrize("weight", [0, -1, 1001])
def test_impossible_weights_are_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="weight"):
        validate({"sources": [{"path": "a", "weight": weight}]}, DataConfig)


# ---------------------------------------------------------------- limits


@settings(max_examples=25, deadline=None)
@given(
    documents=st.one_of(st.none(), st.integers(1, 500)),
    size=st.one_of(st.none(), st.integers(1, 30_000)),
    block_bytes=st.integers(200, 20_000),
    batch=st.sampled_from([1, 300, 1 << 18]),
)
def test_limits_take_the_beginning_of_a_source(
    tmp_path_factory: pytest.TempPathFactory, documents: int | None, size: int | None, block_bytes: int, batch: int
) -> None:
    folder = tmp_path_factory.mktemp("limits")
    write(folder, "1.jsonl", TEXTS[:90])
    write(folder, "2.jsonl.gz", TEXTS[90:200])
    write(folder, "3.jsonl", TEXTS[200:])
    limit = {"max_documents": documents, "max_megabytes": None if size is None else size / 1e6}
    config = of(SourceConfig(path=str(folder), **limit))  # type: ignore[arg-type]
    expected, used = [], 0
    for text in TEXTS:
        if len(expected) == documents or (size is not None and used >= size):
            break
        expected.append(text)
        used += len(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_module, "BATCH", batch)
        found, counts = read(config, block_bytes)
    assert found == expected
    assert records(counts) == {"documents": len(expected)}


def test_a_limit_counts_what_is_left_by_the_weight(tmp_path: Path) -> None:
    path = str(write(tmp_path, "a.jsonl", ["短", *TEXTS]))
    share, _ = read(of(SourceConfig(path=path, weight=0.5)))
    found, counts = read(of(SourceConfig(path=path, weight=0.5, max_documents=20)), 700)
    assert found == share[:20]
    assert counts["documents"] == 20
    assert counts["dropped_too_short"] == 1


# ---------------------------------------------------------------- parts


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), max_size=8), st.integers(1, 90))
def test_parts_do_not_depend_on_batches(batches: list[list[int]], size: int) -> None:
    sizes = [n for batch in batches for n in batch]
    expected: list[list[int]] = [[]]
    for n in sizes:
        if 3 * sum(expected[-1]) >= size:
            expected.append([])
        expected[-1].append(n)
    streams = [raw_stream(["字" * n for n in batch]) for batch in batches]
    found: list[list[int]] = [[]]
    for part, stream in numbered(streams, size):
        assert part in (len(found) - 1, len(found))
        if part == len(found):
            found.append([])
        found[-1] += np.diff(stream.documents).tolist()
    assert found == expected


def test_a_corpus_of_weighted_limited_and_long_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker and two, in one go and continued after a kill: one hash."""
    long = [text * 40 for text in TEXTS]
    write(tmp_path, "long.jsonl.gz", long)
    write(tmp_path, "twice.jsonl", [f"两次：{text}" for text in TEXTS[:100]])
    write(tmp_path, "some.jsonl", [f"一些：{text}" for text in TEXTS])
    monkeypatch.setattr(block_module, "part_bytes", lambda task: 450_000)
    config = sample_config(
        sources=[
            SourceConfig(path=str(tmp_path / "long.jsonl.gz"), label="long"),
            SourceConfig(path=str(tmp_path / "twice.jsonl"), weight=2),
            SourceConfig(path=str(tmp_path / "some.jsonl"), weight=0.5, max_documents=30),
        ]
    )
    corpus = prepare(config, tmp_path / "data")
    manifest = corpus.manifest
    names = [shard["name"] for shard in manifest["shards"]]
    assert [name.partition(".")[2] for name in names] == ["", "001", "002", "003", "", ""]
    assert len({shard["ordinal"] for shard in manifest["shards"]}) == 6
    assert verify(corpus.folder) == []
    long_source, twice, some = manifest["sources"].values()
    assert next(iter(manifest["sources"])) == "long"
    assert (long_source["documents"], twice["documents"], some["documents"]) == (400, 100, 30)
    assert twice["dropped"] == {} and set(some["dropped"]) == {"left_out_by_weight"}
    assert sum(s["characters"] for s in manifest["sources"].values()) == manifest["characters"]
    assert sum(s["tokens"] for s in manifest["sources"].values()) == sum(
        split["tokens"] for split in manifest["splits"].values()
    )
    train, held_out = (documents(corpus, names[4], split) for split in ("train", "held_out"))
    assert len(train) == 2 * len(set(train)) and train[::2] == train[1::2]
    assert len(held_out) == len(set(held_out)) and len(set(train)) + len(held_out) == 100
    assert "30 documents" in totals(corpus)[f"source {tmp_path / 'some.jsonl'}"]
    ids = np.concatenate([corpus.split(s).sequence_ids(np.arange(len(corpus.split(s)))) for s in ("train", "held_out")])
    assert len(np.unique(ids)) == len(ids)
    # As a kill would leave it: the first part, which names the others, is not there yet.
    (corpus.folder / "manifest.json").unlink()
    shutil.rmtree(corpus.folder / "shards" / names[0])
    shutil.rmtree(corpus.folder / "shards" / names[2])
    made, write_splits = list[str](), block_module.write_splits

    def noted(writer: ShardWriter, *arguments: Any) -> dict[str, Any]:
        made.append(writer.final.name)
        return write_splits(writer, *arguments)

    monkeypatch.setattr(block_module, "write_splits", noted)
    again = prepare(config, corpus.folder)
    assert again.hash == corpus.hash and stable(again.manifest) == stable(manifest)
    assert made == [names[0], names[2]]


def documents(corpus: Corpus, shard: str, split: str) -> list[bytes]:
    folder = corpus.folder / "shards" / shard / split
    index = read_index(folder / "tokens.idx")
    tokens = np.fromfile(folder / "tokens.bin", "<u2")
    ends = np.concatenate([[0], np.cumsum(index.lengths)])[index.documents]
    return [tokens[a:b].tobytes() for a, b in pairwise(ends)]


def test_labels_are_different() -> None:
    given_ = [SourceConfig(path="a"), SourceConfig(path="b", label="a"), SourceConfig(path="a"), SourceConfig(path="c")]
    assert labels(given_) == ["a", "a (2)", "a (3)", "c"]

"""Batches over several shards against a slow reader that knows no more than the format of the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_prep.corpus import Corpus, SplitName


class SlowReader:
    """One split of a prepared folder, each sequence read by itself from whole files in memory."""

    def __init__(self, corpus: Corpus, split: SplitName) -> None:
        self.corpus, self.cls, self.sep = corpus, corpus.special_ids["cls"], corpus.special_ids["sep"]
        self.folders = [corpus.folder / "shards" / shard["name"] / split for shard in corpus.manifest["shards"]]
        self.dtype = corpus.manifest["tokenizer"]["dtype"]
        self.views = [folder / "sequences" / corpus.manifest["variant"] for folder in self.folders]
        sizes = [len(np.fromfile(view / "offsets.bin", "<i8")) - 1 for view in self.views]
        self.places = [(shard, number) for shard, size in enumerate(sizes) for number in range(size)]

    def pieces(self, index: int) -> list[tuple[list[int], list[bool]]]:
        """(tokens, continuation bits) of each piece; the first token of a piece continues nothing."""
        shard, number = self.places[index]
        tokens = np.fromfile(self.folders[shard] / "tokens.bin", self.dtype)
        bits = np.unpackbits(np.fromfile(self.folders[shard] / "words.bits", "u1"), bitorder="little")
        first, last = np.fromfile(self.views[shard] / "offsets.bin", "<i8")[number : number + 2]
        found = []
        for start, count in np.fromfile(self.views[shard] / "pieces.bin", "<i8").reshape(-1, 2)[first:last].tolist():
            rest = bits[start + 1 : start + count].astype(bool).tolist()
            found.append((tokens[start : start + count].tolist(), [False, *rest]))
        return found

    def sequence(self, index: int) -> tuple[list[int], list[bool]]:
        """(ids, continuation bits) with [CLS] and [SEP]s."""
        ids, continues = [self.cls], [False]
        for number, (tokens, bits) in enumerate(self.pieces(index)):
            if number and self.corpus.manifest.get("pairs"):
                ids, continues = [*ids, self.sep], [*continues, False]
            ids, continues = ids + tokens, continues + bits
        return [*ids, self.sep], [*continues, False]

    def masks(self, index: int, view: int) -> dict[int, int]:
        """Position -> stored id."""
        shard, number = self.places[index]
        folder: Path = self.views[shard] / "masks" / f"view-{view}"
        first, last = np.fromfile(folder / "offsets.bin", "<u8")[number : number + 2]
        positions = np.fromfile(folder / "positions.bin", "<u2")[first:last].tolist()
        return dict(zip(positions, np.fromfile(folder / "ids.bin", self.dtype)[first:last].tolist(), strict=True))


def over_all_shards(reader: SlowReader, n: int) -> np.ndarray:
    """Random sequences, some of them twice, and the first and last of every shard."""
    draw = np.random.default_rng(5)
    shards = np.array([shard for shard, _ in reader.places])
    edges = np.flatnonzero(np.diff(shards, prepend=-1))
    edges = np.concatenate([edges, edges[1:] - 1, [len(shards) - 1]])
    return draw.permutation(np.concatenate([edges, draw.integers(0, len(shards), n)])).astype(np.int64)


def same_as_the_slow_reader(corpus: Corpus, split: SplitName, n: int) -> None:
    reader, part = SlowReader(corpus, split), corpus.split(split)
    assert len(reader.places) == len(part)
    index = over_all_shards(reader, n)
    gathered = part.gather(index)
    for i, number in enumerate(index.tolist()):
        ids, continues = reader.sequence(number)
        here = slice(gathered.offsets[i], gathered.offsets[i + 1])
        assert gathered.ids[here].tolist() == ids
        assert gathered.continues[here].tolist() == continues
    plain = part.gather(index, with_bits=False)
    assert np.array_equal(plain.ids, gathered.ids) and plain.ids.dtype == reader.dtype
    with pytest.raises(ValueError, match="without their continuation bits"):
        plain.continues  # noqa: B018


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_a_batch_over_all_shards(sample_corpus: Corpus, split: SplitName) -> None:
    assert len(sample_corpus.manifest["shards"]) > 2
    same_as_the_slow_reader(sample_corpus, split, 60)


def test_a_batch_of_each_kind(kind_corpus: Corpus) -> None:
    same_as_the_slow_reader(kind_corpus, "train", 30)


@pytest.mark.parametrize("mode", ["stored", "dynamic"])
def test_a_masked_batch_over_all_shards(sample_corpus: Corpus, mode: str) -> None:
    """Each sequence under a view of its own, and drawn masks are the stored ones."""
    masking = {**sample_corpus.manifest["masking"], "mode": mode}
    corpus = Corpus(sample_corpus.folder, {**sample_corpus.manifest, "masking": masking})
    reader, part = SlowReader(sample_corpus, "train"), corpus.split("train")
    index = over_all_shards(reader, 40)
    views = np.arange(len(index)) % 3
    batch = part.masked(index, views)
    for i, number in enumerate(index.tolist()):
        ids, masks = reader.sequence(number)[0], reader.masks(number, int(views[i]))
        begin, end = batch.offsets[i : i + 2]
        here = (batch.rows >= begin) & (batch.rows < end)
        assert batch.positions[begin:end].tolist() == list(range(len(ids)))
        assert (batch.rows[here] - begin).tolist() == list(masks)
        assert batch.labels[here].tolist() == [ids[place] for place in masks]
        assert batch.ids[begin:end].tolist() == [masks.get(place, token) for place, token in enumerate(ids)]

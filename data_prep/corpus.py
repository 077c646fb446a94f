"""The read side of prepared data: batched random reads over memory-mapped shards.

No sample becomes a Python object on the way: a batch is gathered with a few vectorised copies per shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from data_prep.masking import MaskRule, Masks, draw
from data_prep.shards import Index, allow_open_files, map_array, read_index, read_manifest, shard_trouble

Ints = NDArray[np.int64]
SplitName = Literal["train", "held_out"]
HELD_OUT_BIT = np.uint64(1 << 62)


@dataclass(frozen=True)
class Gathered:
    """Sequences with [CLS] and [SEP], as one stream.

    ``ids``: int64 [N]; ``continues``: bool [N], the token continues the word before it; ``offsets``: int64 [n + 1].
    """

    ids: Ints
    continues: NDArray[np.bool_]
    offsets: Ints


def spread(starts: Ints, counts: Ints) -> Ints:
    """The numbers start, start + 1, ... of each (start, count), one after another."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - counts), counts) + np.arange(total, dtype=np.int64)


def offsets_of(counts: NDArray[np.integer]) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


class ShardSplit:
    """One split of one shard, mapped."""

    def __init__(
        self, folder: Path, facts: dict[str, Any], corpus: dict[str, Any], ordinal: int, bit: np.uint64
    ) -> None:
        tokens, sequences, pieces = facts["tokens"], facts["sequences"], facts["pieces"]
        self.folder = folder
        self.base = np.uint64(ordinal << 32) | bit
        self.tokens = map_array(folder / "tokens.bin", corpus["dtype"], (tokens,))
        self.bits = map_array(folder / "words.bits", "u1", ((tokens + 7) // 8,))
        self.view = folder / "sequences" / corpus["variant"]
        self.offsets = map_array(self.view / "offsets.bin", "<i8", (sequences + 1,))
        self.pieces = map_array(self.view / "pieces.bin", "<i8", (pieces, 2))
        self._dtype = corpus["dtype"]
        self._masked = facts["masked"]
        self._views: dict[int, tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = {}

    @cached_property
    def index(self) -> Index:
        return read_index(self.folder / "tokens.idx")

    def token_positions(self, local: Ints) -> tuple[Ints, Ints]:
        """(positions of all content tokens of the sequences, content tokens of each)."""
        first, last = self.offsets[local], self.offsets[local + 1]
        pieces = self.pieces[spread(first, last - first)]
        counts = pieces[:, 1]
        per_sequence = np.add.reduceat(np.append(counts, 0), offsets_of(last - first)[:-1]) if len(local) else counts
        return spread(pieces[:, 0], counts), per_sequence

    def lengths(self, local: Ints) -> Ints:
        return self.token_positions(local)[1]

    def continues(self, positions: Ints) -> NDArray[np.bool_]:
        bits: NDArray[np.uint8] = self.bits[positions >> 3] >> (positions & 7).astype(np.uint8)
        return (bits & 1).astype(np.bool_)

    def mask_view(self, view: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """(offsets, positions, ids) of a stored view, mapped."""
        if view not in self._views:
            folder, m = self.view / "masks" / f"view-{view}", self._masked[view]
            self._views[view] = (
                map_array(folder / "offsets.bin", "<u8", (len(self.offsets),)),
                map_array(folder / "positions.bin", "<u2", (m,)),
                map_array(folder / "ids.bin", self._dtype, (m,)),
            )
        return self._views[view]


class Split:
    """The sequences of one split over all shards, numbered through."""

    def __init__(self, shards: list[ShardSplit], manifest: dict[str, Any], name: SplitName) -> None:
        self._shards = shards
        self._starts = offsets_of(np.array([len(s.offsets) - 1 for s in shards], np.int64))
        self._masking = manifest["masking"]
        self._rule = mask_rule(manifest)
        self._cls, self._sep = (manifest["tokenizer"]["special_ids"][k] for k in ("cls", "sep"))
        self.name = name
        self.n_tokens = int(manifest["splits"][name]["tokens"])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _by_shard(self, index: Ints) -> Iterator[tuple[ShardSplit, Ints, Ints]]:
        """(shard, places in ``index``, local sequence numbers) of each shard that is touched."""
        index = np.asarray(index, np.int64)
        if len(index) and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(f"sequence numbers must be in 0 .. {len(self) - 1}")
        owner = np.searchsorted(self._starts, index, side="right") - 1
        for number in np.unique(owner):
            places = np.flatnonzero(owner == number)
            yield self._shards[number], places, index[places] - self._starts[number]

    def lengths(self, index: Ints) -> NDArray[np.int32]:
        """int32 [n]: tokens with [CLS] and [SEP]."""
        out = np.empty(len(index), np.int32)
        for shard, places, local in self._by_shard(index):
            out[places] = shard.lengths(local) + 2
        return out

    def sequence_ids(self, index: Ints) -> NDArray[np.uint64]:
        """uint64 [n]: ids that do not depend on workers, ranks or other shards."""
        out = np.empty(len(index), np.uint64)
        for shard, places, local in self._by_shard(index):
            out[places] = shard.base | local.astype(np.uint64)
        return out

    def gather(self, index: Ints) -> Gathered:
        """The sequences ``index`` (int64 [n]) in this order."""
        found = [(places, *shard.token_positions(local), shard) for shard, places, local in self._by_shard(index)]
        lengths = np.zeros(len(index), np.int64)
        for places, _, counts, _ in found:
            lengths[places] = counts + 2
        offsets = offsets_of(lengths)
        ids = np.empty(int(offsets[-1]), np.int64)
        continues = np.zeros(len(ids), np.bool_)
        ids[offsets[:-1]], ids[offsets[1:] - 1] = self._cls, self._sep
        for places, positions, counts, shard in found:
            target = spread(offsets[places] + 1, counts)
            ids[target] = shard.tokens[positions]
            continues[target] = shard.continues(positions)
        return Gathered(ids, continues, offsets)

    def masks(self, index: Ints, views: Ints) -> Masks:
        """The masks of the sequences under their ``views`` (int64 [n]; the epoch): stored or drawn."""
        if self._masking["mode"] == "dynamic":
            return self.drawn_masks(index, views)
        return self.stored_masks(index, np.asarray(views) % self._masking["views"])

    def drawn_masks(self, index: Ints, views: Ints) -> Masks:
        """Drawn now, by the function that also made the stored ones."""
        gathered = self.gather(index)
        inner = np.ones(len(gathered.ids), np.bool_)
        inner[gathered.offsets[:-1]] = inner[gathered.offsets[1:] - 1] = False
        offsets = gathered.offsets - 2 * np.arange(len(gathered.offsets))
        ids, continues = gathered.ids[inner], gathered.continues[inner]
        return draw(self._rule, self._masking["seed"], views, self.sequence_ids(index), ids, continues, offsets)

    def stored_masks(self, index: Ints, views: Ints) -> Masks:
        """Read from the stored views."""
        counts = np.zeros(len(index), np.int64)
        parts = []
        for shard, places, local in self._by_shard(index):
            for view in np.unique(views[places]):
                here = views[places] == view
                offsets, positions, ids = shard.mask_view(int(view))
                first = offsets[local[here]].astype(np.int64)
                n = offsets[local[here] + 1].astype(np.int64) - first
                counts[places[here]] = n
                parts.append((places[here], n, spread(first, n), positions, ids))
        out = offsets_of(counts)
        all_positions, all_ids = np.empty(int(out[-1]), np.int64), np.empty(int(out[-1]), np.int64)
        for places, n, source, positions, ids in parts:
            target = spread(out[places], n)
            all_positions[target], all_ids[target] = positions[source], ids[source]
        return Masks(out, all_positions, all_ids)


def mask_rule(manifest: dict[str, Any]) -> MaskRule:
    masking, tokenizer = manifest["masking"], manifest["tokenizer"]
    specials = tuple(sorted(tokenizer["special_ids"].values()))
    shares = (masking["rate"], masking["mask"], masking["random"])
    return MaskRule(*shares, tokenizer["special_ids"]["mask"], tokenizer["vocab_size"], specials)


class Corpus:
    """A prepared data folder."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.hash: str = manifest["hash"]
        self.vocab_size: int = manifest["tokenizer"]["vocab_size"]
        self.special_ids: dict[str, int] = manifest["tokenizer"]["special_ids"]
        self.max_length: int = manifest["max_length"]
        self.tokenizer_folder = folder / "tokenizer"
        self._splits: dict[str, Split] = {}

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Map a prepared folder.

        Raises:
            DataError: unless the manifest is there and every file of every shard has its size.
        """
        manifest = read_manifest(folder)
        views = max((len(f["masked"]) for s in manifest["shards"] for f in s["splits"].values()), default=0)
        allow_open_files(2 * len(manifest["shards"]) * (4 + 3 * views))
        for part in (folder, *(folder / "shards" / shard["name"] for shard in manifest["shards"])):
            troubles = shard_trouble(part, thorough=False)
            if troubles:
                raise DataError(f"{troubles[0]} Run `distill data verify`, and `distill prep` to make it anew.")
        return cls(folder, manifest)

    def split(self, name: SplitName) -> Split:
        if name not in self._splits:
            bit = HELD_OUT_BIT if name == "held_out" else np.uint64(0)
            facts = {"dtype": self.manifest["tokenizer"]["dtype"], "variant": self.manifest["variant"]}
            shards = [
                ShardSplit(self.folder / "shards" / s["name"] / name, s["splits"][name], facts, s["ordinal"], bit)
                for s in self.manifest["shards"]
            ]
            self._splits[name] = Split(shards, self.manifest, name)
        return self._splits[name]

    @property
    def unigram(self) -> Ints:
        """int64 [V]: how often each token stands in the training split."""
        return np.asarray(map_array(self.folder / "unigram.bin", "<i8", (self.vocab_size,)))

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
from data_prep.config import MaskConfig
from data_prep.masking import Masks, draw, mask_rule
from data_prep.shards import Index, allow_open_files, map_array, read_index, read_manifest, shard_trouble

Ints = NDArray[np.int64]
SplitName = Literal["train", "held_out"]
HELD_OUT_BIT = np.uint64(1 << 62)


@dataclass(frozen=True)
class Gathered:
    """Sequences with [CLS] and [SEP], as one stream.

    ``ids``: int64 [N]; ``continues``: bool [N], the token continues the word before it; ``offsets``: int64 [n + 1].
    Of pairs only: ``types``: uint8 [N], 0 in [CLS] A [SEP], 1 in B [SEP]; ``order``: int64 [n], the labels (1: B is
    random, or A and B are swapped).
    """

    ids: Ints
    continues: NDArray[np.bool_]
    offsets: Ints
    types: NDArray[np.uint8] | None = None
    order: Ints | None = None


@dataclass(frozen=True)
class Content:
    """Sequences without [CLS] and [SEP], as one stream.

    ``firsts``: int64 [n], how many tokens of a pair belong to A; None for other kinds. The rest as in Gathered.
    """

    ids: Ints
    continues: NDArray[np.bool_]
    offsets: Ints
    firsts: Ints | None
    order: Ints | None


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
        self.firsts = map_array(self.view / "firsts.bin", "<u2", (sequences,)) if corpus["pairs"] else None
        self.order = map_array(self.view / "order.bin", "u1", (sequences,)) if corpus["pairs"] else None
        self._dtype = corpus["dtype"]
        self._masked = facts["masked"]
        self._views: dict[int, tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = {}

    @cached_property
    def index(self) -> Index:
        return read_index(self.folder / "tokens.idx")

    def pieces_of(self, local: Ints) -> tuple[Ints, Ints]:
        """(pieces of the sequences [p, 2], content tokens of each sequence [n])."""
        first, last = self.offsets[local], self.offsets[local + 1]
        pieces = self.pieces[spread(first, last - first)]
        if not len(local):
            return pieces, np.zeros(0, np.int64)
        return pieces, np.add.reduceat(np.append(pieces[:, 1], 0), offsets_of(last - first)[:-1])

    def lengths(self, local: Ints) -> Ints:
        return self.pieces_of(local)[1]

    def read(self, pieces: Ints) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """(tokens, continuation bits) of the pieces; a word never reaches over the border of two of them."""
        positions = spread(pieces[:, 0], pieces[:, 1])
        bits: NDArray[np.uint8] = self.bits[positions >> 3] >> (positions & 7).astype(np.uint8)
        continues = (bits & 1).astype(np.bool_)
        continues[offsets_of(pieces[:, 1])[:-1]] = False
        return self.tokens[positions], continues

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

    def __init__(self, shards: list[ShardSplit], manifest: dict[str, Any], name: SplitName, counts: Ints) -> None:
        self._shards = shards
        self._starts = offsets_of(np.array([len(s.offsets) - 1 for s in shards], np.int64))
        masking, tokenizer = manifest["masking"], manifest["tokenizer"]
        self._masking = MaskConfig(**{k: v for k, v in masking.items() if k in MaskConfig.model_fields})
        self._seed: int = masking["seed"]
        self._rule = mask_rule(self._masking, name, tokenizer["special_ids"], tokenizer["vocab_size"], counts)
        self._cls, self._sep = (tokenizer["special_ids"][k] for k in ("cls", "sep"))
        self.name = name
        self.pairs: bool = manifest.get("pairs", False)
        self.specials = 3 if self.pairs else 2
        """[CLS] and [SEP]s of a sequence."""
        facts = manifest["splits"][name]
        self.n_tokens = int(facts.get("sequence_tokens", facts["tokens"]))
        """Tokens of all sequences without those."""

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
        """int32 [n]: tokens with [CLS] and [SEP]s."""
        out = np.empty(len(index), np.int32)
        for shard, places, local in self._by_shard(index):
            out[places] = shard.lengths(local) + self.specials
        return out

    def sequence_ids(self, index: Ints) -> NDArray[np.uint64]:
        """uint64 [n]: ids that do not depend on workers, ranks or other shards."""
        out = np.empty(len(index), np.uint64)
        for shard, places, local in self._by_shard(index):
            out[places] = shard.base | local.astype(np.uint64)
        return out

    def content(self, index: Ints) -> Content:
        """The sequences ``index`` (int64 [n]) in this order, without [CLS] and [SEP]."""
        found = [(places, *shard.pieces_of(local), shard, local) for shard, places, local in self._by_shard(index)]
        lengths = np.zeros(len(index), np.int64)
        firsts, order = (np.zeros(len(index), np.int64) if self.pairs else None for _ in range(2))
        for places, _, counts, shard, local in found:
            lengths[places] = counts
            if firsts is not None and order is not None and shard.firsts is not None and shard.order is not None:
                firsts[places], order[places] = shard.firsts[local], shard.order[local]
        offsets = offsets_of(lengths)
        ids, continues = np.empty(int(offsets[-1]), np.int64), np.empty(int(offsets[-1]), np.bool_)
        for places, pieces, counts, shard, _ in found:
            target = spread(offsets[places], counts)
            ids[target], continues[target] = shard.read(pieces)
        return Content(ids, continues, offsets, firsts, order)

    def gather(self, index: Ints) -> Gathered:
        """The sequences ``index`` (int64 [n]) in this order."""
        content = self.content(index)
        lengths = np.diff(content.offsets)
        offsets = content.offsets + self.specials * np.arange(len(lengths) + 1)
        target = spread(offsets[:-1] + 1, lengths)
        ids = np.full(int(offsets[-1]), self._sep, np.int64)
        continues = np.zeros(len(ids), np.bool_)
        ids[offsets[:-1]] = self._cls
        types = None
        if content.firsts is not None:
            second = spread(content.offsets[:-1] + content.firsts, lengths - content.firsts)
            target[second] += 1
            types = np.zeros(len(ids), np.uint8)
            types[target[second]] = types[offsets[1:] - 1] = 1
        ids[target], continues[target] = content.ids, content.continues
        return Gathered(ids, continues, offsets, types, content.order)

    def masks(self, index: Ints, views: Ints) -> Masks:
        """The masks of the sequences under their ``views`` (int64 [n]; the epoch): stored or drawn.

        Empty for the training split when the rate is 0; held_out is then masked at ``config.HELD_OUT_RATE``.
        """
        if self._masking.stored(self.name):
            return self.stored_masks(index, np.asarray(views) % self._masking.views)
        return self.drawn_masks(index, views)

    def drawn_masks(self, index: Ints, views: Ints) -> Masks:
        """Drawn now, by the function that also made the stored ones."""
        if self._rule.rate == 0:
            return Masks(np.zeros(len(index) + 1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
        content = self.content(index)
        stream = (content.ids, content.continues, content.offsets)
        masks = draw(self._rule, self._seed, views, self.sequence_ids(index), *stream)
        return masks.between(content.firsts)

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
        self.has_text = bool(manifest["shards"])
        """False where a run without ``data.sources`` only has its tokenizer here."""
        self._splits: dict[str, Split] = {}
        views = max((len(f["masked"]) for s in manifest["shards"] for f in s["splits"].values()), default=0)
        allow_open_files(2 * len(manifest["shards"]) * (6 + 3 * views))

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Map a prepared folder.

        Raises:
            DataError: unless the manifest is there and every file of every shard has its size.
        """
        manifest = read_manifest(folder)
        for part in (folder, *(folder / "shards" / shard["name"] for shard in manifest["shards"])):
            troubles = shard_trouble(part, thorough=False)
            if troubles:
                raise DataError(f"{troubles[0]} Run `distill data verify`, and `distill prep` to make it anew.")
        return cls(folder, manifest)

    def split(self, name: SplitName) -> Split:
        """Its sequences.

        Raises:
            DataError: the folder was prepared without text.
        """
        if not self.has_text:
            raise DataError(f"{self.folder} holds a tokenizer and no text: it was prepared without `data.sources`.")
        if name not in self._splits:
            bit = HELD_OUT_BIT if name == "held_out" else np.uint64(0)
            facts = {
                "dtype": self.manifest["tokenizer"]["dtype"],
                "variant": self.manifest["variant"],
                "pairs": self.manifest.get("pairs", False),
            }
            shards = [
                ShardSplit(self.folder / "shards" / s["name"] / name, s["splits"][name], facts, s["ordinal"], bit)
                for s in self.manifest["shards"]
            ]
            self._splits[name] = Split(shards, self.manifest, name, self.unigram)
        return self._splits[name]

    @property
    def unigram(self) -> Ints:
        """int64 [V]: how often each token stands in the training split."""
        return np.asarray(map_array(self.folder / "unigram.bin", "<i8", (self.vocab_size,)))

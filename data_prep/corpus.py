"""The read side of prepared data: batched random reads over memory-mapped shards.

No sample becomes a Python object on the way: the kernels of gathering.py and mask_kernels.py write a whole batch, with
its special tokens and its masks, out of the mapped files.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from data_prep.checks import CONTENT, INDEX, PARTS, Checked, FirstTouch, known, unread, unread_masks
from data_prep.config import MaskConfig
from data_prep.gathering import gather, gather_stored, stored, stored_counts
from data_prep.mapped import OUTSIDE, Arrays, Mapped, find
from data_prep.mapped import offsets_of as offsets_of
from data_prep.mapped import spread as spread
from data_prep.masking import Empty, Masks, draw_into, drawn, mask_rule
from data_prep.shards import allow_open_files, map_array, read_manifest, shard_trouble
from data_prep.similar import SimilarWords, open_similar

Ints = NDArray[np.int64]
SplitName = Literal["train", "held_out"]
Verify = Literal["first_touch", "open", "none"]
HELD_OUT_BIT = np.uint64(1 << 62)
_SEQUENCE_FILES = ("offsets", "pieces", "firsts", "order")
_MASK_FILES = ("offsets", "positions", "ids")


@dataclass(frozen=True)
class Gathered:
    """Sequences with [CLS] and [SEP], as one stream.

    ``ids``: [N], in the type of the files, uint16 or uint32; ``bits``: uint8 [(N + 7) // 8], a bit for each token as in
    ``words.bits``, or None; ``offsets``: int64 [n + 1]. Of pairs only: ``types``: uint8 [N], 0 in [CLS] A [SEP], 1 in B
    [SEP]; ``order``: int64 [n], the labels (1: B is random, or A and B are swapped).
    """

    ids: NDArray[np.unsignedinteger]
    bits: NDArray[np.uint8] | None
    offsets: Ints
    types: NDArray[np.uint8] | None = None
    order: Ints | None = None

    @cached_property
    def continues(self) -> NDArray[np.bool_]:
        """bool [N]: the token continues the word before it."""
        if self.bits is None:
            raise ValueError("these sequences were read without their continuation bits")
        return np.unpackbits(self.bits, count=len(self.ids), bitorder="little").view(np.bool_)


@dataclass(frozen=True)
class Masked:
    """Sequences with [CLS] and [SEP], masked, as one stream, in the types that a training step takes.

    ``ids``, ``positions`` (from 0 in each sequence): int32 [N]; ``offsets``: int64 [n + 1]; ``rows``: int64 [M], the
    selected rows of the stream, ascending, and ``labels``: int64 [M], the tokens that stood there; ``sequence_ids``:
    uint64 [n]; ``types``: int32 [N] and ``order`` as in :class:`Gathered`.
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    offsets: Ints
    rows: Ints
    labels: Ints
    sequence_ids: NDArray[np.uint64]
    types: NDArray[np.int32] | None = None
    order: Ints | None = None


class ShardSplit:
    """One split of one shard, mapped."""

    def __init__(self, folder: Path, facts: dict[str, Any], corpus: dict[str, Any]) -> None:
        tokens, sequences, pieces = facts["tokens"], facts["sequences"], facts["pieces"]
        self.folder = folder
        self.view = folder / "sequences" / corpus["variant"]
        self.arrays = Arrays(
            map_array(folder / "tokens.bin", corpus["dtype"], (tokens,)),
            map_array(folder / "words.bits", "u1", ((tokens + 7) // 8,)),
            map_array(self.view / "offsets.bin", "<i8", (sequences + 1,)),
            map_array(self.view / "pieces.bin", "<i8", (pieces, 2)),
            map_array(self.view / "firsts.bin", "<u2", (sequences,)) if corpus["pairs"] else None,
            map_array(self.view / "order.bin", "u1", (sequences,)) if corpus["pairs"] else None,
        )
        self._dtype = corpus["dtype"]
        self._masked = facts["masked"]

    @cached_property
    def files(self) -> dict[str, dict[str, Any]]:
        """What the shard's manifest says of each file."""
        manifest = read_manifest(self.folder.parent)
        return {str(self.folder.parent / name): facts for name, facts in manifest["files"].items()}

    def checked(self) -> list[Checked | None]:
        paths = [self.folder / "tokens.bin", self.folder / "words.bits"]
        paths += [self.view / f"{name}.bin" for name in _SEQUENCE_FILES]
        arrays = (getattr(self.arrays, name) for name in Arrays.__dataclass_fields__)
        return [
            None if array is None else Checked(path, array, self.files[str(path)])
            for path, array in zip(paths, arrays, strict=True)
        ]

    def mask_view(self, view: int) -> list[NDArray[Any]]:
        """Offsets, positions and ids of a stored view, mapped."""
        folder, m = self.view / "masks" / f"view-{view}", self._masked[view]
        return [
            map_array(folder / "offsets.bin", "<u8", (len(self.arrays.offsets),)),
            map_array(folder / "positions.bin", "<u2", (m,)),
            map_array(folder / "ids.bin", self._dtype, (m,)),
        ]

    def checked_view(self, view: int, arrays: list[NDArray[Any]]) -> list[Checked | None]:
        paths = [self.view / "masks" / f"view-{view}" / f"{name}.bin" for name in _MASK_FILES]
        return [Checked(path, array, self.files[str(path)]) for path, array in zip(paths, arrays, strict=True)]


class StoredViews:
    """The stored mask views of a split: mapped when they are first read."""

    def __init__(self, shards: list[ShardSplit], views: int, verify: bool) -> None:
        self._shards, self._verify = shards, verify
        self._arrays: dict[int, list[list[NDArray[Any]]]] = {}
        self._mapping = threading.Lock()
        self._touched: dict[int, FirstTouch] = {}
        self.addresses = np.zeros((views, len(shards), 3), np.uint64)
        self.sizes = np.zeros((views, len(shards)), np.int64)

    def touch(self, wide: bool, owner: Ints, local: Ints, which: Ints) -> None:
        """Map the views ``which`` (int64 [n]) and check what will be read of them."""
        for view in np.flatnonzero(np.bincount(which)).tolist():
            with self._mapping:
                if view not in self._arrays:
                    self._map(view)
            touched = self._touched.get(view)
            if touched is not None and touched.left:
                here = which == view
                for stage in (INDEX, CONTENT):
                    where = (tuple(touched.blocks), stage, owner[here], local[here])
                    touched.check(unread_masks(self.addresses[view], wide, *where))

    def _map(self, view: int) -> None:
        arrays = [shard.mask_view(view) for shard in self._shards]
        if self._verify:
            files = [shard.checked_view(view, own) for shard, own in zip(self._shards, arrays, strict=True)]
            self._touched[view] = FirstTouch(files)
        for s, own in enumerate(arrays):
            self.addresses[view, s] = [array.ctypes.data for array in own]
            self.sizes[view, s] = len(own[1])
        self._arrays[view] = arrays


class Split:
    """The sequences of one split over all shards, numbered through."""

    def __init__(
        self,
        shards: list[ShardSplit],
        manifest: dict[str, Any],
        name: SplitName,
        counts: Ints,
        words: SimilarWords | None,
        verify: bool,
    ) -> None:
        masking, tokenizer = manifest["masking"], manifest["tokenizer"]
        self._masking = MaskConfig(**{k: v for k, v in masking.items() if k in MaskConfig.model_fields})
        self._seed: int = masking["seed"]
        self.vocab_size: int = tokenizer["vocab_size"]
        self._rule = mask_rule(self._masking, name, tokenizer["special_ids"], tokenizer["vocab_size"], counts, words)
        self._marks = (int(tokenizer["special_ids"]["cls"]), int(tokenizer["special_ids"]["sep"]))
        self.name = name
        self.pairs: bool = manifest.get("pairs", False)
        self.specials = 3 if self.pairs else 2
        """[CLS] and [SEP]s of a sequence."""
        facts = manifest["splits"][name]
        self.n_tokens = int(facts.get("sequence_tokens", facts["tokens"]))
        """Tokens of all sequences without those."""
        bit = int(HELD_OUT_BIT) if name == "held_out" else 0
        self._bases = np.array([s["ordinal"] << 32 | bit for s in manifest["shards"]], np.uint64)
        self._shards = shards
        wide = tokenizer["dtype"] == "uint32"
        self._mapped = Mapped([shard.arrays for shard in shards], wide, self.pairs)
        self._touched = FirstTouch([shard.checked() for shard in shards]) if verify else None
        self._views = StoredViews(shards, self._masking.views, verify)

    def __len__(self) -> int:
        return int(self._mapped.starts[-1])

    def _find(self, index: Ints, content: bool = True) -> tuple[tuple[Ints, Ints, Ints], NDArray[np.uint64]]:
        """(shard [n], number in it [n], where it begins in a batch [n + 1]) of each sequence, int64, and its id.

        What reading them touches is sound then; without ``content``: what reading their index does.
        """
        owner, local, offsets, names, bad = find(self._mapped.table, self._bases, np.ascontiguousarray(index, np.int64))
        if bad == OUTSIDE:
            raise IndexError(f"sequence numbers must be in 0 .. {len(self) - 1}")
        self._touch(owner, local, content and bad < 0)
        if bad >= 0:
            raise DataError(f"The sequence index {self._shards[bad].view} is damaged. Run `distill data verify`.")
        return (owner, local, offsets), names

    def _touch(self, owner: Ints, local: Ints, content: bool) -> None:
        if self._touched is None or not self._touched.left:
            return
        table, blocks = self._mapped.table, tuple(self._touched.blocks)
        if not known(table, blocks, content, owner, local):
            for stage in (INDEX, PARTS, CONTENT) if content else (INDEX, PARTS):
                self._touched.check(unread(table, blocks, stage, owner, local))

    def lengths(self, index: Ints) -> NDArray[np.int32]:
        """int32 [n]: tokens with [CLS] and [SEP]s."""
        return np.diff(self._find(index, content=False)[0][2]).astype(np.int32)

    def sequence_ids(self, index: Ints) -> NDArray[np.uint64]:
        """uint64 [n]: ids that do not depend on workers, ranks or other shards."""
        return self._find(index, content=False)[1]

    def gather(self, index: Ints, with_bits: bool = True, empty: Empty = np.empty) -> Gathered:
        """The sequences ``index`` (int64 [n]) in this order, with or without their continuation bits.

        ``empty``: makes the arrays of the result, in memory of the caller's choice.
        """
        (owner, local, offsets), _ = self._find(index)
        total = int(offsets[-1])
        ids = empty(total, np.uint32 if self._mapped.wide else np.uint16)
        bits = np.zeros((total + 63) // 64 if with_bits else 0, np.uint64)
        kinds = empty(total if self.pairs else 0, np.uint8)
        order = empty(len(owner) if self.pairs else 0, np.int64)
        gather(self._mapped.table, owner, local, offsets, self._marks, ids, bits, kinds, order)
        packed = bits.view(np.uint8)[: (total + 7) // 8] if with_bits else None
        return Gathered(ids, packed, offsets, *((kinds, order) if self.pairs else ()))

    def masked(self, index: Ints, views: Ints, empty: Empty = np.empty) -> Masked:
        """The sequences ``index`` (int64 [n]) in this order, masked under their ``views`` (int64 [n]; the epoch).

        ``empty``: as in :meth:`gather`.
        """
        (owner, local, offsets), names = self._find(index)
        total = int(offsets[-1])
        ids, positions = empty(total, np.int32), empty(total, np.int32)
        kinds, order = empty(total if self.pairs else 0, np.int32), empty(len(owner) if self.pairs else 0, np.int64)
        out = (ids, positions, kinds, order)
        if self._masking.stored(self.name):
            which = np.asarray(views, np.int64) % self._masking.views
            starts = self._stored_starts(owner, local, which)
            rows, labels = empty(int(starts[-1]), np.int64), empty(int(starts[-1]), np.int64)
            stream = (owner, local, which, offsets, starts, self._marks)
            bad = gather_stored(self._mapped.table, self._views.addresses, *stream, *out, rows, labels)
            if bad >= 0:
                raise self._damaged_masks(bad)
        else:
            key, where = (self._rule, self._seed, views, names), (owner, local, offsets)
            _, rows, labels = draw_into(self._mapped, *key, where, self._marks, out, empty)
        return Masked(ids, positions, offsets, rows, labels, names, *((kinds, order) if self.pairs else ()))

    def masks(self, index: Ints, views: Ints) -> Masks:
        """The masks of the sequences under their ``views`` (int64 [n]; the epoch): stored or drawn.

        Empty for the training split when the rate is 0; held_out is then masked at ``config.HELD_OUT_RATE``.
        """
        if self._masking.stored(self.name):
            return self.stored_masks(index, np.asarray(views) % self._masking.views)
        return self.drawn_masks(index, views)

    def drawn_masks(self, index: Ints, views: Ints) -> Masks:
        """Drawn now, by the function that also made the stored ones."""
        return drawn(self._mapped, self._rule, self._seed, views, self._find(index)[1], index)

    def stored_masks(self, index: Ints, views: Ints) -> Masks:
        """Read from the stored views."""
        (owner, local, _), _ = self._find(index, content=False)
        which = np.asarray(views, np.int64)
        starts = self._stored_starts(owner, local, which)
        positions, ids = (np.empty(int(starts[-1]), np.int64) for _ in range(2))
        stored(self._views.addresses, self._mapped.wide, owner, local, which, starts, positions, ids)
        return Masks(starts, positions, ids)

    def _stored_starts(self, owner: Ints, local: Ints, which: Ints) -> Ints:
        """int64 [n + 1]: where the selected tokens of each sequence begin in a batch."""
        self._views.touch(self._mapped.wide, owner, local, which)
        starts: Ints
        starts, bad = stored_counts(self._views.addresses, self._views.sizes, owner, local, which)
        if bad >= 0:
            raise self._damaged_masks(bad)
        return starts

    def _damaged_masks(self, shard: int) -> DataError:
        return DataError(f"The masks in {self._shards[shard].view} are damaged. Run `distill data verify`.")


class Corpus:
    """A prepared data folder."""

    def __init__(self, folder: Path, manifest: dict[str, Any], verify: Verify = "first_touch") -> None:
        self.verify = verify
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
    def open(cls, folder: Path, verify: Verify = "first_touch") -> Corpus:
        """Map a prepared folder.

        Args:
            verify: when files are held against their checksums: ``open``: now, all of them; ``first_touch``: each
                block of 4 MiB when it is first read; ``none``: never.

        Raises:
            DataError: unless the manifest is there and every file of every shard has its size (``open``: and content).
        """
        manifest = read_manifest(folder)
        for part in (folder, *(folder / "shards" / shard["name"] for shard in manifest["shards"])):
            troubles = shard_trouble(part, thorough=verify == "open")
            if troubles:
                raise DataError(f"{troubles[0]} Run `distill data verify`, and `distill prep` to make it anew.")
        return cls(folder, manifest, verify)

    def split(self, name: SplitName) -> Split:
        """Its sequences.

        Raises:
            DataError: the folder was prepared without text.
        """
        if not self.has_text:
            raise DataError(f"{self.folder} holds a tokenizer and no text: it was prepared without `data.sources`.")
        if name not in self._splits:
            facts = {
                "dtype": self.manifest["tokenizer"]["dtype"],
                "variant": self.manifest["variant"],
                "pairs": self.manifest.get("pairs", False),
            }
            shards = [
                ShardSplit(self.folder / "shards" / s["name"] / name, s["splits"][name], facts)
                for s in self.manifest["shards"]
            ]
            words = open_similar(self.folder) if self.manifest["masking"].get("similar") else None
            checked = self.verify == "first_touch"
            self._splits[name] = Split(shards, self.manifest, name, self.unigram, words, checked)
        return self._splits[name]

    @property
    def unigram(self) -> Ints:
        """int64 [V]: how often each token stands in the training split."""
        return np.asarray(map_array(self.folder / "unigram.bin", "<i8", (self.vocab_size,)))

"""The teacher's representations of the reference texts, computed once and memory-mapped.

    manifest.json    written last: hash of the teacher's weights, counts, sizes and hashes of the files
    hashes.bin       uint64 [n]: the texts, by content
    offsets.bin      int64 [n + 1]
    tokens.bin       int32 [T]: the first ``max_tokens`` token ids of each text
    vectors.bin      float16 or int8 [T, H]: the teacher's last hidden state there, having read the whole text
    scales.bin       float32 [T] (int8 only): a row's values are its numbers times its scale (largest = 127)

A token takes 2 H bytes as fp16 and H + 4 as int8, and 4 for its id.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.errors import DataError, OutputError
from data_prep.corpus import offsets_of, spread
from data_prep.shards import map_array, write_array
from distill_core.batch import Batch
from distill_core.data import cut
from distill_core.engine import Rank
from distill_core.features import FeatureRequest
from distill_core.models.attention import Kernel, layout
from distill_core.references.config import StoreDtype
from distill_core.references.encoder import encoder_of
from distill_core.references.files import Parts, is_made, put_together, unseal
from distill_core.references.reference import References
from distill_core.references.texts import Texts, TextSource, blocks
from distill_core.tasks.model import StageModel

Ints = NDArray[np.int64]
PART = 512
"""Texts whose vectors are one file until all are there."""


@dataclass(frozen=True)
class Reader:
    """The teacher that reads the texts: frozen, in eval mode, on ``device``."""

    model: StageModel
    device: torch.device
    kernel: Kernel
    micro_batch_tokens: int

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    @torch.no_grad()
    def read(self, texts: Texts, kept: Ints) -> NDArray[np.float32]:
        """The last hidden state at the first ``kept`` (int64 [n]) tokens of each text: float32 [sum of kept, H]."""
        lengths = np.diff(texts.offsets)
        starts = offsets_of(kept)
        out = np.empty((int(starts[-1]), self.width), np.float32)
        last = self.model.config.num_hidden_layers
        for places in cut(lengths, 1, max(self.micro_batch_tokens, int(lengths.max()))):
            index = places[0]
            where = spread(texts.offsets[index], lengths[index])
            positions = where - np.repeat(texts.offsets[index], lengths[index])
            types = torch.from_numpy(texts.types[where]) if texts.types[where].any() else None
            ids = torch.from_numpy(texts.ids[where])
            batch = Batch(ids, torch.from_numpy(positions), layout(lengths[index].tolist(), self.kernel), types)
            request = FeatureRequest(hidden=frozenset({last}))
            hidden = encoder_of(self.model)(batch.to(self.device), request).hidden[last]
            found = hidden.float().cpu().numpy()[positions < np.repeat(kept[index], lengths[index])]
            out[spread(starts[index], kept[index])] = found
        return out


def quantise(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 [T, H] and a scale a row, float32 [T], so that numbers * scale is off by at most scale / 2."""
    scales = np.abs(vectors).max(axis=1).astype(np.float32) / 127
    scales[scales == 0] = 1.0
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales


def store_bytes(texts: int, tokens: int, width: int, dtype: StoreDtype) -> int:
    """Of a store of so many texts and tokens, without its manifest."""
    return 8 * (2 * texts + 1) + tokens * (4 + (2 * width if dtype == "fp16" else width + 4))


@dataclass(frozen=True)
class ReferenceStore:
    """A store, mapped (see the head of this file)."""

    folder: Path
    facts: dict[str, Any]
    hashes: NDArray[np.uint64]
    offsets: Ints
    tokens: NDArray[np.int32]
    vectors: NDArray[Any]
    scales: NDArray[np.float32] | None

    @classmethod
    def open(cls, folder: Path, teacher: str | None = None, thorough: bool = False) -> ReferenceStore:
        """Map a store.

        Args:
            teacher: the hash of the teacher's weights that it must be of; None: of any.
            thorough: hash the files again.

        Raises:
            DataError: it is damaged, or another teacher's.
        """
        facts = unseal(folder, thorough)
        if teacher is not None and facts["teacher"] != teacher:
            raise DataError(
                f"The reference store {folder} holds the vectors of another teacher (weights {facts['teacher']}, "
                f"wanted {teacher}). Delete it and repeat the run's command: it is made anew."
            )
        n, tokens, width, dtype = (facts[name] for name in ("texts", "tokens", "width", "dtype"))
        kind = "<f2" if dtype == "fp16" else "i1"
        return cls(
            folder,
            facts,
            hashes=map_array(folder / "hashes.bin", "<u8", (n,)),
            offsets=map_array(folder / "offsets.bin", "<i8", (n + 1,)),
            tokens=map_array(folder / "tokens.bin", "<i4", (tokens,)),
            vectors=map_array(folder / "vectors.bin", kind, (tokens, width)),
            scales=map_array(folder / "scales.bin", "<f4", (tokens,)) if dtype == "int8" else None,
        )

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def width(self) -> int:
        return int(self.facts["width"])

    @property
    def bytes(self) -> int:
        return sum(int(file["bytes"]) for file in self.facts["files"].values())

    def references(self, texts: Ints) -> References:
        """The references of a batch: ``texts``, int64 [B], numbers in the store, -1: none."""
        has = texts >= 0
        starts = np.where(has, self.offsets[np.where(has, texts, 0)], 0)
        sizes = np.where(has, self.offsets[np.where(has, texts + 1, 0)] - starts, 0)
        rows = spread(starts, sizes)
        vectors: Tensor = torch.from_numpy(self.vectors[rows])
        if self.scales is not None:
            vectors = vectors.float() * torch.from_numpy(self.scales[rows])[:, None]
        return References(
            ids=torch.from_numpy(self.tokens[rows].astype(np.int64)),
            positions=torch.from_numpy(rows - np.repeat(starts, sizes)),
            sizes=torch.from_numpy(sizes),
            vectors=vectors,
            lengths=tuple(sizes.tolist()),
        )


@dataclass(frozen=True)
class StorePlan:
    """What a store will hold: the texts ``numbers`` of ``source``, with ``hashes``."""

    source: TextSource
    numbers: Ints
    hashes: NDArray[np.uint64]
    sizes: Ints
    max_tokens: int
    dtype: StoreDtype

    @classmethod
    def of(
        cls, source: TextSource, numbers: Ints, hashes: NDArray[np.uint64], max_tokens: int, dtype: StoreDtype
    ) -> StorePlan:
        found = [np.diff(texts.offsets) for texts in blocks(source, numbers)]
        sizes = np.minimum(np.concatenate(found), max_tokens)
        return cls(source, numbers, hashes, sizes, max_tokens, dtype)

    def bytes(self, width: int) -> int:
        return store_bytes(len(self.numbers), int(self.sizes.sum()), width, self.dtype)


def make_store(folder: Path, key: str, plan: StorePlan, reader: Reader, teacher: str, rank: Rank) -> None:
    """Write a store unless it is there for ``key``; ranks share the texts, a restart keeps what is done. Collective.

    Raises:
        DataError: the teacher gives numbers that are not finite, or too large for fp16.
        OutputError: there is no room on the disk, or the folder cannot be written.
    """
    if is_made(folder, key, rank):
        return
    parts = Parts(folder.with_name("parts"), key, len(plan.numbers), PART)
    if rank.is_first:
        check_room(folder, 2 * plan.bytes(reader.width))  # the parts, and the whole that is made of them
    parts.write(rank, lambda first, last: _part(plan, reader, first, last))
    if rank.is_first:
        put_together(folder, key, lambda aside: _join(aside, plan, parts, reader.width, teacher))
        parts.remove()
    rank.barrier()


def check_room(folder: Path, needed: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise OutputError(
            f"The references in {folder} need about {needed / 1e9:.2f} GB while they are made, but there are only "
            f"{free / 1e9:.2f} GB free. Lower references.documents or references.max_tokens, take references.store: "
            "int8, or free some space."
        )


def _part(plan: StorePlan, reader: Reader, first: int, last: int) -> bytes:
    """The vectors of some texts, for int8 followed by their scales."""
    vectors = reader.read(plan.source.texts(plan.numbers[first:last]), plan.sizes[first:last])
    if plan.dtype == "int8" and np.isfinite(vectors).all():
        numbers, scales = quantise(vectors)
        return numbers.tobytes() + scales.astype("<f4").tobytes()
    with np.errstate(over="ignore"):
        halves = vectors.astype("<f2")
    if not np.isfinite(halves).all():
        raise DataError(
            f"The teacher's hidden states of the texts {plan.numbers[first]} to {plan.numbers[last - 1]} hold numbers "
            "that are not finite, or too large for fp16 (65504). Take references.store: int8, or another teacher."
        )
    return halves.tobytes()


def _join(aside: Path, plan: StorePlan, parts: Parts, width: int, teacher: str) -> dict[str, Any]:
    write_array(aside / "hashes.bin", plan.hashes)
    write_array(aside / "offsets.bin", offsets_of(plan.sizes))
    with (aside / "tokens.bin").open("wb") as file:
        done = 0
        for texts in blocks(plan.source, plan.numbers):
            n = len(texts.offsets) - 1
            file.write(texts.ids[spread(texts.offsets[:-1], plan.sizes[done : done + n])].astype("<i4").tobytes())
            done += n
    item = 2 if plan.dtype == "fp16" else 1
    with (aside / "vectors.bin").open("wb") as vectors, (aside / "scales.bin").open("wb") as scales:
        for number in range(parts.count):
            first, last = parts.stretch(number)
            content = memoryview(parts.read(number))
            border = int(plan.sizes[first:last].sum()) * width * item
            vectors.write(content[:border])
            scales.write(content[border:])
    if plan.dtype == "fp16":
        (aside / "scales.bin").unlink()
    return {
        "teacher": teacher,
        "texts": len(plan.numbers),
        "tokens": int(plan.sizes.sum()),
        "width": width,
        "dtype": plan.dtype,
        "max_tokens": plan.max_tokens,
    }

"""Which documents of the corpus are duplicates, found from the surveys of all blocks (survey.py).

Two documents are one cluster when their texts have the same 128-bit hash, or when their signatures share a band and
agree in ``dedup.near.threshold`` of their values; so are documents connected by others. Of a cluster the first
document in corpus order is kept. As this happens before the split, no text stands in both splits; with ``near``, no
near-duplicate of a text does either.

Out of core: hashes and band keys are sorted by external merge sort (external.py), the clusters are a union-find in
mapped files (clusters.py). Of the documents that share a key each is compared with the first and the latest before it.

    DATA/duplicates/   dropped.bin    uint8 [n] in corpus order: 0 kept, else an index into ``drops.REASONS``
                       blocks.bin     int64 [blocks + 1]: where each block begins in it
                       manifest.json  ``made_from``, counts, and examples of clusters
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError, output_error
from data_prep.atomic import sweep
from data_prep.block import Task
from data_prep.clusters import Clusters
from data_prep.config_quality import DedupConfig, NearConfig
from data_prep.drops import FOLDER, REASONS
from data_prep.external import Records, pairs_of_equal_keys
from data_prep.minhash import EMPTY, bands, describe_signatures
from data_prep.shards import allow_open_files, map_array, read_manifest, sealed_folder, shard_trouble, write_array
from data_prep.survey import BANDS, HASHES, SIGNATURES, survey_facts, survey_folder

Ints = NDArray[np.int64]
_RECORDS = 1 << 16
_COMPARED = 1 << 13
DUPLICATE, NEAR_DUPLICATE = (REASONS.index(name) for name in ("duplicate", "near_duplicate"))


def found_already(tasks: Sequence[Task]) -> bool:
    """Whether the duplicates of these very blocks are known, so that no survey is needed."""
    folder = tasks[0].data / FOLDER
    return not shard_trouble(folder, thorough=False) and read_manifest(folder)["made_from"] == made_from(tasks)


def made_from(tasks: Sequence[Task]) -> str:
    """A hash of all that the findings depend on; the names of the tasks hold configuration, blocks and inputs."""
    near = tasks[0].config.dedup.near
    content = [[task.name for task in tasks], "" if near is None else describe_signatures()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def merge(tasks: Sequence[Task]) -> None:
    """From the surveys of all blocks to ``DATA/duplicates``, and the surveys are removed; at once when that is done.

    Raises:
        DataError: a survey is missing.
        OutputError: the folder cannot be written, or the disk is full.
    """
    data = tasks[0].data
    sweep(data)  # of a merge that was killed
    if not found_already(tasks):
        surveys, rule = Surveys.open(tasks), tasks[0].config.dedup
        with sealed_folder(data / FOLDER) as (aside, facts):
            clusters = Clusters(aside, surveys.documents)
            if rule.exact:
                find_exact(surveys, clusters, aside, rule)
                clusters.drop(DUPLICATE)
            if rule.near is not None:
                find_near(surveys, clusters, aside, rule, rule.near)
                clusters.drop(NEAR_DUPLICATE)
            write_array(aside / "blocks.bin", surveys.starts)
            facts |= {"made_from": made_from(tasks), "blocks": len(tasks), "documents": surveys.documents}
            facts |= described(surveys, clusters)
            clusters.close()
    try:
        if (data / "survey").exists():
            shutil.rmtree(data / "survey")
    except OSError as error:
        raise output_error(data / "survey", error) from error


@dataclass(frozen=True)
class Surveys:
    """The surveys of all blocks, mapped. ``starts``: int64 [blocks + 1], numbers of documents in the corpus."""

    starts: Ints
    hashes: list[NDArray[np.uint64]]
    """[d, 2] each; [] without ``dedup.exact``."""
    signatures: list[NDArray[np.uint32]]
    """[d, permutations] each; [] without ``dedup.near``, as the next."""
    bands: list[NDArray[np.uint64]]
    """[bands, d] each."""

    @classmethod
    def open(cls, tasks: Sequence[Task]) -> Surveys:
        rule = tasks[0].config.dedup
        counts = []
        for task in tasks:
            facts = survey_facts(task)
            if facts is None:
                raise DataError(f"{survey_folder(task)} is missing or damaged. Run `distill prep` again.")
            counts.append(facts["documents"])
        allow_open_files(3 * len(tasks))

        def maps(name: str, dtype: str, *shape: int) -> list[NDArray[Any]]:
            """With -1 in ``shape`` for the number of documents."""
            each = zip(tasks, counts, strict=True)
            return [map_array(survey_folder(t) / name, dtype, tuple(n if s < 0 else s for s in shape)) for t, n in each]

        hashes = maps(HASHES, "<u8", -1, 2) if rule.exact else []
        signatures, keys = [], []
        if rule.near is not None:
            signatures = maps(SIGNATURES, "<u4", -1, rule.near.permutations)
            keys = maps(BANDS, "<u8", bands(rule.near)[0], -1)
        return cls(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), hashes, signatures, keys)

    @property
    def documents(self) -> int:
        return int(self.starts[-1])

    def block_of(self, numbers: Ints) -> Ints:
        """int64 [k]: the block that each document stands in."""
        return np.searchsorted(self.starts, numbers, side="right") - 1

    def rows(self, kind: list[NDArray[Any]], numbers: Ints) -> NDArray[Any]:
        """[k, ...]: the rows of these documents in ``hashes`` or ``signatures``."""
        blocks = self.block_of(numbers)
        out = np.empty((len(numbers), kind[0].shape[1]), kind[0].dtype)
        for block in np.unique(blocks):
            here = blocks == block
            out[here] = kind[block][numbers[here] - self.starts[block]]
        return out


def find_exact(surveys: Surveys, clusters: Clusters, scratch: Path, rule: DedupConfig) -> None:
    """Unite the documents with the same hash; sorted by its first half, compared in whole."""

    def records() -> Iterator[Records]:
        for block, hashes in enumerate(surveys.hashes):
            for begin in range(0, len(hashes), _RECORDS):
                keys = np.ascontiguousarray(hashes[begin : begin + _RECORDS, 0])
                yield keys, np.arange(len(keys), dtype=np.int64) + (surveys.starts[block] + begin)

    for pairs in pairs_of_equal_keys(records(), scratch, rule.memory_megabytes << 20):
        left, right = (surveys.rows(surveys.hashes, pairs[:, side]) for side in (0, 1))
        clusters.unite(pairs[(left == right).all(axis=1)])


def find_near(surveys: Surveys, clusters: Clusters, scratch: Path, rule: DedupConfig, near: NearConfig) -> None:
    """Unite the documents that share a band and whose signatures agree; without those that are dropped already."""
    for band in range(bands(near)[0]):
        records = band_records(surveys, clusters, band)
        for some in pairs_of_equal_keys(records, scratch, rule.memory_megabytes << 20):
            for begin in range(0, len(some), _COMPARED):
                pairs = some[begin : begin + _COMPARED]
                pairs = pairs[clusters.apart(pairs)]
                clusters.unite(pairs[agreement(surveys, pairs) >= near.threshold])


def band_records(surveys: Surveys, clusters: Clusters, band: int) -> Iterator[Records]:
    """The keys of one band in all documents that are compared."""
    for block, keys in enumerate(surveys.bands):
        for begin in range(0, keys.shape[1], _RECORDS):
            own = keys[band, begin : begin + _RECORDS]
            first = int(surveys.starts[block]) + begin
            compared = np.asarray(clusters.dropped[first : first + len(own)]) == 0
            compared &= surveys.signatures[block][begin : begin + len(own), 0] != EMPTY
            yield own[compared], np.flatnonzero(compared) + first


def agreement(surveys: Surveys, pairs: Ints) -> NDArray[np.float64]:
    """float64 [p]: the share of values that the signatures of each pair have in common."""
    left, right = (surveys.rows(surveys.signatures, pairs[:, side]) for side in (0, 1))
    return np.asarray((left == right).mean(axis=1), np.float64)


def described(surveys: Surveys, clusters: Clusters) -> dict[str, Any]:
    """Counts, and example clusters with their first members, by block and number in it, the kept one first."""
    number, largest, chosen = clusters.examples()
    shown = []
    for cluster in chosen:
        numbers = np.array(cluster.members, np.int64)
        blocks = surveys.block_of(numbers)
        likeness: list[float | None] = [None] * len(numbers)
        if surveys.signatures:
            kept = np.full(len(numbers), numbers[0])
            likeness = np.round(agreement(surveys, np.stack([numbers, kept], axis=1)), 3).tolist()
        members = [
            {
                "block": int(block),
                "document": int(place - surveys.starts[block]),
                "reason": REASONS[clusters.dropped[place]] or "kept",
                "similarity": similarity,
            }
            for place, block, similarity in zip(numbers, blocks, likeness, strict=True)
        ]
        shown.append({"size": cluster.size, "members": members})
    dropped = np.zeros(len(REASONS), np.int64)
    for begin in range(0, surveys.documents, 1 << 20):
        dropped += np.bincount(clusters.dropped[begin : begin + (1 << 20)], minlength=len(REASONS))
    counts = {reason: int(n) for reason, n in zip(REASONS[1:], dropped[1:], strict=True)}
    return {"dropped": counts, "clusters": number, "largest": largest, "examples": shown}

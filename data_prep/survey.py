"""What deduplication needs to know of each document, block by block: ``DATA/survey/NAME/`` (removed when used).

    hashes.bin      uint64 [d, 2]: xxh3-128 of the cleaned text (only with ``dedup.exact``)
    signatures.bin  uint32 [d, permutations] (only with ``dedup.near``, as the next)
    bands.bin       uint64 [bands, d]: a hash of the signature's values in each band
    manifest.json   documents: d; size and hash of the files

A document is known by its place in the corpus: its block, and its number among those that cleaning and filters leave.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_prep.block import Task, cleaned
from data_prep.clusters import mapped
from data_prep.config_quality import NearConfig
from data_prep.documents import Counts
from data_prep.minhash import band_keys, bands, signatures
from data_prep.shards import map_array, read_manifest, sealed_folder, shard_trouble

HASHES, SIGNATURES, BANDS = "hashes.bin", "signatures.bin", "bands.bin"
_ROWS = 1 << 16


def survey_folder(task: Task) -> Path:
    return task.data / "survey" / task.name


def survey_facts(task: Task) -> dict[str, Any] | None:
    """The manifest of a block's survey, if that is whole."""
    folder = survey_folder(task)
    return None if shard_trouble(folder, thorough=False) else read_manifest(folder)


def survey_block(task: Task) -> dict[str, Any]:
    """Read and clean the block of ``task``, write what there is to know of its documents; returns the manifest's facts.

    Harmless when done twice; a whole survey is not done again.
    """
    done = survey_facts(task)
    if done is not None:
        return done
    counts, rule = Counts(), task.config.dedup
    (task.data / "survey").mkdir(parents=True, exist_ok=True)
    with sealed_folder(survey_folder(task)) as (aside, facts):
        documents = 0
        with (aside / HASHES).open("wb") as hashes, (aside / SIGNATURES).open("wb") as values:
            for stream in cleaned(task.config, task.reader, task.block, counts):
                chars, borders = stream.chars, stream.documents
                documents += len(borders) - 1
                if rule.exact:
                    hashes.write(text_hashes(chars, borders).astype("<u8").tobytes())
                if rule.near is not None:
                    values.write(signatures(chars, borders, rule.near).astype("<u4").tobytes())
        for name, used in ((HASHES, rule.exact), (SIGNATURES, rule.near is not None)):
            if not used:
                os.remove(aside / name)
        if rule.near is not None:
            write_bands(aside, documents, rule.near)
        facts.update(ordinal=task.ordinal, documents=documents, counts=dict(counts))
    return facts


def write_bands(folder: Path, documents: int, near: NearConfig) -> None:
    """``bands.bin`` from ``signatures.bin``, band by band, so that each can be read by itself."""
    count, rows = bands(near)
    values = map_array(folder / SIGNATURES, "<u4", (documents, near.permutations))
    out = mapped(folder / BANDS, np.dtype("<u8"), count * documents).reshape(count, documents)
    for begin in range(0, documents, _ROWS):
        some = np.asarray(values[begin : begin + _ROWS])
        for band in range(count):
            out[band, begin : begin + _ROWS] = band_keys(some, band, rows)


def text_hashes(chars: NDArray[np.uint32], documents: NDArray[np.int64]) -> NDArray[np.uint64]:
    """uint64 [d, 2]: the xxh3-128 of each document's code points."""
    view, digest = np.ascontiguousarray(chars, "<u4").view(np.uint8).data, xxhash.xxh3_128_digest
    found = b"".join(digest(view[4 * a : 4 * b]) for a, b in pairwise(documents.tolist()))
    return np.frombuffer(found, ">u8").astype(np.uint64).reshape(-1, 2)

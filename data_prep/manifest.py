"""The end of preparation: totals over the shards and the manifest that makes the folder complete; and its checking."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import DataError
from configs.loader import identity as identity_of
from data_prep.atomic import sweep, sync, write_bytes
from data_prep.block import close_tools
from data_prep.corpus import Corpus
from data_prep.documents import Counts
from data_prep.drops import duplicate_facts
from data_prep.plan import Job, writing
from data_prep.shards import file_hash, map_array, read_manifest, shard_trouble, write_manifest
from data_prep.share import by_source
from data_prep.similar import FOLDER as SIMILAR
from data_prep.sources import label_of, shards_of

Splits = dict[str, Counter[str]]
Shards = list[tuple[str, dict[str, Any]]]
"""Name and manifest."""


def write_corpus(job: Job) -> None:
    """Totals over the shards, the unigram counts, and the corpus hash.

    Raises:
        DataError: a shard is missing or not sound; a split is empty.
        OutputError: the folder cannot be written, or the disk is full.
    """
    folder = job.folder
    with writing(folder):
        shards = list(shards_of(folder, [task.name for task in job.tasks]))
        counts, splits, unigram = totals(job, shards)
        if job.config.sources:
            check_splits(splits, counts)
        write_bytes(folder / "unigram.bin", unigram.astype("<i8").tobytes())
        manifest = describe(job, shards, counts, splits)
        if job.config.sources:
            from data_prep.report import write_report

            close_tools()
            write_report(Corpus(folder, manifest), job.tokenizer, [shard for _, shard in shards])
        sweep(folder)
        sweep(folder / "shards", everything=True)
        write_manifest(folder, manifest)


def get_ready() -> None:
    """Import what :func:`write_corpus` needs for the report: a fifth of a second, and workers have no use for it."""
    import data_prep.events
    import data_prep.report  # noqa: F401


def totals(job: Job, shards: Shards) -> tuple[Counter[str], Splits, Any]:
    """(counts over all shards, facts of each split, int64 [V] tokens of the training split)."""
    counts: Counter[str] = Counter()
    splits: Splits = {"train": Counter(), "held_out": Counter()}
    size = job.tokenizer.vocab_size
    unigram = np.zeros(size, np.int64)
    for folder, shard in shards:
        counts.update(shard["counts"])
        for name, total in splits.items():
            facts = shard["splits"][name]
            total.update({k: v for k, v in facts.items() if isinstance(v, int)})
            total["masked"] += sum(facts["masked"][:1])
        unigram += map_array(job.folder / "shards" / folder / "train" / "unigram.bin", "<i8", (size,))
    return counts, splits, unigram


def describe(job: Job, shards: Shards, counts: Counter[str], splits: Splits) -> dict[str, Any]:
    """The content of the manifest."""
    config, tokenizer, seconds = job.config, job.tokenizer, job.seconds
    listed = [
        {"name": name, "ordinal": shard["ordinal"], "splits": shard["splits"], "hash": content_hash(shard["files"])}
        for name, shard in shards
    ]
    masking = {**config.masks.model_dump(), "held_out_rate": config.masks.rate_of("held_out"), "seed": config.seed}
    digest = json.dumps([[s["hash"] for s in listed], tokenizer.hash, masking], sort_keys=True)
    return {
        "hash": hashlib.sha256(digest.encode()).hexdigest()[:32],
        "identity": identity_of(config),
        "inputs": {r.path: os.path.getsize(r.path) for r in job.readers if os.path.isfile(r.path)},
        "tokenizer": {
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "dtype": tokenizer.dtype.name,
            "special_ids": tokenizer.special_ids,
            "hash": tokenizer.hash,
            "trained": config.tokenizer.vocab is None,
        },
        "segmenter": job.segmenter,
        "variant": config.sequences.folder,
        "pairs": config.sequences.kind == "pairs",
        "max_length": config.sequences.max_length,
        "masking": masking,
        "documents": counts["documents"],
        "characters": counts["characters"],
        "text_bytes": counts["bytes"],
        "dropped": Counts(counts).dropped,
        "characters_read": counts["characters_read"],
        "characters_rewritten": counts["characters_rewritten"],
        "characters_dropped": counts["characters_dropped"],
        "removed": Counts(counts).removed,
        "sources": by_source((label_of(job.readers[shard["block"]["source"]]), shard) for _, shard in shards),
        "short_units": counts["short_units"],
        "duplicates": duplicate_facts(job.folder, config),
        "splits": {name: dict(total) for name, total in splits.items()},
        "seconds": round(seconds, 3),
        "megabytes_per_second": round(counts["bytes"] / 1e6 / max(seconds, 1e-9), 3),
        "files": files_beside_the_shards(job.folder),
        "shards": listed,
    }


def files_beside_the_shards(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of the unigram counts, the tokenizer's files and the table of similar words, which are on the disk
    before the manifest is."""
    others = [path for name in ("tokenizer", SIMILAR) for path in sorted((folder / name).glob("*")) if path.is_file()]
    files = {}
    for path in [folder / "unigram.bin", *others]:
        sync(path)
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "xxh3": file_hash(path)}
    for parent in {path.parent for path in others}:
        sync(parent)
    return files


def check_splits(splits: Splits, counts: Counter[str]) -> None:
    dropped = ", ".join(f"{n} {reason}" for reason, n in Counts(counts).dropped.items()) or "nothing dropped"
    for name, total in splits.items():
        if total["sequences"] == 0:
            raise DataError(
                f"After preparation the {name} split is empty: {counts['documents']} usable documents ({dropped}). "
                "Check data.sources, and data.held_out."
            )


def content_hash(files: dict[str, dict[str, Any]]) -> str:
    text = json.dumps({name: facts["xxh3"] for name, facts in files.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def verify(folder: Path) -> list[str]:
    """Re-hash every file of a prepared folder; sentences on what is wrong, [] when it is sound."""
    manifest = read_manifest(folder)
    troubles = shard_trouble(folder, thorough=True)
    for shard in manifest["shards"]:
        where = folder / "shards" / shard["name"]
        found = shard_trouble(where, thorough=True)
        if not found and content_hash(read_manifest(where)["files"]) != shard["hash"]:
            found = [f"{where} is not the shard that the manifest of {folder} lists."]
        troubles += found
    return troubles

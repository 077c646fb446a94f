"""The blocks of the whole corpus, and its shards with the source that each of them comes from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from data_prep.block import cleaned
from data_prep.config import DataConfig
from data_prep.documents import Block, Counts
from data_prep.readers import Reader
from data_prep.shards import is_sound, read_manifest
from data_prep.stream import Stream


def blocks_of(config: DataConfig, readers: list[Reader]) -> list[Block]:
    """All blocks in their order, without those that lie beyond the limit of their source."""
    found: list[Block] = []
    for _, group in groupby(readers, key=label_of):
        some = list(group)
        blocks = [block for reader in some for block in reader.blocks(config.block_megabytes << 20)]
        source = some[0].source
        if source.max_documents is None and source.max_megabytes is None:
            found += blocks
        else:
            found += limited(config, readers, blocks)
    return found


def limited(config: DataConfig, readers: list[Reader], blocks: list[Block]) -> list[Block]:
    """The blocks of one source up to its limit, each with what those before it leave.

    All but the last one are read and cleaned here to know that, as far as the limit reaches.
    """
    source = readers[blocks[0].source].source if blocks else None
    if source is None:
        return []
    documents = source.max_documents
    size = None if source.max_megabytes is None else max(1, round(source.max_megabytes * 1e6))
    found = []
    for block in blocks:
        block = replace(block, max_documents=documents, max_bytes=size)
        found.append(block)
        if block.start == blocks[-1].start and block.source == blocks[-1].source:
            break
        taken = Counts()
        for stream in cleaned(config, readers[block.source], block, Counts()):
            taken.update(documents=len(stream.documents) - 1, bytes=byte_count(stream))
        documents = None if documents is None else documents - taken["documents"]
        size = None if size is None else size - taken["bytes"]
        if (documents is not None and documents <= 0) or (size is not None and size <= 0):
            break
    return found


def byte_count(stream: Stream) -> int:
    return len(stream.utf8()[0])


def label_of(reader: Reader) -> str:
    return reader.source.label or reader.source.path


def shards_of(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and manifest of each task's shard and of its further parts.

    Raises:
        DataError: one of them is not there, or damaged.
    """
    for name in names:
        manifest = read_manifest(folder / "shards" / name)
        yield name, manifest
        for part in manifest.get("parts", []):
            yield part, read_manifest(folder / "shards" / part)


def whole_shard(shard: Path) -> dict[str, Any] | None:
    """The manifest of a task's shard; None unless it and its further parts are there, and sound."""
    if not (shard.is_dir() and is_sound(shard)):
        return None
    manifest = read_manifest(shard)
    parts = [shard.parent / part for part in manifest.get("parts", [])]
    return manifest if all(part.is_dir() and is_sound(part) for part in parts) else None

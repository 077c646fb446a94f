"""Shorthands for tests of the readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.config import DataConfig, SourceConfig
from data_prep.documents import Counts, Document
from data_prep.readers import Reader, open_sources


def sources(*paths: Path | str, **keys: Any) -> list[Reader]:
    return open_sources(DataConfig(sources=[SourceConfig(path=str(path), **keys) for path in paths]))


def read(reader: Reader, block_bytes: int = 1 << 30) -> tuple[list[Document], Counts]:
    """All documents; the faster way to their texts must agree."""
    counts, again = Counts(), Counts()
    found = [d for block in reader.blocks(block_bytes) for d in reader.documents(block, counts)]
    texts = [t for block in reader.blocks(block_bytes) for some in reader.texts(block, again) for t in some]
    assert texts == [d.text for d in found]
    assert +again == +counts
    return found, counts


def only(path: Path, block_bytes: int = 1 << 30, **keys: Any) -> tuple[list[Document], Counts]:
    (reader,) = sources(path, **keys)
    return read(reader, block_bytes)


def lines(*records: Any) -> bytes:
    return b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in records)


def table(n: int) -> pa.Table:
    return pa.table({"text": [f"第{i}篇" for i in range(n)], "other": list(range(n))})


def records(counts: Counts) -> dict[str, int]:
    """What became of the records, without the counts of characters."""
    return {name: n for name, n in counts.items() if n and (name == "documents" or name.startswith("dropped_"))}

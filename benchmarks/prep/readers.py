"""What reading costs, by kind of file: MB of text a second, beside ``bytes.decode`` of the same text.

python -m benchmarks.prep.readers FILES...
"""

from __future__ import annotations

import bz2
import gzip
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from benchmarks.prep.end_to_end import write_jsonl
from benchmarks.prep.timing import Row, interleaved, show, texts_of
from data_prep.config import DataConfig, SourceConfig
from data_prep.documents import Counts
from data_prep.readers import Reader, open_sources

_PAGE = "<page>\n<title>t</title>\n<ns>0</ns>\n<id>1</id>\n<revision>\n<text>{}</text>\n</revision>\n</page>\n"
_RECORD = "WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: {}\r\n\r\n"


def run(texts: list[str]) -> list[Row]:
    """One row for each kind of file, and one for ``bytes.decode``."""
    texts = [re.sub(r"\n\s*\n", "\n", text) for text in texts]  # in a .txt file a blank line ends a document
    size = sum(len(text.encode()) for text in texts) / 1e6
    whole = "\n".join(texts).encode()
    with tempfile.TemporaryDirectory() as folder:
        steps: dict[str, Callable[[], object]] = {"bytes.decode": lambda: whole.decode("utf-8")}
        for path in written(Path(folder), texts):
            (reader,) = open_sources(DataConfig(sources=[SourceConfig(path=str(path))]))
            steps[path.name] = lambda reader=reader: read(reader)  # type: ignore[misc]
        seconds = interleaved(steps)
    return [(f"reading {name}", size / spent, "MB/s") for name, spent in seconds.items()]


def read(reader: Reader) -> int:
    """How many documents there are."""
    counts = Counts()
    return sum(len(some) for block in reader.blocks(64 << 20) for some in reader.texts(block, counts))


def written(folder: Path, texts: list[str]) -> list[Path]:
    """``texts`` in a file of each kind."""
    write_jsonl(folder / "a.jsonl", texts)
    lines = (folder / "a.jsonl").read_bytes()
    bodies = [text.encode() for text in texts]
    records = [_RECORD.format(len(body)).encode() + body + b"\r\n\r\n" for body in bodies]
    contents = {
        "a.txt": b"\n\n".join(bodies),
        "a.jsonl.gz": gzip.compress(lines),
        "a.jsonl.zst": zstandard.ZstdCompressor().compress(lines),
        "a.jsonl.bz2": bz2.compress(lines),
        "a.wet.gz": b"".join(map(gzip.compress, records)),
        "a.xml": "".join(_PAGE.format(escape(text)) for text in texts).encode(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    pq.write_table(pa.table({"text": texts}), folder / "a.parquet")
    return [folder / name for name in ("a.jsonl", "a.parquet", *contents)]


if __name__ == "__main__":
    show(run(texts_of(sys.argv[1:], 4)))

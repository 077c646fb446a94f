"""Prepared sequences for other tools: one row a sequence, streamed."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import output_error
from configs.registry import Registry
from data_prep.corpus import Corpus, SplitName

BATCH = 4096
LABELS = {"next": "next_sentence_label", "swapped": "sentence_order_label"}
"""Name of the label of pairs, by ``sequences.pair_order``."""
FORMATS: Registry[Callable[[Iterator[list[dict[str, Any]]], Path], None]] = Registry("format")


def convert(corpus: Corpus, split: SplitName, to: str, out: Path) -> int:
    """Write the sequences of ``split`` to the file ``out`` in format ``to``; returns how many.

    A row has ``sequence_id`` (uint64), ``input_ids`` (with [CLS] and [SEP]) and ``word_ids`` (of the same length:
    the number of the word that each token belongs to). Pairs also have ``token_type_ids``, and their label as
    ``next_sentence_label`` (1: B is random) or ``sentence_order_label`` (1: swapped).

    Raises:
        ConfigError: unknown format.
        OutputError: the file cannot be written.
    """
    write = FORMATS[to]
    aside = out.with_name(f".{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write(batches(corpus, split), aside)
        os.replace(aside, out)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise output_error(out, error) from error
    return len(corpus.split(split))


def batches(corpus: Corpus, split: SplitName) -> Iterator[list[dict[str, Any]]]:
    part = corpus.split(split)
    label = LABELS[corpus.manifest["identity"]["sequences"].get("pair_order") or "next"]
    for begin in range(0, len(part), BATCH):
        index = np.arange(begin, min(begin + BATCH, len(part)), dtype=np.int64)
        gathered, numbers = part.gather(index), part.sequence_ids(index).tolist()
        words = np.cumsum(~gathered.continues)
        rows = []
        for number, (a, b) in zip(numbers, itertools.pairwise(gathered.offsets.tolist()), strict=True):
            ids, own = gathered.ids[a:b].tolist(), (words[a:b] - words[a]).tolist()
            rows.append({"sequence_id": number, "input_ids": ids, "word_ids": own})
            if gathered.types is not None and gathered.order is not None:
                rows[-1] |= {"token_type_ids": gathered.types[a:b].tolist(), label: int(gathered.order[len(rows) - 1])}
        yield rows


@FORMATS.add("parquet")
def to_parquet(rows: Iterator[list[dict[str, Any]]], out: Path) -> None:
    import pyarrow.parquet as pq

    schema, rows = schema_of(rows)
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        write_tables(writer, schema, rows)


@FORMATS.add("arrow")
def to_arrow(rows: Iterator[list[dict[str, Any]]], out: Path) -> None:
    """An Arrow stream, as `datasets` keeps its own (``Dataset.from_file``)."""
    import pyarrow as pa

    schema, rows = schema_of(rows)
    with pa.OSFile(str(out), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        write_tables(writer, schema, rows)


def schema_of(rows: Iterator[list[dict[str, Any]]]) -> tuple[Any, Iterator[list[dict[str, Any]]]]:
    """The Arrow schema, and all rows again: a prepared split has some."""
    import pyarrow as pa

    types = {"sequence_id": pa.uint64(), **dict.fromkeys(LABELS.values(), pa.int8())}
    first = next(rows)
    schema = pa.schema([(name, types.get(name, pa.list_(pa.int32()))) for name in first[0]])
    return schema, itertools.chain([first], rows)


def write_tables(writer: Any, schema: Any, rows: Iterator[list[dict[str, Any]]]) -> None:
    import pyarrow as pa

    for batch in rows:
        writer.write_table(pa.Table.from_pylist(batch, schema))


@FORMATS.add("jsonl")
def to_jsonl(rows: Iterator[list[dict[str, Any]]], out: Path) -> None:
    with out.open("w", encoding="utf-8") as file:
        for batch in rows:
            file.writelines(json.dumps(row) + "\n" for row in batch)

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
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"sequence_id": pa.uint64(), **dict.fromkeys(LABELS.values(), pa.int8())}
    first = next(rows)  # a prepared split has sequences
    schema = pa.schema([(name, types.get(name, pa.list_(pa.int32()))) for name in first[0]])
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for batch in itertools.chain([first], rows):
            writer.write_table(pa.Table.from_pylist(batch, schema))


@FORMATS.add("jsonl")
def to_jsonl(rows: Iterator[list[dict[str, Any]]], out: Path) -> None:
    with out.open("w", encoding="utf-8") as file:
        for batch in rows:
            file.writelines(json.dumps(row) + "\n" for row in batch)

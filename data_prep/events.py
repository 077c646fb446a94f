"""TensorBoard events of a corpus: histograms of lengths, tables as text. Without torch and TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram import metadata
from tensorboard.plugins.text.summary import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from data_prep.page import Table, markdown_cell
from data_prep.statistics import EDGES


def write_events(folder: Path, lengths: dict[str, list[int]], tables: dict[str, Table]) -> None:
    """Write ``folder`` with one event file.

    All events are of time 0 and step 0, so that the same data gives the same bytes.

    Args:
        lengths: counts by the classes of ``statistics.EDGES``, by name.
        tables: shown as text under their names.
    """
    values = [histogram(f"lengths/{name}", counts) for name, counts in lengths.items() if any(counts)]
    for name, table in tables.items():
        values += text_pb(f"corpus/{name.lower()}", markdown(table)).value
    events = [Event(file_version="brain.Event:2"), Event(step=0, summary=Summary(value=values))]
    folder.mkdir(parents=True)
    with (folder / "events.out.tfevents.0.corpus").open("wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString(deterministic=True))


def histogram(tag: str, counts: list[int]) -> Any:
    """A histogram value from counted classes; the empty ones behind the last are left out."""
    last = max(place for place, count in enumerate(counts) if count) + 1
    edges = np.array([*EDGES, EDGES[-1] * 2], np.float64)
    buckets = np.stack([edges[:last], edges[1 : last + 1], np.array(counts[:last], np.float64)], axis=1)
    about = metadata.create_summary_metadata(display_name=tag, description="in tokens; training split")
    return Summary.Value(tag=tag, metadata=about, tensor=make_tensor_proto(buckets, dtype=np.float64))


def markdown(table: Table) -> str:
    """A table as Markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(markdown_cell(cell) for cell in line)} |" for line in lines)

"""What a shard leaves out because it stands elsewhere in the corpus: read from ``DATA/duplicates`` (dedup.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from data_prep.config import DataConfig
from data_prep.documents import Counts
from data_prep.shards import map_array, read_manifest
from data_prep.stream import Stream, decoded

FOLDER, EXAMPLES = "duplicates", "duplicates.json"
"""In the data folder; in the folder of a shard."""
REASONS = ("", "duplicate", "near_duplicate")
"""The reason of each code in ``dropped.bin``. The names stand in manifests: stable."""
SHOWN = 300
"""Characters of a document that is shown as an example."""


def duplicate_facts(data: Path, config: DataConfig) -> dict[str, int] | None:
    """Numbers of clusters for the corpus's manifest; None without deduplication."""
    if not config.dedup.wanted:
        return None
    facts = read_manifest(data / FOLDER)
    return {name: facts[name] for name in ("clusters", "largest")}


def clusters_of(data: Path, shards: list[str]) -> list[list[dict[str, Any]]]:
    """The example clusters of a prepared folder: for each its first members, the kept one first.

    A member has ``block``, ``document`` (its number there), ``reason`` (``kept`` or one of :data:`REASONS`),
    ``similarity`` to the kept one (None without ``dedup.near``), ``size`` of its cluster, and ``text``, its beginning.
    """
    found: dict[int, list[dict[str, Any]]] = {}
    for name in shards:
        path = data / "shards" / name / EXAMPLES
        if path.is_file():
            for member in json.loads(path.read_text(encoding="utf-8"))["documents"]:
                found.setdefault(member["cluster"], []).append(member)
    return [found[number] for number in sorted(found)]


@dataclass
class Drops:
    """The duplicates of one block."""

    path: str
    """The block's file, for errors."""
    codes: NDArray[np.uint8]
    """[d], an index into :data:`REASONS` for each document that cleaning and filters leave."""
    shown: dict[int, dict[str, Any]]
    """Documents of examples: number -> what is known of it."""
    seen: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)
    """Filled while reading: the ``shown`` with the beginnings of their texts."""

    @classmethod
    def open(cls, data: Path, ordinal: int, path: str) -> Drops:
        """Those of block ``ordinal``.

        Raises:
            DataError: the duplicates were not found yet, or their files are damaged.
        """
        folder = data / FOLDER
        facts = read_manifest(folder)
        borders = map_array(folder / "blocks.bin", "<i8", (facts["blocks"] + 1,))
        codes = map_array(folder / "dropped.bin", "u1", (facts["documents"],))
        members = (
            {"cluster": number, "size": example["size"], **member}
            for number, example in enumerate(facts["examples"])
            for member in example["members"]
        )
        shown = {member["document"]: member for member in members if member["block"] == ordinal}
        return cls(path, np.array(codes[borders[ordinal] : borders[ordinal + 1]]), shown)

    def without(self, streams: Iterator[Stream], counts: Counts) -> Iterator[Stream]:
        """The documents that are kept; the others are counted by reason.

        Raises:
            DataError: there are not as many documents as when the duplicates were found.
        """
        for stream in streams:
            count = len(stream.documents) - 1
            codes = self.codes[self.seen : self.seen + count]
            if len(codes) < count:
                raise self._changed("more")
            for number in self.shown.keys() & range(self.seen, self.seen + count):
                begin, end = stream.documents[number - self.seen : number - self.seen + 2].tolist()
                text = decoded(stream.chars[begin : min(end, begin + SHOWN)])
                self.examples.append({**self.shown[number], "text": text})
            for code, reason in enumerate(REASONS[1:], 1):
                if n := int((codes == code).sum()):
                    counts["documents"] -= n  # the reader counted them as read
                    counts[f"dropped_{reason}"] += n
            self.seen += count
            yield stream.kept(codes == 0, counts)
        if self.seen < len(self.codes):
            raise self._changed("fewer")

    def _changed(self, what: str) -> DataError:
        return DataError(
            f"{self.path} holds {what} documents than when its duplicates were found: it was changed meanwhile. Start "
            "again with a new data.folder."
        )

"""The three values that travel between the readers and the rest of preparation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One document of the corpus as its reader found it, not yet cleaned."""

    id: str
    """Does not depend on the block size: the record's own id, or
    ``<file name>:<record number or byte offset>``."""
    text: str


@dataclass(frozen=True, slots=True)
class Block:
    """The unit of work: a part of one source that one process reads from start to end."""

    source: int
    """Position of the reader in :func:`data_prep.readers.open_sources`'s list."""
    path: str
    start: int
    stop: int | None
    """``start`` and ``stop`` count bytes, row groups or records, as the reader says; ``None``: to the end."""
    max_documents: int | None = None
    max_bytes: int | None = None
    """Only the first documents (after cleaning) are taken: so many, and until they have so many bytes."""


class Counts(Counter[str]):
    """How many documents were seen and dropped: ``documents``, ``dropped_<reason>``, ..."""

    def drop(self, reason: str) -> None:
        """Count one dropped record."""
        self[f"dropped_{reason}"] += 1

    @property
    def dropped(self) -> dict[str, int]:
        """Dropped records by reason, sorted by name."""
        head = "dropped_"
        return {name.removeprefix(head): n for name, n in sorted(self.items()) if name.startswith(head)}

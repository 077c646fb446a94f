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
    """What was seen, and what of it is left out: nothing is lost without being counted.

    ``documents``, ``dropped_<reason>``: records. ``characters_read``: of all records that are texts for their reader;
    ``characters_rewritten``: how many more (or fewer) HTML entities, the Unicode form and OpenCC made of them;
    ``removed_<reason>``: characters left out of a text; ``characters_dropped``: those of documents that were read and
    then dropped. Always: read + rewritten = kept + dropped + removed for all reasons.
    """

    def drop(self, reason: str) -> None:
        """Count one dropped record."""
        self[f"dropped_{reason}"] += 1

    def remove(self, reason: str, characters: int) -> None:
        """Count characters that a reader leaves out of a text."""
        if characters:
            self[f"removed_{reason}"] += characters
            self["characters_read"] += characters

    @property
    def dropped(self) -> dict[str, int]:
        """Dropped records by reason, sorted by name."""
        return self._under("dropped_")

    @property
    def removed(self) -> dict[str, int]:
        """Removed characters by reason, sorted by name."""
        return self._under("removed_")

    def _under(self, head: str) -> dict[str, int]:
        return {name.removeprefix(head): n for name, n in sorted(self.items()) if name.startswith(head)}

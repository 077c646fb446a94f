"""What every reader is: blocks of a source, and the documents of a block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from configs import hub
from configs.errors import DataError
from configs.registry import Registry
from data_prep.config import SourceConfig
from data_prep.documents import Block, Counts, Document

READERS: Registry[type[Reader]] = Registry("kind of source")
TEXTS = 64
"""Given at a time by :meth:`Reader.texts`."""
MAX_CHARACTERS = 4 << 20
"""Of one document. What is prepared together is held in memory, so longer ones are dropped (and counted)."""


class Reader(ABC):
    """One concrete file (or one data set) of the corpus.

    A reader holds no open file and pickles, so it may be built once and sent to worker processes.

    Two laws hold for every reader: the documents of all ``blocks(n)`` in their order do not depend on ``n``,
    and every record read is either yielded (and counted as ``documents``) or counted as
    ``dropped_<reason>``.
    """

    endings: tuple[str, ...] = ()
    """Endings of file names (lower case) that ``kind: auto`` gives to this reader."""

    def __init__(self, source: SourceConfig, index: int) -> None:
        """Check ``source`` as far as it can be done without reading all of it.

        Args:
            source: its ``path`` names one file (folders and globs are resolved by ``open_sources``).
            index: the reader's position among all of them; becomes ``Block.source``.

        Raises:
            DataError: the source is missing or cannot be read as this kind.
        """
        self.source = source
        self.index = index
        self.path = source.path
        self.name = Path(hub.name_of(source.path)).name

    def __init_subclass__(cls) -> None:
        """A reader that derives from a faster one, and reads documents in its own way, is read in that way."""
        super().__init_subclass__()
        if "documents" in vars(cls) and "texts" not in vars(cls):
            cls.texts = Reader.texts  # type: ignore[method-assign]

    @abstractmethod
    def blocks(self, block_bytes: int) -> list[Block]:
        """Cut the source into blocks of about ``block_bytes`` bytes; independent of the number of workers."""

    @abstractmethod
    def documents(self, block: Block, counts: Counts) -> Iterator[Document]:
        """The documents of ``block``; ``counts`` gets ``documents`` and ``dropped_<reason>`` as they pass."""

    def texts(self, block: Block, counts: Counts) -> Iterator[list[str]]:
        """The texts of :meth:`documents` without their ids, some at a time, in the same order and with the same counts.

        A reader may have a faster way than by documents.
        """
        documents = self.documents(block, counts)
        while some := [document.text for document in islice(documents, TEXTS)]:
            yield some

    def _document(
        self, record: Any, position: int, counts: Counts, text_key: str | list[str], encoding: str = "utf-8"
    ) -> Document | None:
        """A mapping with a text and perhaps an id as a document, or ``None`` with the reason counted."""
        try:
            text = joined(record, text_key, encoding)
        except UnicodeDecodeError:
            counts.drop("undecodable")
            return None
        if not isinstance(text, str):
            counts.drop("no_text")
            return None
        if not text or text.isspace():
            counts.drop("empty")
            return None
        if len(text) > MAX_CHARACTERS:
            counts.drop("document_too_long")
            return None
        given = record.get("id")
        counts["documents"] += 1
        return Document(given if isinstance(given, str) and given else f"{self.name}:{position}", text)


def joined(record: Any, key: str | list[str], encoding: str = "utf-8") -> str | None:
    """The text of a record: one field, or the texts among several fields, a line break between them.

    Raises:
        UnicodeDecodeError: a field holds bytes that are not text of ``encoding``.
    """
    if not isinstance(record, dict):
        return None
    keys = [key] if isinstance(key, str) else key
    found = [record.get(name) for name in keys]
    texts = [f.decode(encoding) if isinstance(f, bytes) else f for f in found if isinstance(f, str | bytes)]
    # Empty ones among several leave no empty lines.
    return "\n".join(t for t in texts if t or len(keys) == 1) if texts else None


def file_size(path: str) -> int:
    """Size in bytes of a file that exists and opens.

    Raises:
        DataError: it does not.
    """
    try:
        with open(path, "rb") as file:
            return file.seek(0, 2)
    except FileNotFoundError:
        raise DataError(
            f"There is no file {path}: correct `path` under `data.sources` "
            "(relative paths start at the folder the command runs in)."
        ) from None
    except OSError as error:
        raise DataError(
            f"Cannot read {path}: {error.strerror or error}. Check that it is a file and that this user may read it."
        ) from None

"""JSON lines: one record a line, plain or compressed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import orjson

from data_prep.documents import Block, Counts, Document
from data_prep.readers.base import MAX_CHARACTERS, READERS, TEXTS, joined
from data_prep.readers.lines import LinesReader
from data_prep.readers.streams import BOM, PACKED, Lines, compression, next_line

_BLANK = b" \t\r\n\0"


@READERS.add("jsonl")
class JsonlReader(LinesReader):
    """``.jsonl`` and ``.ndjson``, plain or compressed (gz, xz, zst, bz2).

    Blocks of plain files are byte ranges at line boundaries; a compressed file is one block. A record
    without an ``id`` gets its byte offset in the (decompressed) file.
    """

    endings = tuple(name + ending for name in (".jsonl", ".ndjson") for ending in PACKED)

    after = staticmethod(next_line)

    def documents(self, block: Block, counts: Counts) -> Iterator[Document]:
        for offset, record in self._records(block, counts):
            document = self._document(record, offset, counts, self.source.text_column)
            if document is not None:
                yield document

    def texts(self, block: Block, counts: Counts) -> Iterator[list[str]]:
        key, found = self.source.text_column, list[str]()
        single = key if isinstance(key, str) else None
        for _, record in self._records(block, counts):
            if single:
                text = record.get(single) if type(record) is dict else None
            else:
                text = joined(record, key)
            if type(text) is not str:
                counts.drop("no_text")
                continue
            if not text or text.isspace():
                counts.drop("empty")
                continue
            if len(text) > MAX_CHARACTERS:
                counts.drop("document_too_long")
                continue
            found.append(text)
            if len(found) == TEXTS:
                counts["documents"] += TEXTS
                yield found
                found = []
        counts["documents"] += len(found)
        yield found

    def _records(self, block: Block, counts: Counts) -> Iterator[tuple[int, Any]]:
        """The values of the lines that hold one, with their offsets."""
        lines = Lines(self.path, block.start, block.stop)
        for offset, line in lines:
            if line is None:
                counts.drop("line_too_long")
                continue
            line = line.removeprefix(BOM).strip(_BLANK)
            if not line:
                continue
            record, reason = _parse(line, self._encoding)
            if reason:
                # The torn last line of a damaged file is counted once, with the damage.
                if lines.complete:
                    counts.drop(reason)
                continue
            yield offset, record
        if lines.damage or (compression(self.path) and not self._size):
            counts.drop(lines.damage or "truncated_file")


def _parse(line: bytes, encoding: str) -> tuple[Any, str]:
    """The value of one line, or the reason why there is none."""
    text: str | None = None
    try:
        if encoding == "utf-8":
            return orjson.loads(line), ""
        text = line.decode(encoding)
        return orjson.loads(text), ""
    except UnicodeDecodeError:
        return None, "undecodable"
    except orjson.JSONDecodeError:
        pass
    try:
        # Python's parser takes what others write though the standard forbids it: NaN, lone surrogates.
        return json.loads(line.decode(encoding) if text is None else text), ""
    except UnicodeDecodeError:
        return None, "undecodable"
    except (ValueError, RecursionError):
        return None, "not_json"

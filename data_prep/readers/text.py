"""Plain text: documents with a blank line between them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

from data_prep.documents import Block, Counts, Document
from data_prep.readers.base import READERS
from data_prep.readers.lines import LinesReader
from data_prep.readers.streams import BOM, PACKED, Lines, compression, next_line

MAX_DOCUMENT = 4 << 20
"""Bytes. A file without blank lines is one document; it is cut at line ends so that memory stays bounded."""

# What may stand on a line that counts as blank: ASCII white space and NUL (and a byte order mark).
_BLANK = b" \t\r\n\v\f\0"
# The end of a line and the blank lines after it.
_GAP = re.compile(rb"\n(?:(?:\xef\xbb\xbf)?[ \t\r\v\f\0]*\n)+")
_READ = 1 << 20
"""Bytes of a plain file read at a time."""


@READERS.add("text")
class TextReader(LinesReader):
    """``.txt``, plain or compressed. Ids are byte offsets of a document's first line.

    A line that cannot be decoded is dropped and counted by itself; the other lines of its document stay.
    """

    endings = tuple(".txt" + ending for ending in PACKED)

    @staticmethod
    def after(file: BinaryIO) -> int:
        """The first blank line that starts after the place of ``file``, or the end."""
        next_line(file)
        blank = True
        while piece := file.readline(1 << 20):
            blank = blank and not piece.removeprefix(BOM).strip(_BLANK)
            if piece.endswith(b"\n"):
                if blank:
                    break
                blank = True
        return file.tell()

    def documents(self, block: Block, counts: Counts) -> Iterator[Document]:
        lines = Lines(self.path, block.start, block.stop)
        first, held, size = 0, list[bytes](), 0
        for offset, line in lines:
            if line is None:
                counts.drop("line_too_long")
                continue
            blank = not line.removeprefix(BOM).strip(_BLANK)
            if held and (blank or size + len(line) > MAX_DOCUMENT):
                yield from self._finish(first, held, counts)
                held, size = [], 0
            if not blank and lines.complete:  # the torn last line of a damaged file is part of the damage
                first = first if held else offset
                held.append(line)
                size += len(line)
        if held:
            yield from self._finish(first, held, counts)
        if lines.damage or (compression(self.path) and not self._size):
            counts.drop(lines.damage or "truncated_file")

    def texts(self, block: Block, counts: Counts) -> Iterator[list[str]]:
        if compression(self.path):
            yield from super().texts(block, counts)
            return
        position, rest = block.start, b""
        with open(self.path, "rb", buffering=0) as file:
            file.seek(position)
            while more := file.read(_READ if block.stop is None else max(0, min(_READ, block.stop - position))):
                # The line end in front makes of blank lines at the beginning a gap like the others.
                *whole, last = _GAP.split(b"\n" + rest + more)
                if len(max([*whole, last], key=len)) > MAX_DOCUMENT:
                    yield from super().texts(replace(block, start=position - len(rest)), counts)
                    return
                position, rest = position + len(more), last if whole else last[1:]
                yield self._decoded(whole, counts)
        yield self._decoded(_GAP.split(b"\n" + rest + b"\n"), counts)

    def _decoded(self, documents: list[bytes], counts: Counts) -> list[str]:
        """The texts of documents without blank lines in them, as in :meth:`_finish`."""
        found: list[str] = []
        for content in documents:
            content = content.removeprefix(b"\n").removesuffix(b"\n")
            if not content:
                continue
            try:
                text = content.decode(self._encoding)
            except UnicodeDecodeError:
                found += [document.text for document in self._finish(0, content.split(b"\n"), counts)]
                continue
            text = _plain(text, counts)
            if text.isspace() or not text:
                counts.drop("empty")
            else:
                found.append(text)
                counts["documents"] += 1
        return found

    def _finish(self, offset: int, lines: list[bytes], counts: Counts) -> Iterator[Document]:
        try:
            text = b"\n".join(lines).decode(self._encoding)
        except UnicodeDecodeError:
            good = []
            for line in lines:
                try:
                    good.append(line.decode(self._encoding))
                except UnicodeDecodeError:
                    counts.drop("undecodable")
            text = "\n".join(good)
            if not good:
                return
        text = _plain(text, counts)
        document = self._document({"text": text}, offset, counts, "text")
        if document is not None:
            yield document


def _plain(text: str, counts: Counts) -> str:
    """``text`` without byte order marks and carriage returns at line ends, which are counted."""
    seen = text.replace("\ufeff", "")
    plain = seen.replace("\r\n", "\n").removesuffix("\r")
    counts.remove("invisible", len(text) - len(seen))
    counts.remove("white_space", len(seen) - len(plain))
    return plain

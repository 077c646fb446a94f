"""Web archives: the text of WET files, and the HTML pages of WARC files.

ISO 28500 (WARC 1.0 and 1.1). Records are framed here, in bounded memory and so that reading goes on after damage;
what is inside of them (HTTP, HTML, encodings) is the work of ``fastwarc`` and ``resiliparse`` (``zhengliu[web]``),
which only WARC files need.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, BinaryIO

from configs.errors import DataError
from data_prep.config import SourceConfig
from data_prep.documents import Block, Counts, Document
from data_prep.readers.base import READERS, Reader
from data_prep.readers.streams import Decompressed, check_file, compression, cut_at_lines, cut_at_members, next_line

MAX_RECORD = 16 << 20
"""Bytes; longer records are dropped (and counted) without being held."""
MAX_HEADER = 1 << 20
_VERSION = re.compile(rb"WARC/1\.\d\r?\n")
_END = b"\r\n\r\n"
_NEXT = re.compile(rb"\r?\n\r?\n(?=WARC/1\.\d\r?\n)")
_HTML = ("text/html", "application/xhtml+xml")
_LINE = 1 << 16


@dataclass(frozen=True, slots=True)
class Record:
    """One record; names of header fields are lower case. ``whole``: the bytes of header and body."""

    fields: dict[str, str]
    body: bytes
    whole: bytes


class Records:
    """The records from byte ``start`` to ``stop`` of the (compressed) file. What cannot be read is counted."""

    def __init__(self, path: str, block: Block, counts: Counts) -> None:
        self._path, self._block, self._counts = path, block, counts
        self._rest = b""
        """Read ahead of its turn."""

    def __iter__(self) -> Iterator[Record]:
        block = self._block
        if not compression(self._path):
            with open(self._path, "rb", buffering=1 << 18) as file:
                file.seek(block.start)
                stop = file.seek(0, 2) if block.stop is None else block.stop
                file.seek(block.start)
                yield from self._records(io.BufferedReader(_Part(file, stop - block.start), 1 << 18))
            return
        raw = Decompressed(self._path, block.start, block.stop, begins_record)
        with io.BufferedReader(raw, 1 << 18) as stream:
            yield from self._records(stream)
        for damage in raw.damages:
            self._counts.drop(damage)

    def _records(self, stream: io.BufferedReader[Any]) -> Iterator[Record]:
        stray = False
        while line := self._line(stream):
            if not _VERSION.fullmatch(line):
                # What is not a record where one should begin is counted once, however long it is.
                if line.strip() and not stray:
                    stray = True
                    self._counts.drop("not_a_record")
                continue
            stray = False
            record, reason = self._record(stream, line)
            if reason:
                self._counts.drop(reason)
                stray = True  # what is left of it has been counted with it
            elif record is not None:
                yield record

    def _record(self, stream: io.BufferedReader[Any], line: bytes) -> tuple[Record | None, str]:
        head = line
        while (line := self._line(stream)).strip():
            head += line
            if len(head) > MAX_HEADER:
                return None, "bad_header"
        fields = parse_fields(head)
        length = fields.get("content-length", "")
        if not line or not (length.isascii() and length.isdigit()):
            return None, "bad_header" if line else "truncated_record"
        size = int(length)
        if size > MAX_RECORD:
            # Its length may be a lie: the next line that begins a record is looked for, not skipped to.
            return None, "record_too_long"
        body = self._read(stream, size + len(_END))
        if len(body) == size + len(_END) and body.endswith(_END):
            return Record(fields, body[:size], head + line + body), ""
        # Torn, or of another length than it says: the next record may have been taken for a part of it.
        found = _NEXT.search(body)
        self._rest = body[found.end() :] + self._rest if found else self._rest
        if found is None and len(body) == size and not self._peek(stream):
            return Record(fields, body, head + line + body + _END), ""  # the file's last record, without an end
        return None, "wrong_length" if found or len(body) == size + len(_END) else "truncated_record"

    def _line(self, stream: io.BufferedReader[Any]) -> bytes:
        if self._rest:
            at = self._rest.find(b"\n", 0, _LINE) + 1
            if at:
                line, self._rest = self._rest[:at], self._rest[at:]
                return line
            line, self._rest = self._rest, b""
            return line + (b"" if len(line) >= _LINE else stream.readline(_LINE))
        return stream.readline(_LINE)

    def _read(self, stream: io.BufferedReader[Any], size: int) -> bytes:
        head, self._rest = self._rest[:size], self._rest[size:]
        return head + stream.read(size - len(head)) if len(head) < size else head

    def _peek(self, stream: io.BufferedReader[Any]) -> bytes:
        return self._rest or stream.peek(1)


class _Part(io.RawIOBase):
    """At most ``left`` bytes of a file."""

    def __init__(self, file: BinaryIO, left: int) -> None:
        self._file, self._left = file, left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)


def begins_record(content: bytes) -> bool:
    return _VERSION.match(content) is not None


def parse_fields(head: bytes) -> dict[str, str]:
    """The header fields of a record; the first one of a name counts."""
    fields: dict[str, str] = {}
    for line in head.split(b"\n")[1:]:
        name, colon, value = line.decode("utf-8", "replace").partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    return fields


@READERS.add("warc")
class WarcReader(Reader):
    """``.wet`` and ``.warc``, plain or ``.gz``. Ids are those of the records (``WARC-Record-ID``), or their addresses.

    ``conversion`` records are text as it is; of ``response`` records with status 200 and HTML, the text of the page's
    main content is taken. Everything else is counted: ``record_<type>``, ``status``, ``type_<MIME type>``. Blocks are
    runs of records: of a compressed file they begin at gzip members, where the format lets each record be one.
    """

    endings = tuple(name + ending for name in (".wet", ".warc") for ending in ("", ".gz"))

    def __init__(self, source: SourceConfig, index: int) -> None:
        super().__init__(source, index)
        self._size = check_file(self.path)
        pages = ".warc" in self.name.lower() and ".wet" not in self.name.lower()
        if pages and not has_extractor():
            raise DataError(needs_extractor(self.path))

    def blocks(self, block_bytes: int) -> list[Block]:
        if compression(self.path):
            cuts = cut_at_members(self.path, self._size, block_bytes, begins_record)
        else:
            cuts = cut_at_lines(self.path, self._size, block_bytes, _next_record)
        return [Block(self.index, self.path, start, stop) for start, stop in cuts]

    def documents(self, block: Block, counts: Counts) -> Iterator[Document]:
        for record in Records(self.path, block, counts):
            text = self._text(record, counts)
            if text is not None:
                given = record.fields.get("warc-record-id") or record.fields.get("warc-target-uri") or self.name
                document = self._document({"text": text, "id": given.strip("<>")}, 0, counts, "text")
                if document is not None:
                    yield document
        if not self._size and compression(self.path):
            counts.drop("truncated_file")

    def _text(self, record: Record, counts: Counts) -> str | None:
        kind = record.fields.get("warc-type", "none").lower()
        if kind == "conversion":
            try:
                text = record.body.decode("utf-8")
            except UnicodeDecodeError:
                counts.drop("undecodable")
                return None
            plain = text.replace("\r\n", "\n")
            counts.remove("white_space", len(text) - len(plain))
            return plain
        if kind == "response":
            if not has_extractor():
                raise DataError(needs_extractor(self.path))
            return page_text(record, counts)
        counts.drop(f"record_{_word(kind)}")
        return None


def has_extractor() -> bool:
    return find_spec("fastwarc") is not None and find_spec("resiliparse") is not None


def needs_extractor(path: str) -> str:
    return (
        f"The pages of {path} are HTML; reading them needs `fastwarc` and `resiliparse`: `pip install zhengliu[web]`. "
        "Files of Common Crawl's text (.wet.gz) are read without."
    )


def page_text(record: Record, counts: Counts) -> str | None:
    """Main content of the HTML page in a ``response`` record, or None with the reason counted."""
    from fastwarc.warc import ArchiveIterator
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

    try:
        parsed = next(iter(ArchiveIterator(io.BytesIO(record.whole), parse_http=True, auto_decode="all")))
        headers, mime, charset = parsed.http_headers, parsed.http_content_type, parsed.http_charset
        if headers is None or headers.status_code != 200:
            counts.drop("bad_http" if headers is None else "status")
            return None
        if (mime or "none").lower() not in _HTML:
            counts.drop(f"type_{_word(mime or 'none')}")
            return None
        page = parsed.reader.read(MAX_RECORD + 1)
        if len(page) > MAX_RECORD:  # a small body may unpack to a large page
            counts.drop("record_too_long")
            return None
        stated = charset and map_encoding_to_html5(charset, fallback_utf8=False)
        encoding = stated or detect_encoding(page, from_html_meta=True) or "utf-8"
        # A page that says GBK may hold all of GB 18030 (the Encoding Standard decodes both alike).
        encoding = "gb18030" if encoding == "gbk" else encoding
        html = bytes_to_str(page, encoding, errors="replace", fallback_encodings=())
        text = str(extract_plain_text(html, main_content=True, preserve_formatting=True, alt_texts=False))
        counts.remove("markup", len(html) - len(text))  # bytes that could not be decoded are U+FFFD: cleaning counts it
        return text
    except StopIteration:
        counts.drop("bad_http")
    except Exception:  # whatever the two libraries meet in a page, it costs that page only
        counts.drop("bad_page")
    return None


def _word(name: str) -> str:
    """A value from a file as a part of a reason, without what is odd: hostile files do not fill the manifest."""
    return name.lower() if re.fullmatch(r"[\w.+-]{1,20}(/[\w.+-]{1,50})?", name, re.ASCII) else "odd"


def _next_record(file: BinaryIO) -> int:
    """Offset of the first record that begins after the position of ``file``, or the end."""
    next_line(file)
    while True:
        at = file.tell()
        line = file.readline(1 << 20)
        if not line or _VERSION.fullmatch(line):
            return at

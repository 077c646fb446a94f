"""What the readers of lines share: blocks at line boundaries, and encodings that can be cut there."""

from __future__ import annotations

import codecs
from abc import abstractmethod
from typing import BinaryIO

from configs.errors import DataError
from data_prep.config import SourceConfig
from data_prep.documents import Block
from data_prep.readers.base import Reader
from data_prep.readers.streams import check_file, compression, cut_at_lines


class LinesReader(Reader):
    """Files that are read line by line, plain or compressed: the blocks of a plain one are ranges of bytes that begin
    where ``after`` says, a compressed one is one block."""

    @staticmethod
    @abstractmethod
    def after(file: BinaryIO) -> int:
        """The first place from that of ``file`` on where a block may begin, or the end."""

    def __init__(self, source: SourceConfig, index: int) -> None:
        super().__init__(source, index)
        self._encoding = line_encoding(source)
        self._size = check_file(self.path)

    def blocks(self, block_bytes: int) -> list[Block]:
        if compression(self.path):
            return [Block(self.index, self.path, 0, None)]
        cuts = cut_at_lines(self.path, self._size, block_bytes, self.after)
        return [Block(self.index, self.path, start, stop) for start, stop in cuts]


def line_encoding(source: SourceConfig) -> str:
    """The codec of ``source``, whose text can be cut at the byte 0x0A.

    Raises:
        DataError: there is no such codec, or its line breaks are not the ASCII ones (UTF-16, UTF-32, UTF-7).
    """
    try:
        name = codecs.lookup(source.encoding).name
        ascii_alike = bytes(range(128)).decode(name) == "".join(map(chr, range(128)))
    except (LookupError, UnicodeError):
        name, ascii_alike = "", False
    if not name:
        raise DataError(
            f"{source.path}: there is no encoding {source.encoding!r}; use for instance `encoding: utf-8` "
            "or `encoding: gb18030`."
        )
    if not ascii_alike:
        raise DataError(
            f"{source.path}: text in {source.encoding} cannot be cut at line breaks; convert the file first, "
            f"e.g. `iconv -f {source.encoding} -t utf-8`."
        )
    # The byte order mark is stripped by the readers themselves, wherever a line starts with one.
    return "utf-8" if name == "utf-8-sig" else name

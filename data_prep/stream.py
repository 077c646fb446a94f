"""Texts between reading and writing: streams of code points, not Python objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import xxhash
from numba import njit
from numpy.typing import NDArray

from data_prep.documents import Counts

Chars = NDArray[np.uint32]
Ints = NDArray[np.int64]

_U: Any = np.uint64
"""Of indices: numba checks signed ones for being negative."""
_MASK_64 = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True)
class Stream:
    """Some documents, one after another.

    ``chars``: uint32 [N], code points; ``documents``: int64 [d + 1], document i is
    ``chars[documents[i]:documents[i + 1]]``. In cleaned text a ``\\n`` stands between the lines of a document, and
    none at its end.
    """

    chars: Chars
    documents: Ints

    def texts(self) -> Iterator[str]:
        """The documents as strings."""
        text = decoded(self.chars)
        return (text[a:b] for a, b in pairwise(self.documents.tolist()))

    def between(self, begin: int, end: int) -> Stream:
        """Documents ``begin`` to ``end`` (exclusive); the characters are shared."""
        bounds = self.documents[begin : end + 1]
        return Stream(self.chars[bounds[0] : bounds[-1]], bounds - bounds[0])

    def chosen(self, keep: NDArray[np.bool_]) -> Stream:
        """The documents of which ``keep`` (bool [d]) is true."""
        if keep.all():
            return self
        lengths = np.diff(self.documents)
        ends = np.zeros(int(keep.sum()) + 1, np.int64)
        np.cumsum(lengths[keep], out=ends[1:])
        return Stream(self.chars[np.repeat(keep, lengths)], ends)

    def kept(self, keep: NDArray[np.bool_], counts: Counts) -> Stream:
        """As :meth:`chosen`; the characters of the others are counted as dropped."""
        found = self.chosen(keep)
        counts["characters_dropped"] += len(self.chars) - len(found.chars)
        return found

    def utf8(self) -> tuple[NDArray[np.uint8], Ints]:
        """(uint8 [n], the UTF-8 bytes of all documents; int64 [d + 1], where each begins in them).

        There must be no surrogates among ``chars``: cleaned text has none.
        """
        return self._utf8

    @cached_property
    def _utf8(self) -> tuple[NDArray[np.uint8], Ints]:
        out = np.empty(4 * len(self.chars), np.uint8)
        ends = np.empty(len(self.documents), np.int64)
        size = _utf8(self.chars, self.documents, out, ends)
        return out[:size], ends

    def hashes(self, seed: int) -> tuple[NDArray[np.uint64], int]:
        """(uint64 [d], xxh3-64 of each document's UTF-8 bytes under ``seed``; how many bytes there are)."""
        content, ends = self.utf8()
        view, digest = content.data, xxhash.xxh3_64_intdigest
        seed &= _MASK_64
        found = [digest(view[a:b], seed) for a, b in pairwise(ends.tolist())]
        return np.array(found, np.uint64), len(content)


def code_points(text: str) -> Chars:
    """uint32 [len(text)]; read-only. Lone surrogates come through."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def decoded(chars: Chars) -> str:
    """The text of ``chars``.

    Raises:
        UnicodeDecodeError: there is a surrogate among them.
    """
    return chars.tobytes().decode("utf-32-le")


def raw_stream(texts: Sequence[str]) -> Stream:
    """``texts`` as they are, as one stream."""
    ends = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=ends[1:])
    return Stream(code_points("".join(texts)), ends)


@njit(cache=True, nogil=True)
def _utf8(chars: Any, documents: Any, out: Any, ends: Any) -> Any:
    """Fill ``out`` with the UTF-8 bytes of ``chars``, ``ends`` with where documents begin; returns their number."""
    n, i = _U(0), _U(0)
    ends[0] = 0
    for d in range(len(documents) - 1):
        end = _U(documents[d + 1])
        while i < end:
            c = chars[i]
            while 0x800 <= c < 0x10000:  # most of Chinese text
                out[n] = 0xE0 | (c >> 12)
                out[n + _U(1)] = 0x80 | ((c >> 6) & 0x3F)
                out[n + _U(2)] = 0x80 | (c & 0x3F)
                n += _U(3)
                i += _U(1)
                if i >= end:
                    break
                c = chars[i]
            if i >= end:
                break
            i += _U(1)
            if c < 0x80:
                out[n] = c
                n += _U(1)
            elif c < 0x800:
                out[n] = 0xC0 | (c >> 6)
                out[n + _U(1)] = 0x80 | (c & 0x3F)
                n += _U(2)
            else:
                out[n] = 0xF0 | (c >> 18)
                out[n + _U(1)] = 0x80 | ((c >> 12) & 0x3F)
                out[n + _U(2)] = 0x80 | ((c >> 6) & 0x3F)
                out[n + _U(3)] = 0x80 | (c & 0x3F)
                n += _U(4)
        ends[d + 1] = n
    return n

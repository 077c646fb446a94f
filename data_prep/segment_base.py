"""What every segmenter is asked for, and the table of their kinds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from configs.registry import Registry
from data_prep.config import SegmentConfig


class Segmenter(ABC):
    """Where words start. A kind gives ``word_starts`` or, for whole streams at once, ``starts`` as well."""

    @abstractmethod
    def __init__(self, config: SegmentConfig) -> None: ...

    @abstractmethod
    def word_starts(self, text: str) -> NDArray[np.bool_]:
        """bool [len(text)]: the character begins a word."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """``name``, ``version`` and ``hash`` (of the dictionary): what the boundaries depend on."""

    def starts(self, chars: NDArray[np.uint32], documents: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool [N]: the character begins a word; no word reaches from one document into the next.

        Args:
            chars: [N], the code points of all documents.
            documents: [d + 1], where each begins, ascending from 0 to N.
        """
        out = np.ones(len(chars), np.bool_)
        for begin, end in pairwise(documents.tolist()):
            text = chars[begin:end].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
            out[begin:end] = self.word_starts(text)
        return out


def code_points(text: str) -> NDArray[np.uint32]:
    """uint32 [len(text)]; lone surrogates are what they are."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def one_document(n: int) -> NDArray[np.int64]:
    """The ``documents`` of a single text of n characters."""
    return np.array([0, n], np.int64)


SEGMENTERS: Registry[type[Segmenter]] = Registry("segmenter")


def for_kernel(chars: NDArray[np.uint32], documents: NDArray[np.int64]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Both contiguous and read-only, so that kernels are compiled for one type only."""
    views = np.ascontiguousarray(chars, np.uint32).view(), np.ascontiguousarray(documents, np.int64).view()
    for view in views:
        view.setflags(write=False)
    return views


def starts_of(words: list[str], text: str, segmenter: str) -> NDArray[np.bool_]:
    """bool [len(text)] from the words of ``text``.

    Raises:
        DataError: they do not join back to it.
    """
    if "".join(words) != text:
        raise DataError(
            f"The words that {segmenter} found do not join back to their text, which begins {text[:40]!r}: use another "
            "version of it, or another `data.segment.kind`."
        )
    starts = np.zeros(len(text) + 1, dtype=np.bool_)
    starts[0] = True
    starts[np.cumsum(np.fromiter(map(len, words), dtype=np.int64, count=len(words)))] = True
    return starts[:-1]

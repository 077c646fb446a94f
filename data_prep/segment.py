"""Word boundaries for whole word masking."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numba import njit
from numpy.typing import NDArray

from configs.errors import DataError
from configs.plugins import load_plugins
from data_prep.config import SegmentConfig
from data_prep.segment_base import SEGMENTERS, Segmenter, code_points, for_kernel, one_document, starts_of
from data_prep.segment_jieba import JiebaSegmenter
from data_prep.segment_ltp import LtpSegmenter

__all__ = ["SEGMENTERS", "JiebaSegmenter", "LtpSegmenter", "Segmenter", "describe_segmenter", "open_segmenter"]


def open_segmenter(config: SegmentConfig) -> Segmenter:
    """The segmenter of ``config.kind``; there is no silent replacement for a missing one.

    Raises:
        DataError: its package is not installed.
    """
    return SEGMENTERS[config.kind](config)


def describe_segmenter(config: SegmentConfig) -> dict[str, str]:
    """``name``, ``version`` and ``hash`` of the segmenter, for the manifest.

    Raises:
        DataError: its package is not installed.
    """
    return open_segmenter(config).describe()


@SEGMENTERS.add("rjieba")
class RjiebaSegmenter(Segmenter):
    """jieba's dictionary and hidden Markov model in Rust; about one line in 30 is cut differently from jieba's."""

    def __init__(self, config: SegmentConfig) -> None:
        try:
            import rjieba
        except ImportError as error:
            raise DataError(
                f"The segmenter `rjieba` cannot be loaded ({error}): `pip install rjieba`, or choose "
                "`data.segment.kind=none` (each Chinese character is a word by itself)."
            ) from None
        self._module: Any = rjieba
        # An instance of our own: words that someone adds to the module's default one do not reach it.
        self._jieba: Any = rjieba.Jieba()
        self._hmm = config.hmm

    def word_starts(self, text: str) -> NDArray[np.bool_]:
        """bool [len(text)]: the character begins a word.

        Raises:
            DataError: the words do not join back to ``text``, or it is not valid Unicode.
        """
        try:
            words: list[str] = self._jieba.cut(text, self._hmm)
        except UnicodeEncodeError as error:
            raise DataError(f"rjieba cannot cut a text that is not valid Unicode: {error}.") from None
        return starts_of(words, text, f"rjieba {self.describe()['version']}")

    def describe(self) -> dict[str, str]:
        """Name, version and hash; the hash is that of the compiled module, which holds the dictionary.

        rjieba does not ship its dictionary as a file, so the hash also differs between platforms.
        """
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("rjieba")
        except PackageNotFoundError:
            number = "unknown"
        inner = getattr(self._module, "rjieba", self._module)
        digest = xxhash.xxh3_128_hexdigest(Path(inner.__file__).read_bytes())
        return {"name": "rjieba", "version": number, "hash": digest}


# Ideographs, each of which is a token and here a word by itself.
_HAN = "\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTER = re.compile(f"[^\\W{_HAN}]")
_ACCENTS = "\u0300-\u036f"


@functools.cache
def _classes() -> NDArray[np.uint8]:
    """uint8 [0x110000]: 1 for other letters, digits and underscores, 2 for their accents, 0 for the rest."""
    kinds = np.zeros(0x110000, np.uint8)
    everything = "".join(map(chr, range(0x110000)))
    kinds[[match.start() for match in _LETTER.finditer(everything)]] = 1
    kinds[0x300:0x370] = 2
    return kinds


@njit(cache=True, nogil=True)
def _runs(chars: Any, documents: Any, kinds: Any) -> Any:
    starts = np.ones(len(chars), np.bool_)
    for d in range(len(documents) - 1):
        inside = False
        for k in range(documents[d], documents[d + 1]):
            kind = kinds[chars[k]]
            starts[k] = not (inside and kind != 0)
            inside = kind == 1 or (inside and kind == 2)
    return starts


@SEGMENTERS.add("none")
class NoSegmenter(Segmenter):
    """Every character is a word, except in runs of letters and digits (with their accents) that are not Chinese."""

    def __init__(self, config: SegmentConfig) -> None:
        del config

    def word_starts(self, text: str) -> NDArray[np.bool_]:
        """bool [len(text)]: the character begins a word."""
        return self.starts(code_points(text), one_document(len(text)))

    def starts(self, chars: NDArray[np.uint32], documents: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool [N]: the character begins a word, in one pass."""
        found: NDArray[np.bool_] = _runs(*for_kernel(chars, documents), _classes())
        return found

    def describe(self) -> dict[str, str]:
        """Name and version of the rule above; there is no dictionary."""
        return {"name": "none", "version": "1", "hash": ""}


load_plugins("segmenters")

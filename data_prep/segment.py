"""Word boundaries for whole word masking."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from configs.errors import DataError
from configs.plugins import load_plugins
from configs.registry import Registry
from data_prep.config import SegmentConfig


class Segmenter(Protocol):
    """Where words start."""

    def __init__(self, config: SegmentConfig) -> None: ...

    def word_starts(self, text: str) -> npt.NDArray[np.bool_]:
        """bool [len(text)]: the character begins a word."""
        ...

    def starts(self, chars: npt.NDArray[np.uint32], documents: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """bool [N]: the character begins a word. Of many documents at once.

        Args:
            chars: uint32 [N], the code points of the documents, one document after another.
            documents: int64 [d + 1], where each begins, and the end.
        """
        text = chars.tobytes().decode("utf-32-le")
        found = [self.word_starts(text[a:b]) for a, b in pairwise(documents.tolist())]
        return np.concatenate([np.zeros(0, np.bool_), *found])

    def describe(self) -> dict[str, str]:
        """``name``, ``version`` and ``hash`` (of the dictionary): what the boundaries depend on."""
        ...


SEGMENTERS: Registry[type[Segmenter]] = Registry("segmenter")


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
    """jieba's dictionary and hidden Markov model, in Rust."""

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

    def word_starts(self, text: str) -> npt.NDArray[np.bool_]:
        """bool [len(text)]: the character begins a word.

        Raises:
            DataError: the words do not join back to ``text``, or it is not valid Unicode.
        """
        try:
            words: list[str] = self._jieba.cut(text, self._hmm)
        except UnicodeEncodeError as error:
            raise DataError(f"rjieba cannot cut a text that is not valid Unicode: {error}.") from None
        if "".join(words) != text:
            raise DataError(
                f"The words that rjieba {self.describe()['version']} found do not join back to their text, "
                f"which begins {text[:40]!r}: use another version of it, or `data.segment.kind=none`."
            )
        starts = np.zeros(len(text) + 1, dtype=np.bool_)
        starts[0] = True
        starts[np.cumsum(np.fromiter(map(len, words), dtype=np.int64, count=len(words)))] = True
        return starts[:-1]

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
# A run of other letters, digits and their accents: one word, however many pieces the tokenizer makes of it.
_RUN = re.compile(f"[^\\W{_HAN}](?:[^\\W{_HAN}]|[\u0300-\u036f])+")


@SEGMENTERS.add("none")
class NoSegmenter(Segmenter):
    """Every character is a word, except in runs of letters and digits that are not Chinese."""

    def __init__(self, config: SegmentConfig) -> None:
        del config

    def word_starts(self, text: str) -> npt.NDArray[np.bool_]:
        """bool [len(text)]: the character begins a word."""
        starts = np.ones(len(text), dtype=np.bool_)
        for match in _RUN.finditer(text):
            starts[match.start() + 1 : match.end()] = False
        return starts

    def describe(self) -> dict[str, str]:
        """Name and version of the rule above; there is no dictionary."""
        return {"name": "none", "version": "1", "hash": ""}


load_plugins("segmenters")

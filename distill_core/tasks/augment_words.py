"""Which words of a text may be replaced: words of letters, and Chinese words, that are not function words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from configs.errors import DataError
from data_prep.config import SegmentConfig
from data_prep.segment import Segmenter, open_segmenter
from data_prep.wordpiece_letters import HAN

Language = Literal["auto", "latin", "chinese"]

_HAN = "".join(f"{chr(first)}-{chr(last)}" for first, last in HAN)
_ALL_HAN = re.compile(f"[{_HAN}]+")
_WORD = re.compile(f"[^\\W_{_HAN}](?:[^\\W_{_HAN}]|[\u0300-\u036f])*")

_FUNCTION_WORDS = """
a about after again all also although am an and another any are as at be because been before being both but by
can cannot could did do does doing down during each either else ever every few for from further had has have
having he her here hers herself him himself his how however i if in into is it its itself just let may me might
mine more most much must my myself neither no nor not of off on once one only onto or other ought our ours
ourselves out over own quite rather same shall she should since so some such than that the their theirs them
themselves then there these they this those though through thus to too toward under until up upon us very via
was we were what when where whether which while who whom whose why will with within without would yet you your
yours yourself s t d m ll re ve don doesn didn isn aren wasn weren won wouldn couldn shouldn hasn haven hadn ain
的 地 得 了 着 过 吗 呢 吧 啊 呀 哦 嘛 么 之 所 者 是 在 有 和 与 及 或 而 且 但 但是 并 并且 以及 还 还是 又 也
都 就 才 只 只是 很 太 更 最 不 没 没有 别 把 被 让 使 给 对 对于 关于 从 向 往 由 由于 于 以 为 为了 因为 因此
所以 如果 虽然 然而 不过 那么 这么 怎么 什么 谁 哪 哪里 哪个 为什么 多少 几 我 你 您 他 她 它 我们 你们 他们
她们 它们 咱们 自己 这 那 这个 那个 这些 那些 这里 那里 此 其 某 每 各 个 些 一个 一些 一 会 能 可以 要 应该 已
已经 正在 将 曾 上 下 里 中 内 外 前 后 时 等 到 来 去 跟 同 比 像 如 即 则 却 再 仍 便 若 虽 至 至于 除了 通过
根据 按照
"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Function words of English (with the parts that apostrophes leave) and of Chinese."""


def only_han(text: str) -> bool:
    """Whether ``text`` is Chinese characters and nothing else."""
    return _ALL_HAN.fullmatch(text) is not None


@dataclass(frozen=True)
class Word:
    """``text``, which stands at ``start`` to ``end`` (characters) of its sentence; ``han``: of Chinese characters."""

    start: int
    end: int
    text: str
    han: bool


class Words:
    """Finds the words that may be replaced."""

    def __init__(self, language: Language, segment: SegmentConfig, stop_words: str | None) -> None:
        """
        Args:
            language: ``latin`` leaves Chinese words alone, ``chinese`` those of letters; ``auto`` takes both.
            stop_words: a file with one word a line instead of the built-in ones.

        Raises:
            DataError: the file cannot be read or is empty.
        """
        self._latin, self._chinese = language != "chinese", language != "latin"
        self._segment = segment
        self._stop = STOP_WORDS if stop_words is None else _read_stop_words(stop_words)

    @cached_property
    def _segmenter(self) -> Segmenter:
        return open_segmenter(self._segment)  # only when a text is Chinese

    def find(self, text: str) -> list[Word]:
        """The words of ``text`` in order.

        Raises:
            DataError: the text holds Chinese and the segmenter is not installed.
        """
        found = []
        if self._latin:
            found += [self._word(text, *match.span(), han=False) for match in _WORD.finditer(text)]
            # A run that is not of letters alone (2nd, H2O) is no word: a masked-LM would not fill its place alike.
            found = [word for word in found if unicodedata.normalize("NFC", word.text).isalpha()]
        if self._chinese and _ALL_HAN.search(text):
            starts = np.flatnonzero(self._segmenter.word_starts(text)).tolist()
            spans = [span for span in pairwise([*starts, len(text)]) if only_han(text[slice(*span)])]
            found += [self._word(text, *span, han=True) for span in spans]
        return sorted((w for w in found if w.text.lower() not in self._stop), key=lambda word: word.start)

    def _word(self, text: str, start: int, end: int, han: bool) -> Word:
        return Word(start, end, text[start:end], han)


def _read_stop_words(path: str) -> frozenset[str]:
    try:
        words = frozenset(Path(path).read_text(encoding="utf-8-sig").lower().split())
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"Cannot read the stop words {path}: {reason}. Correct `stop_words`.") from None
    if not words:
        raise DataError(f"The file of stop words {path} is empty; leave `stop_words` out for the built-in ones.")
    return words


# ---------------------------------------------------------------- labelled tokens as one text


def join_tokens(tokens: Sequence[str]) -> tuple[str, list[int]]:
    """A text of ``tokens``, with spaces only between tokens that are not Chinese, and where each token begins."""
    text, starts = "", []
    for token in tokens:
        if text and not (only_han(text[-1]) or only_han(token[:1])):
            text += " "
        starts.append(len(text))
        text += token
    return text, starts

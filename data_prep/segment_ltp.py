"""Words of a perceptron model of LTP, by its package ``ltp_extension`` (an extra: ``zhengliu[ltp]``)."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from configs.errors import DataError
from data_prep.config import SegmentConfig
from data_prep.segment_base import SEGMENTERS, Segmenter, starts_of

_SPACE = re.compile(r"(\r\n|\s)")


@SEGMENTERS.add("ltp")
class LtpSegmenter(Segmenter):
    """LTP's legacy (perceptron) word segmentation with a local model file.

    Its neural models need torch, which preparation does without. The model sees text without white space, of which
    each character is a word (CR LF is one), as with jieba.
    """

    def __init__(self, config: SegmentConfig) -> None:
        assert config.model is not None, "checked by the config"
        self._path = Path(config.model)
        try:
            from ltp_extension.perceptron import CWSModel
        except ImportError as error:
            raise DataError(
                f"The segmenter `ltp` cannot be loaded ({error}): `pip install ltp_extension` (or "
                "`pip install 'zhengliu[ltp]'`), or choose another `data.segment.kind`."
            ) from None
        try:
            self._digest = xxhash.xxh3_128_hexdigest(self._path.read_bytes())
            self._model: Any = CWSModel.load(str(self._path))
        except (OSError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]  # the rest is a stack of the library's own
            raise DataError(
                f"data.segment.model: cannot read {self._path} ({reason}). Give the file of a word segmentation model "
                "of LTP's legacy kind (as `cws_model.bin` of LTP/legacy), not a folder of a neural one."
            ) from None

    def word_starts(self, text: str) -> NDArray[np.bool_]:
        """bool [len(text)]: the character begins a word.

        Raises:
            DataError: the words do not join back to ``text``, or it is not valid Unicode.
        """
        words: list[str] = []
        try:
            for piece in filter(None, _SPACE.split(text)):
                words += [piece] if piece.isspace() else self._model.predict(piece)
        except UnicodeEncodeError as error:
            raise DataError(f"LTP cannot cut a text that is not valid Unicode: {error}.") from None
        return starts_of(words, text, f"ltp_extension {version('ltp_extension')}")

    def describe(self) -> dict[str, str]:
        """Name, version and hash of the model's file."""
        return {"name": "ltp", "version": version("ltp_extension"), "hash": self._digest}

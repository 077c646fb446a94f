"""What may be done to the characters of a text beyond making it regular: HTML entities, traditional Chinese."""

from __future__ import annotations

import html
from functools import cache
from typing import Any

from configs.errors import DataError
from data_prep.config import CleanConfig


def unescape(text: str) -> str:
    """HTML's character references as characters (``html.unescape``: ``&amp;`` becomes ``&``, once)."""
    return html.unescape(text) if "&" in text else text


def simplified(text: str, config: CleanConfig) -> str:
    """``text`` converted by OpenCC as ``config.opencc`` says.

    There is no table of single characters for the easy cases: OpenCC's phrases also change characters that a table
    leaves alone (土坏 becomes 土坯), so only the library knows which cases are easy.

    Raises:
        DataError: OpenCC is not installed, or does not know this conversion.
    """
    if config.opencc is None:
        return text
    converted: str = _converter(config.opencc).convert(text)
    return converted


def describe_rewrite(config: CleanConfig) -> dict[str, str]:
    """What the conversion depends on beside the settings: OpenCC's version, as its dictionaries come with it."""
    return {} if config.opencc is None else {"opencc": _opencc().__version__}


@cache
def _converter(name: str) -> Any:
    try:
        return _opencc().OpenCC(name)
    except Exception as error:  # the extension raises what it likes
        raise DataError(f"OpenCC cannot open its conversion {name!r} of `data.clean.opencc`: {error}.") from None


def _opencc() -> Any:
    try:
        import opencc
    except ImportError as error:
        raise DataError(
            f"`data.clean.opencc` needs OpenCC, which cannot be loaded ({error}): `pip install 'zhengliu[opencc]'`, or "
            "remove the setting."
        ) from None
    return opencc

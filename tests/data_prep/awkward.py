"""Texts that tell tokenizers apart, and shorthands for comparing them."""

from __future__ import annotations

import random
import unicodedata
from typing import Any

from data_prep.config import TokenizerConfig
from data_prep.readers import SAMPLE
from data_prep.tokenizer_base import SPECIALS, Tokenizer

SAMPLE_TEXT = "".join(path.read_text(encoding="utf-8") for path in sorted(SAMPLE.glob("*.txt")))
SAMPLE_LINES = [line for line in SAMPLE_TEXT.split("\n") if line]

AWKWARD = [
    "", " ", "  two  spaces ", "\u3000全角\u00a0空格", "你好[MASK]世界[CLS][SEP][PAD][UNK]", "[mask]",
    "## ##ab", "BERT-wwm用了whole word masking，2019年。", "naïve café Ångström İstanbul ǅ ß ΑΣ ﬁ",
    "e\u0301te\u0301 a\u0300\u0323", "你\u0301好\u20dd", "한국어 각각 ᄀ가힣", "日本語のカナ ｶﾞ ガ",
    "ไทย हिन्दी العَرَبِيَّة עִבְרִית", "😀👩‍👩‍👧❤️🏳️‍🌈", "𠀀𪜀𫝀𬺰𰀀豈羅丽", "≠ ≮ \u037e \u2126 \u212b",
    "a\u200bb\ufeffc\u00add", "tab\tline\nfeed\rreturn\x00nul\x07bell", "x" * 99, "y" * 100,
    "z" * 101, "é" * 101, "https://a.b/c?d=e&f#g", "３．１４％～——……《》「」『』【】",
    "\ufffd\ue000\U000e0001", "１２３ⅣⅤ①②㈠", "don't U.S.A. C++ C# _x_ $5 ^~`|", "ﷺ㍿℡",
    "\u2028\u2029\x85",
]  # fmt: skip


def corpus(n: int = 300) -> list[str]:
    """Lines of the packaged sample, and lines of characters from everywhere."""
    draw = random.Random(7)
    assigned = [c for c in range(0x30000) if unicodedata.category(chr(c)) not in ("Cs", "Cn")]
    mixed = ["".join(chr(draw.choice(assigned)) for _ in range(30)) for _ in range(n)]
    woven = ["".join(draw.choice(AWKWARD + SAMPLE_LINES)[:12] for _ in range(5)) for _ in range(n)]
    return AWKWARD + SAMPLE_LINES[:n] + mixed + woven


LINES = corpus()


def config(**keys: Any) -> TokenizerConfig:
    return TokenizerConfig(**keys)


def ids(tokenizer: Tokenizer, lines: list[str]) -> list[list[int]]:
    return [found.tolist() for found, _ in tokenizer.encode(lines)]


def without_specials(lines: list[str]) -> list[str]:
    return [line for line in lines if not any(special in line for special in SPECIALS.values())]


def check_auto_tokenizer(ours: Tokenizer, theirs: Any) -> None:
    assert len(theirs) == ours.vocab_size
    named = {part: getattr(theirs, f"{part}_token_id") for part in SPECIALS}
    assert named == ours.special_ids
    lines = without_specials(LINES)
    cls, sep = ours.special_ids["cls"], ours.special_ids["sep"]
    assert theirs(lines)["input_ids"] == [[cls, *found, sep] for found in ids(ours, lines)]
    pair = theirs("你好", "世界")
    assert pair["input_ids"] == [cls, *ids(ours, ["你好"])[0], sep, *ids(ours, ["世界"])[0], sep]
    assert theirs("你[MASK]")["input_ids"].count(ours.special_ids["mask"]) == 1


def anew(count: int, seed: int) -> list[str]:
    """Lines of one to three pieces of the sample's lines."""
    draw = random.Random(seed)

    def piece() -> str:
        line = draw.choice(SAMPLE_LINES)
        start = draw.randrange(len(line))
        return line[start : start + draw.randrange(4, 20)]

    return ["".join(piece() for _ in range(draw.randrange(1, 4))) for _ in range(count)]

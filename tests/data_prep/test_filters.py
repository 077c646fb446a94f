from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import opencc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.errors import DataError
from data_prep.clean import clean_texts
from data_prep.config import CleanConfig
from data_prep.config_quality import FilterConfig
from data_prep.filters import REASONS, judge
from data_prep.pipeline import prepare
from data_prep.stream import raw_stream
from tests.data_prep.conftest import sample_config
from tests.data_prep.test_pipeline import small

EVERYTHING = FilterConfig(
    max_characters=60,
    min_mean_line_length=3,
    min_cjk_share=0.4,
    max_punctuation_share=0.4,
    max_symbol_share=0.3,
    max_digit_share=0.3,
    max_duplicate_line_share=0.4,
    max_duplicate_line_character_share=0.5,
    max_top_ngram_share={1: 0.5, 2: 0.4, 3: 0.5},
    max_duplicate_ngram_share={2: 0.6, 4: 0.3},
)


def han(character: str) -> bool:
    name = unicodedata.name(character, "")
    return character in "々〆〇" or name.startswith(("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH"))


def reason(text: str, config: FilterConfig) -> str:
    """The slow oracle: strings and counters, nothing shared with the kernel. The order is that of ``REASONS``."""
    visible = [c for c in text if not c.isspace()]
    lines = text.split("\n")
    seen: set[str] = set()
    again = [line for line in lines if line in seen or seen.add(line)]  # type: ignore[func-returns-value]
    found = [
        ("too_long", config.max_characters, len(text)),
        ("short_lines", config.min_mean_line_length, sum(map(len, lines)) / len(lines)),
        ("low_cjk_share", config.min_cjk_share, share(han, visible)),
        ("punctuation_share", config.max_punctuation_share, share(kind("P"), visible)),
        ("symbol_share", config.max_symbol_share, share(kind("S"), visible)),
        ("digit_share", config.max_digit_share, share(kind("N"), visible)),
        ("duplicate_lines", config.max_duplicate_line_share, len(again) / len(lines)),
        (
            "duplicate_line_characters",
            config.max_duplicate_line_character_share,
            sum(map(len, again)) / max(1, sum(map(len, lines))),
        ),
    ]
    found += [("top_ngram", limit, top(text, n)) for n, limit in sorted(config.max_top_ngram_share.items())]
    again_by_size = sorted(config.max_duplicate_ngram_share.items())
    found += [("duplicate_ngrams", limit, repeated(text, n)) for n, limit in again_by_size]
    for name, limit, value in found:
        if limit is not None and (value < limit if name in ("short_lines", "low_cjk_share") else value > limit):
            return name
    return ""


def kind(letter: str):  # type: ignore[no-untyped-def]
    return lambda c: unicodedata.category(c)[0] == letter and not han(c)


def share(test, visible: list[str]) -> float:  # type: ignore[no-untyped-def]
    return sum(map(test, visible)) / max(1, len(visible))


def grams(text: str, n: int) -> list[tuple[int, str]]:
    found = ((i, text[i : i + n]) for i in range(len(text) - n + 1))
    return [(i, gram) for i, gram in found if not any(c.isspace() for c in gram)]


def top(text: str, n: int) -> float:
    counts: Counter[str] = Counter()
    until: dict[str, int] = {}
    for i, gram in grams(text, n):
        if i >= until.get(gram, 0):
            counts[gram] += 1
            until[gram] = i + n
    most = max(counts.values(), default=0)
    return most * n / len("".join(text.split())) if most > 1 else 0.0


def repeated(text: str, n: int) -> float:
    seen: set[str] = set()
    free = inside = 0
    for i, gram in grams(text, n):
        if i < free:
            continue
        if gram in seen:
            inside += n
            free = i + n
        seen.add(gram)
    return inside / max(1, len("".join(text.split())))


def verdicts(texts: list[str], config: FilterConfig) -> list[str]:
    stream = raw_stream(texts)
    return [REASONS[code] for code in judge(stream.chars, stream.documents, config)]


CASES = {
    "too_long": ("今天天气很好。", FilterConfig(max_characters=6)),
    "short_lines": ("首页\n新闻\n体育", FilterConfig(min_mean_line_length=3)),
    "low_cjk_share": ("hello world 你好", FilterConfig(min_cjk_share=0.5)),
    "punctuation_share": ("好……！！！？？？", FilterConfig(max_punctuation_share=0.5)),
    "symbol_share": ("★★★☆ 推荐", FilterConfig(max_symbol_share=0.5)),
    "digit_share": ("电话 0571-8888 1234", FilterConfig(max_digit_share=0.5)),
    "duplicate_lines": ("点击\n今天的新闻\n点击\n点击", FilterConfig(max_duplicate_line_share=0.4)),
    "duplicate_line_characters": ("今天的新闻\n今天的新闻\n好", FilterConfig(max_duplicate_line_character_share=0.4)),
    "top_ngram": ("哈哈哈哈哈哈笑", FilterConfig(max_top_ngram_share={1: 0.5})),
    "duplicate_ngrams": ("买一送一快来，买一送一快来，", FilterConfig(max_duplicate_ngram_share={4: 0.25})),
}


@pytest.mark.parametrize("name", CASES)
def test_each_reason(name: str) -> None:
    text, config = CASES[name]
    assert verdicts([text, "今天天气好"], config) == [name, ""]
    assert reason(text, config) == name


def test_every_reason_has_its_case() -> None:
    assert tuple(CASES) == REASONS[1:]


ALPHABET = "你好的的哈，。！★$1２Ⅳ〇々豈𠀀ab é\n\n\u3000ー한"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(ALPHABET, min_size=1, max_size=80), min_size=1, max_size=5))
def test_equal_to_the_slow_definition(texts: list[str]) -> None:
    assert verdicts(texts, EVERYTHING) == [reason(text, EVERYTHING) for text in texts]
    for config in (config for _, config in CASES.values()):
        assert verdicts(texts, config) == [reason(text, config) for text in texts]


def test_every_code_point_has_its_class() -> None:
    """One document a code point, in which it stands alone: each of the share filters says what it is."""
    characters = [c for c in map(chr, range(0x110000)) if not c.isspace() and not 0xD800 <= ord(c) < 0xE000]
    stream = raw_stream(characters)
    chars, documents = stream.chars, stream.documents
    wrong = []
    for field, test in (
        ("max_punctuation_share", kind("P")),
        ("max_symbol_share", kind("S")),
        ("max_digit_share", kind("N")),
    ):
        found = judge(chars, documents, FilterConfig.model_validate({field: 0.5})) > 0
        expected = np.fromiter(map(test, characters), np.bool_, len(characters))
        wrong += [hex(ord(c)) for c, a, b in zip(characters, found, expected, strict=True) if a != b]
    # Symbols and digits beyond the ideographic planes do not exist (yet).
    assert not wrong
    ideographs = judge(chars, documents, FilterConfig(min_cjk_share=0.5)) == 0
    named = np.fromiter(map(han, characters), np.bool_, len(characters))
    assert not (named & ~ideographs).sum()
    # Beside them: places that no character has yet.
    extra = [c for c, a, b in zip(characters, ideographs, named, strict=True) if a and not b]
    assert all(unicodedata.category(c) in ("Cn",) for c in extra)


def test_no_filter_is_on_by_itself() -> None:
    assert verdicts(["哈" * 1000, "1"], FilterConfig()) == ["", ""]


@pytest.mark.parametrize("size", [0, 65])
def test_sizes_are_checked(size: int) -> None:
    with pytest.raises(ValidationError):
        FilterConfig.model_validate({"max_top_ngram_share": {size: 0.5}})


def test_drops_are_counted_by_reason(tmp_path: Path) -> None:
    config = small(tmp_path)
    texts = ["电话 0571 8888 1234", *(f"这是第{'一二三四五六七八九'[i]}篇好文章，没有什么数字。" for i in range(9))]
    (tmp_path / "b.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    filters = FilterConfig(max_digit_share=0.5, max_top_ngram_share={1: 0.3}, min_mean_line_length=5)
    config = config.model_copy(update={"clean": CleanConfig(filters=filters)})
    manifest = prepare(config, tmp_path / "data").manifest
    assert manifest["dropped"] == {"digit_share": 1, "empty": 1, "no_text": 1, "not_json": 1, "too_short": 1}
    assert manifest["documents"] == 39
    assert prepare(config, tmp_path / "data").hash == manifest["hash"]  # the settings come back from the manifest


def cleaned(text: str, rule: CleanConfig) -> str:
    (only,) = clean_texts([text], rule)[0].texts()
    return only


def test_html_entities() -> None:
    rule = CleanConfig(html_entities=True)
    assert cleaned("a&amp;lt;b &nbsp;&#20320;好&hellip;&#x110000;&nosuch;", rule) == "a&lt;b 你好…&nosuch;"
    assert cleaned("a&amp;b，好", CleanConfig()) == "a&amp;b，好"


def test_traditional_to_simplified() -> None:
    rule = CleanConfig(opencc="t2s")
    assert cleaned("漢字與乾坤，乾燥的頭髮；著名的瞭解。\ufeff", rule) == "汉字与乾坤，干燥的头发；著名的了解。"
    assert cleaned("乾\u200b坤\ud800朗朗", rule) == "乾坤朗朗"  # what is invisible does not tear a phrase
    assert cleaned("土坏很多", rule) == "土坯很多"  # though each character looks simplified


def test_opencc_in_the_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.txt").write_text("\n\n".join(f"第{i}個漢字寫得很漂亮。" for i in range(20)), encoding="utf-8")
    source = small(tmp_path).sources[0].model_copy(update={"path": str(tmp_path / "c.txt")})
    config = sample_config(sources=[source], clean=CleanConfig(opencc="t2s"))
    prepare(config, tmp_path / "data")
    vocab = (tmp_path / "data" / "tokenizer" / "vocab.txt").read_text(encoding="utf-8")
    assert "汉" in vocab and "漢" not in vocab
    # Another version of OpenCC may convert otherwise.
    (tmp_path / "data" / "manifest.json").unlink()
    monkeypatch.setattr(opencc, "__version__", "0.0.1")
    with pytest.raises(DataError, match=r"opencc: .* -> '?0\.0\.1"):
        prepare(config, tmp_path / "data")

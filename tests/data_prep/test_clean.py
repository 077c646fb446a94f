"""Cleaning is idempotent and leaves nothing invisible; sentences lose nothing but newlines."""

from __future__ import annotations

import unicodedata
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.clean import clean_texts
from data_prep.config import CleanConfig
from data_prep.sentences import sentences
from tests.data_prep import plain
from tests.data_prep import streams as ours

ANY = CleanConfig(min_characters=0)
Form = Literal["none", "NFC", "NFKC"]
FORMS: list[Form] = ["none", "NFC", "NFKC"]


def clean(text: str, config: CleanConfig) -> tuple[str | None, str]:
    """What becomes of one text, or why it is dropped."""
    texts, dropped = ours.cleaned([text], config)
    assert len(texts) + sum(dropped.values()) == 1
    return (texts[0], "") if texts else (None, *dropped)


def cleaned(text: str, form: Form = "NFC") -> str | None:
    return clean(text, CleanConfig(unicode=form, min_characters=0))[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ufeff你好\r\n\r\n 世\u3000\u00a0\t界 \r x", "你好\n世 界\nx"),
        ("零\u200b宽\u200d空\u2060格\u00ad", "零宽空格"),
        ("a\0b\x07c\ue000d\U000f0000e\ud800f", "abcdef"),
        ("右\u202e左\u2066向", "右左向"),
        ("第一行\u2028第二行\u2029第三行\x85第四行\v\f第五行", "第一行\n第二行\n第三行\n第四行\n第五行"),
        ("e\u0301te\u0301", "été"),
        ("ｆｕｌｌ，宽！", "ｆｕｌｌ，宽！"),
        ("❤\ufe0f", "❤"),
        ("𠀀𪜀𰀀", "𠀀𪜀𰀀"),
    ],
)
def test_clean(text: str, expected: str) -> None:
    assert clean(text, ANY) == (expected, "")


def test_forms() -> None:
    assert cleaned("ｆｕｌｌ，", "NFKC") == "full,"
    assert cleaned("e\u0301", "none") == "e\u0301"


def test_dropped_with_a_reason() -> None:
    assert clean(" \n\u200b\u3000", ANY) == (None, "empty")
    assert clean("你好吗", CleanConfig(min_characters=4)) == (None, "too_short")
    assert clean("你好吗？", CleanConfig(min_characters=4)) == ("你好吗？", "")


@pytest.mark.parametrize("form", FORMS)
def test_every_character(form: Form) -> None:
    planes = [range(0x32000), range(0xE0000, 0xE0200), range(0xF0000, 0xF0100), range(0x10FF00, 0x110000)]
    everything = [chr(c) for plane in planes for c in plane]
    text = cleaned("x".join(everything), form)
    assert text is not None
    assert cleaned(text, form) == text
    assert {unicodedata.category(c) for c in set(text) - {"\n"}}.isdisjoint({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})
    assert {c for c in text if c.isspace()} == {" ", "\n"}


AWKWARD = st.text(
    st.sampled_from("a é\u0301\u0308你。 \n\r\t\u3000\u200d\ufeff\u1100\u1161\u11a8한\u00a8"), max_size=30
)


@settings(deadline=None)
@given(AWKWARD | st.text(max_size=30), st.sampled_from(FORMS))
def test_clean_twice_is_clean_once(text: str, form: Form) -> None:
    once = cleaned(text, form)
    if once is None:
        return
    assert cleaned(once, form) == once
    assert "  " not in once
    assert all(line and line == line.strip() for line in once.split("\n"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("他说：“你好。”然后走了。没有回头", ["他说：“你好。”", "然后走了。", "没有回头"]),
        ("真的吗？！（是的。）嗯……好\n第二行", ["真的吗？！", "（是的。）", "嗯……", "好", "第二行"]),
        ("Yes! No? 好!又来", ["Yes!", " No?", " 好!", "又来"]),
        ("http://a.b/?c=1&d!e 完。", ["http://a.b/?c=1&d!e 完。"]),
        ("。", ["。"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_long_line_without_a_stop_stays_whole() -> None:
    assert sentences("字" * 100_000) == ["字" * 100_000]


@given(st.text(st.sampled_from('字a!?。！？…”’)"」 \n'), max_size=40) | st.text(max_size=30))
def test_sentences_lose_nothing(text: str) -> None:
    cut = sentences(text)
    assert "".join(cut) == text.replace("\n", "")
    assert all(cut)
    assert not any("\n" in sentence for sentence in cut)


# ---------------------------------------------------------------- the kernels and their definition

CONFIGS = [
    CleanConfig(min_characters=0),
    CleanConfig(unicode="NFKC", min_characters=5),
    CleanConfig(unicode="none", min_unit_characters=4),
    CleanConfig(unit="line", min_unit_characters=6),
]
CHARACTERS = (
    "abAÉé1。！!?….”(“ \n\u3000，か字각ſßİı①𠀀ﬁ℡㎡ﷺ\r\u2028\u200b\ufe0f\ud800\u0301\u0323\u1100\u1161\u11a8"
    "\u3099\u212b\ufa0e\uf900\u2000\u0958\u00b4\U000e0001\ufffd"
)
WORDS = [". ", "’)", "\r\n", "Dr", "mſ", "prof", "bijv", "xdr", "No", " İr"]
MEETING = st.sampled_from([*CHARACTERS, *WORDS])


def accounted(texts: list[str], config: CleanConfig) -> None:
    """Every character is kept or counted by reason, those of kept documents as the slow definition says."""
    found, counts = clean_texts(texts, config)
    read, more = counts["characters_read"], counts["characters_rewritten"]
    assert read == sum(map(len, texts))
    assert read + more == len(found.chars) + counts["characters_dropped"] + sum(counts.removed.values())
    if not (config.min_unit_characters or config.html_entities or config.opencc):  # else kept ones are dropped later
        of_each = [plain.lost(text, config) for text in texts if plain.clean(text, config)[0] is not None]
        names = ("removed_invisible", "removed_undecodable", "removed_white_space", "characters_rewritten")
        assert {name: counts[name] for name in names} == {name: sum(one[name] for one in of_each) for name in names}


def agree(texts: list[str], config: CleanConfig) -> None:
    right = [plain.clean(text, config) for text in texts]
    kept = [text for text, _ in right if text is not None]
    reasons = [reason for _, reason in right if reason]
    assert ours.cleaned(texts, config) == (kept, {reason: reasons.count(reason) for reason in set(reasons)})
    accounted(texts, config)
    assert ours.units(kept, config) == [plain.units(text, config) for text in kept]


def test_what_is_removed_is_counted() -> None:
    text = "\ufeff你\u200b好\ufffd\ufffd \r\n 世\ue000界e\u0301"
    found, counts = clean_texts([text, " \u200b "], ANY)
    assert list(found.texts()) == ["你好\n世界é"]
    assert counts.removed == {"invisible": 3, "undecodable": 2, "white_space": 3}
    assert (counts["characters_read"], counts["characters_rewritten"], counts["characters_dropped"]) == (18, -1, 3)


@settings(deadline=None)
@given(st.lists(st.lists(MEETING | st.sampled_from(["&amp;", "&lt", "\ufffd"]), max_size=12).map("".join), max_size=6))
def test_with_entities_characters_are_accounted_for(texts: list[str]) -> None:
    accounted(texts, CleanConfig(html_entities=True, min_characters=3, min_unit_characters=3))


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.lists(MEETING, max_size=12).map("".join) | st.text(max_size=12), max_size=6), st.sampled_from(CONFIGS)
)
def test_as_by_regular_expressions(texts: list[str], config: CleanConfig) -> None:
    agree(texts, config)


def telling(character: str) -> bool:
    decomposed = unicodedata.decomposition(character) != "" and not "가" <= character <= "힣"
    return character < "\u0400" or decomposed or unicodedata.category(character) not in ("Lo", "So", "Cn", "Co", "Cs")


@pytest.mark.parametrize("form", FORMS)
def test_every_character_as_by_regular_expressions(form: Form) -> None:
    planes = [range(0x32000), range(0xE0000, 0xE0100), range(0xF0000, 0xF0010), range(0x10FFF0, 0x110000)]
    # Of the many that are letters and nothing else, some are enough.
    own = [c for plane in planes for c in plane if c % 67 == 0 or telling(chr(c))]
    around = "{}a{}\u1100{}\u11a8 中{}\u0301\nA{}. B dr{}. C!{}x"
    agree([around.replace("{}", chr(c)) for c in own], CleanConfig(unicode=form))

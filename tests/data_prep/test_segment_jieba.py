"""The kernel against jieba itself: the same words everywhere, with and without the hidden Markov model."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jieba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jieba import finalseg

from configs.errors import ConfigError, DataError
from configs.loader import validate
from data_prep import jieba_kernel, jieba_tables
from data_prep.config import SegmentConfig
from data_prep.segment import describe_segmenter, open_segmenter
from data_prep.segment_base import Segmenter, code_points
from tests.data_prep.awkward import LINES, SAMPLE_TEXT, anew

OURS = {hmm: open_segmenter(SegmentConfig(hmm=hmm)) for hmm in (True, False)}


def fresh(dictionary: Path | None = None) -> Any:
    """A jieba of our own, which neither reads nor leaves files outside of its package."""
    theirs = jieba.Tokenizer()
    theirs.FREQ, theirs.total = theirs.gen_pfdict(theirs.get_dict_file())
    theirs.initialized = True
    if dictionary is not None:
        theirs.load_userdict(str(dictionary))
    return theirs


JIEBA = fresh()
WORDS = sorted(word for word, frequency in JIEBA.FREQ.items() if frequency)
CHARACTERS = sorted({character for word in WORDS for character in word})


def words(segmenter: Segmenter, text: str) -> list[str]:
    cuts = [*np.flatnonzero(segmenter.word_starts(text)).tolist(), len(text)]
    return [text[a:b] for a, b in pairwise(cuts)]


def check(text: str, theirs: Any = JIEBA, ours: dict[bool, Segmenter] = OURS) -> None:
    for hmm, segmenter in ours.items():
        assert words(segmenter, text) == theirs.lcut(text, HMM=hmm), (text, hmm)


TRICKY = [
    "穿T恤的人在卡拉OK唱歌，AA制，B超、IC卡和阿Q正传；t恤、卡拉ok、aa制不是词",
    "AT&T用C++和c#写，3.14%、1.2.3、5%%、a.b-c_d、v1.0rc2、100%纯棉、.5、5.、%、a+b=c&d#e",
    "１２３全角ＡＢＣ，ⅣⅤ①②", "𠀀𪜀我们𠮷野家😀👩‍👩‍👧好",
    "\r\n一\r\r\n\n二\t三\u3000四\u2028五\x85\x00", "\r", "\n\r\n\r", "a", "我", "我a", "a我",
    "龥龦龻鿕鿖㐀一", "他来到了网易杭研大厦", "小明硕士毕业于中国科学院计算所，后在日本京都大学深造",
    "的了是我你他在有和就不人都一",
    "工信处女干事每月经过下属科室都要亲口交代24口交换机等技术性器件的安装工作", "中华人民共和国中华人民共和国",
    "不不不不不不不不不不不", "----", "我--你", "γ射线和α粒子", "李小福是创新办主任也是云计算方面的专家",
]  # fmt: skip


@pytest.mark.parametrize("text", TRICKY)
def test_tricky_texts(text: str) -> None:
    check(text)


def test_awkward_lines_and_the_sample() -> None:
    for text in [*LINES, SAMPLE_TEXT]:
        check(text)


def test_every_character() -> None:
    """Each alone, and each beside a character that begins and ends many words."""
    planes = [*range(0xD800), *range(0xE000, 0x11000), *range(0x20000, 0x20100), 0x10FFFF]
    for pattern in ("{}\n", "大{}大\n", "{}a"):
        text = "".join(pattern.format(chr(c)) for c in planes)
        check(text)


def test_every_word_between_others() -> None:
    draw = random.Random(5)
    drawn = draw.sample(WORDS, 6000)
    check("\n".join(drawn))
    check("".join(drawn[:3000]))
    check("".join(draw.choice(["", "", "，", " ", "的"]) + word[: draw.randint(1, len(word))] for word in drawn))


def test_runs_that_are_longer_than_a_chunk() -> None:
    draw = random.Random(6)
    common = [word for word in WORDS if JIEBA.FREQ[word] > 2000]
    text = "".join(draw.choice(common) for _ in range(8 * jieba_kernel.CHUNK))
    check(text)
    check("龘" * (2 * jieba_kernel.CHUNK + 3) + "\n" + "ab" * jieba_kernel.CHUNK)


def test_a_run_without_end_is_cut_once() -> None:
    """So that memory is bounded; what is before and behind the cut is as always."""
    longest = jieba_kernel.LONGEST_RUN
    run = ("我们的中国a" * (longest // 6 + 500))[: longest + 2000]
    starts = OURS[True].word_starts(f"好，{run}，好")[2:-2].tolist()
    assert starts == [*OURS[True].word_starts(run[:longest]), *OURS[True].word_starts(run[longest:])]


def test_a_hundred_thousand_lines() -> None:
    """With the hidden Markov model, which is what is asked for."""
    lines = anew(100_000, seed=12)
    documents = np.cumsum([0, *map(len, lines)])
    starts = OURS[True].starts(code_points("".join(lines)), documents)
    for text, first in zip(lines, documents.tolist(), strict=False):
        cuts = [*np.flatnonzero(starts[first : first + len(text)]).tolist(), len(text)]
        assert [text[a:b] for a, b in pairwise(cuts)] == JIEBA.lcut(text), text


PIECES = st.one_of(
    st.sampled_from(WORDS),
    st.text(st.sampled_from(CHARACTERS), min_size=1, max_size=6),
    st.sampled_from([*"的了我是不一人大a0B.%+#&_-，。 😀é𠮷３\t", "\r\n", "\n", "3.14%", "T恤", "卡拉OK", "\ud800"]),
    st.text(max_size=4),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(PIECES, max_size=25).map("".join))
def test_same_words_as_jieba(text: str) -> None:
    check(text)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(PIECES, max_size=8).map("".join), max_size=6))
def test_documents_of_a_stream_are_cut_by_themselves(texts: list[str]) -> None:
    documents = np.cumsum([0, *map(len, texts)])
    for kind in ("jieba", "none"):
        segmenter = open_segmenter(SegmentConfig(kind=kind))
        stream = segmenter.starts(code_points("".join(texts)), documents)
        alone = [segmenter.word_starts(text) for text in texts]
        assert stream.dtype == bool and stream.tolist() == [start for starts in alone for start in starts]
        assert Segmenter.starts(segmenter, code_points("".join(texts)), documents).tolist() == stream.tolist()


# ---------------------------------------------------------------- user dictionaries


def write(folder: Path, content: str | bytes) -> str:
    path = folder / "words.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return str(path)


@pytest.fixture
def with_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, dict[bool, Segmenter]]]:
    """From the text of a user dictionary to a jieba and our segmenters that have read it."""
    monkeypatch.setenv("ZHENGLIU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(finalseg, "Force_Split_Words", set())

    def read(content: str) -> tuple[Any, dict[bool, Segmenter]]:
        path = write(tmp_path, content)
        ours = {hmm: open_segmenter(SegmentConfig(hmm=hmm, user_dictionary=path)) for hmm in (True, False)}
        assert finalseg.Force_Split_Words == set(), "jieba's own words to split are left alone"
        return fresh(Path(path)), ours

    return read


def test_user_dictionary(with_words: Callable[..., tuple[Any, dict[bool, Segmenter]]]) -> None:
    """With a frequency, without (jieba suggests one), with a tag, and 0: cut apart, also where the model joins it."""
    content = """\ufeff云计算 5\n李小福 2 nr\n创新办\n台中\neasy_install 3 eng\n好用 300\n韩玉赏鉴 nz\n\n八一双鹿 3 nz
杭研 0\n石墨 0\n一 0\n今天天气 0\n今天 0\n磨损严 0\n磨损严 7\nK2\n一二三四五六七八九十一二三四五六七八九十 9
王小明天 100000 nr\n"""
    texts = [
        "李小福是创新办主任也是云计算方面的专家", "例如我输入一个带“韩玉赏鉴”的标题", "easy_install is great K2",
        "他来到了网易杭研大厦，杭研，在杭研工作", "石墨烯和石墨，今天天气很好，今天天一一一个", "磨损严重，八一双鹿",
        "台中正确应该不会被切开", "一二三四五六七八九十一二三四五六七八九十啊", "王小明天来，一",
    ]  # fmt: skip
    assert "云计算" not in JIEBA.lcut(texts[0]) and "杭研" in JIEBA.lcut(texts[3])
    theirs, ours = with_words(content)
    assert "云计算" in theirs.lcut(texts[0]) and "杭研" not in theirs.lcut(texts[3])
    for text in [*texts, "".join(texts), *TRICKY]:
        check(text, theirs, ours)


def test_words_inside_words_without_end(with_words: Callable[..., tuple[Any, dict[bool, Segmenter]]]) -> None:
    """More longer words begin in a chunk than it has characters; some are cut apart wherever the model joins them."""
    content = "".join(f"{'哈' * n} {n}\n" for n in range(3, 40)) + "".join(f"{'嘿' * n} 0\n" for n in range(2, 9))
    theirs, ours = with_words(content)
    for text in ("哈" * 700, "嘿" * 50, "嘿嘿 " + "嘿嘿嘿嘿", "哈" * 41 + "嘿" * 7 + "哈"):
        check(text, theirs, ours)


def test_user_dictionary_is_part_of_the_description(tmp_path: Path) -> None:
    path = write(tmp_path, "云计算 5\n")
    plain, own = describe_segmenter(SegmentConfig()), jieba_tables.describe_tables(path)
    assert plain == OURS[True].describe() == jieba_tables.describe_tables(None)
    assert plain["name"] == own["name"] == "jieba" and plain["version"] == own["version"] == jieba.__version__
    write(tmp_path, "云计算 6\n")
    assert len({plain["hash"], own["hash"], jieba_tables.describe_tables(path)["hash"]}) == 3


@pytest.mark.parametrize("content", ["好 5\n".encode("gbk"), b"\xff\xfe"])
def test_user_dictionary_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"line 1 of .*words.txt is not in jieba's format"):
        open_segmenter(SegmentConfig(user_dictionary=write(tmp_path, content)))
    with pytest.raises(DataError, match="user_dictionary: cannot read"):
        open_segmenter(SegmentConfig(user_dictionary=str(tmp_path / "none.txt")))


def test_user_dictionary_is_for_jieba_only() -> None:
    with pytest.raises(ConfigError, match="read by kind: jieba only, not by none"):
        validate({"kind": "none", "user_dictionary": "words.txt"}, SegmentConfig)


# ---------------------------------------------------------------- the package


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jieba_tables.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install jieba"):
        open_segmenter(SegmentConfig())


def test_words_added_to_the_default_dictionary_of_jieba_do_not_reach_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jieba.dt, "FREQ", {"我们的": 10**9})
    monkeypatch.setattr(jieba.dt, "initialized", True)
    assert jieba_tables.read_dictionary(None) == (JIEBA.FREQ, JIEBA.total, set())

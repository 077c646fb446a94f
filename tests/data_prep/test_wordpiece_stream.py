"""WordPiece over streams of code points: `tokenizers` decides, for every character and whatever stands beside it."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from data_prep import tokenizer_wordpiece
from data_prep.tokenizer_base import SPECIALS, Tokenizer
from data_prep.tokenizer_wordpiece import WordPieceTokenizer
from data_prep.wordpiece_kernel import build_trie
from tests.data_prep.awkward import AWKWARD, LINES, SAMPLE_LINES, anew

Units = list[tuple[list[int], list[int]]]
KINDS = [(True, None, True), (False, None, True), (True, False, True), (False, True, False)]


def every_seventh_missing() -> list[str]:
    """Most characters by themselves and inside words, so that an id tells which one it was."""
    draw = random.Random(5)
    codes = [c for c in (*range(0x21, 0xD800), *range(0xF900, 0x20000)) if c % 7]
    codes += [*range(0x2F800, 0x2FA20), *draw.sample(range(0x20000, 0x30000), 500)]
    inner = [c for c in codes if not 0x3400 <= c <= 0x9FFF or c % 50 == 1]
    words = ["ab", "##ab", "abc", "##bcd", "x", "##x", "##y", "##", "word", "##s"]
    words += [w for w in ("e\u0301", "##\u0301", "\u0301", "##12", "각") if len(w) > 1]
    pieces = [*SPECIALS.values(), *words, *map(chr, codes), *(f"##{chr(c)}" for c in inner)]
    return list(dict.fromkeys(pieces))


PIECES = every_seventh_missing()
_MADE: dict[tuple[Any, ...], WordPieceTokenizer] = {}


def ours(kind: tuple[Any, ...] = KINDS[0]) -> WordPieceTokenizer:
    if kind not in _MADE:
        _MADE[kind] = WordPieceTokenizer(PIECES, "test", *kind)
    return _MADE[kind]


_ORACLES: dict[tuple[Any, ...], Any] = {}


def oracle(kind: tuple[Any, ...] = KINDS[0]) -> Any:
    """`tokenizers` put together by itself, as `BertWordPieceTokenizer` does but without added tokens."""
    if kind not in _ORACLES:
        vocab = {piece: i for i, piece in enumerate(PIECES)}
        made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
        made.normalizer = tokenizers.normalizers.BertNormalizer(
            lowercase=kind[0], strip_accents=kind[1], handle_chinese_chars=kind[2]
        )
        made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        _ORACLES[kind] = made
    return _ORACLES[kind]


def code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def streamed(tokenizer: Tokenizer, texts: list[str]) -> Units:
    """What ``encode_stream`` finds in ``texts``, places counted from the beginning of each."""
    units = np.append(0, np.cumsum([len(text) for text in texts])).astype(np.int64)
    ids, places, counts = tokenizer.encode_stream(code_points("".join(texts)), units)
    assert (ids.dtype, places.dtype, counts.dtype) == (tokenizer.dtype, np.int64, np.int64)
    assert len(ids) == len(places) == counts.sum()
    cuts = pairwise(np.append(0, np.cumsum(counts)).tolist())
    return [(ids[a:b].tolist(), (places[a:b] - units[i]).tolist()) for i, (a, b) in enumerate(cuts)]


def wanted(texts: list[str], kind: tuple[Any, ...] = KINDS[0]) -> Units:
    found = oracle(kind).encode_batch(texts, add_special_tokens=False)
    return [(e.ids, [start for start, _ in e.offsets]) for e in found]


def check(texts: list[str], kind: tuple[Any, ...] = KINDS[0]) -> None:
    for text, found, right in zip(texts, streamed(ours(kind), texts), wanted(texts, kind), strict=True):
        assert found == right, [hex(ord(c)) for c in text]


@pytest.mark.parametrize("kind", KINDS)
def test_every_character_is_what_the_library_says(kind: tuple[Any, ...]) -> None:
    """Each by itself, between ideographs, after a letter and before one; with an accent in planes 0 and 1."""
    first = kind == KINDS[0]
    low = [*map(chr, (*range(0xD800), *range(0xE000, 0x20000)))][:: 1 if first else 7]
    beside = [f"{c} 你{c}你 x{c} {c}x" for c in low] + [f"x{c}\u0301{c}y" for c in low[:: 5 if first else 1]]
    beside += [f"x{chr(c)}y" for c in range(0x20000, 0x110000, 13 if first else 101)]
    # Lines of some length: it is calls that take time. A space between two of them is all that matters.
    check([" ".join(beside[i : i + 50]) for i in range(0, len(beside), 50)], kind)


@pytest.mark.parametrize("kind", KINDS)
def test_real_and_awkward_lines(kind: tuple[Any, ...]) -> None:
    check(LINES, kind)


def test_a_hundred_thousand_lines() -> None:
    lines = anew(100_000, seed=11)
    for first in range(0, len(lines), 10_000):
        check(lines[first : first + 10_000])


def test_words_that_were_there_before() -> None:
    """Of one token and of many, short and long, of letters beyond a byte, and two that have one key in the memory."""
    alike = ["abcdefghi", "bbcdefghj"]
    kinds = [
        "ab",
        "word",
        "abcdefgh",
        *alike,
        "x" * 101,
        "éé",
        "\u0101b",
        "\u0101bcdefghi",
        "각",
        "ab\u0301\u0316",
        "Ab",
        "7",
    ]
    draw = random.Random(9)
    texts = [" ".join(draw.choice(kinds) for _ in range(400)) for _ in range(20)]
    check([*texts, " ".join(alike * 3), " ".join(alike[::-1] * 3)])
    check(["word " * 50 + "각 " * 400])  # more tokens than characters, when most of them have gone by


ALPHABETS = [
    "ab12Xé你。 \u3000",
    "e\u0301\u0316\u0327\u302e\u1b44각\u1100\u1161İßﬁΣ",
    "你\uf900\U0002f800\U00020000\u2028\u2029\x00\x85\u200b\ufeff\ufe0f\u00a0",
    "[MASK]#_-'≠‑—…·！，😀👩\u200d❤\ufe0f①℃ﷺ㍿ｶﾞ",
]


LINE = st.one_of(*(st.text(st.sampled_from(a), max_size=120) for a in ALPHABETS), st.text(max_size=9))


@settings(deadline=None, max_examples=100)
@example(["x" * 100, "x" * 101, "é" * 100, "각" * 33, "각" * 34, "\u0301" + "x" * 101])
@given(st.lists(LINE, max_size=5))
def test_any_lines(texts: list[str]) -> None:
    for kind in KINDS:
        check(texts, kind)


def test_more_tokens_than_characters() -> None:
    """Hangul becomes three letters, and a buffer of one token a character is too short."""
    check(["각", "각각각", "간" * 30, "x"])
    assert len(streamed(ours(), ["각"])[0][0]) == 3


def test_the_border_of_a_unit_is_the_border_of_a_word() -> None:
    text, tokenizer = "ab你abc\u0301 word\u302e\u0316s12", ours()
    right = wanted([text[:1], text[1:6], text[6:9], "", text[9:]])
    units = np.array([0, 1, 6, 9, 9, len(text)], np.int64)
    ids, places, counts = tokenizer.encode_stream(code_points(text), units)
    assert counts.tolist() == [len(found) for found, _ in right]
    assert ids.tolist() == [i for found, _ in right for i in found]
    begins = np.repeat(units[:-1], counts)
    assert (places - begins).tolist() == [start for _, starts in right for start in starts]
    # what stands outside of the units is not looked at
    ids, places, counts = tokenizer.encode_stream(code_points("\ud800" + text + "ab"), units[:3] + 1)
    assert places.min() == 1 and counts.tolist() == [len(found) for found, _ in right[:2]]


def test_the_kernel_does_what_the_loop_over_texts_does() -> None:
    chars, units = code_points("\n你好 ab\n\nword\nx。\ud800"), np.array([1, 8, 13, 13, 15], np.int64)
    for a, b in zip(Tokenizer.encode_stream(ours(), chars, units), ours().encode_stream(chars, units), strict=True):
        assert a.dtype == b.dtype and a.tolist() == b.tolist()


@pytest.mark.parametrize("bad", ["\ud800", "你\udfff", "ab\udc00"])
def test_surrogates_are_refused(bad: str) -> None:
    chars = np.append(code_points(bad), code_points("ab"))
    units = np.array([0, len(chars)], np.int64)
    for encode in (ours().encode_stream, lambda c, u: Tokenizer.encode_stream(ours(), c, u)):
        with pytest.raises(DataError, match="not valid Unicode"):
            encode(chars, units)
    with pytest.raises(DataError, match=r"U\+110000"):
        ours().encode_stream(np.array([97, 0x110000], np.uint32), np.array([0, 2], np.int64))


@pytest.mark.parametrize("units", [[0, 4], [-1, 2], [2, 1], []])
def test_units_that_are_none_are_refused(units: list[int]) -> None:
    with pytest.raises(ValueError, match="units"):
        ours().encode_stream(code_points("abc"), np.array(units, np.int64))
    with pytest.raises(ValueError, match="uint32"):
        ours().encode_stream(np.zeros(3, np.int64), np.array([0, 3], np.int64))  # type: ignore[arg-type]


def test_nothing() -> None:
    ids, places, counts = ours().encode_stream(np.zeros(0, np.uint32), np.array([0], np.int64))
    assert (len(ids), len(places), len(counts)) == (0, 0, 0)
    assert streamed(ours(), ["", " ", "\n\n"]) == [([], []), ([], []), ([], [])]


def test_words_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer ones than 100 letters are unknown; they do not reach the library as they are."""
    longest: list[int] = []
    tokenizer = ours()
    whole = tokenizer._encoder

    class Watched:
        def encode(self, text: str, **keys: Any) -> Any:
            longest.append(len(text))
            return whole.encode(text, **keys)

    monkeypatch.setattr(tokenizer, "_encoder", Watched())
    n = 300_000
    unknown = tokenizer.special_ids["unk"]
    texts = ["x" * n, "\u302e" * n, "a\u302e" + "\u0301" * n + "b", "你" + "\u0301" * n + "x", "😀" * n]
    found = streamed(tokenizer, texts)
    assert [found[i] for i in (0, 1, 4)] == [([unknown], [0])] * 3
    right, _ = wanted(["a\u302eb"])[0]
    assert found[2][0] == right and set(found[2][1]) <= {0, 1, n + 2}
    assert found[3][1] == [0, n + 1]
    assert longest and max(longest) <= tokenizer_wordpiece._RUN_AT_ONCE


def test_threads_may_share_a_tokenizer() -> None:
    lines = (LINES + AWKWARD) * 3
    chars = code_points("".join(lines))
    units = np.append(0, np.cumsum([len(line) for line in lines])).astype(np.int64)
    shared, own = ours(), WordPieceTokenizer(PIECES, "test")
    right = [a.tolist() for a in ours().encode_stream(chars, units)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(t.encode_stream, chars, units) for t in (shared, own) * 4]
        assert all([a.tolist() for a in job.result()] == right for job in jobs)


def test_a_trie_holds_its_pieces_and_nothing_else() -> None:
    pieces = ["a", "ab", "##a", "##ab", "b", "##", "", "你"]
    trie = build_trie(pieces)
    ends = sorted(int(end) - 1 for _, target in trie.tolist() if (end := target >> 32) > 0)
    assert ends == [0, 1, 2, 3, 4, 5, 7]
    assert (trie[:, 0] >= 0).sum() == 8  # a, ab, ##a, ##ab, b, #, ##, 你
    assert len(trie) >= 16
    check(SAMPLE_LINES[:50])

"""jieba's dictionary and hidden Markov model as flat arrays, for ``jieba_kernel.py``.

Everything is read from the installed package ``jieba`` (0.42): its ``dict.txt``, the tables of ``jieba.finalseg``, and
its own code for user dictionaries, so that words without a frequency get the one that jieba suggests.

jieba looks for words in runs of one alphabet only, the ideographs U+4E00-U+9FD5 and ``a-zA-Z0-9+#&._%-``. Its members
have ids: ASCII its own code, ideographs ``code - 0x4E00 + 128``; 0 is everything else. Other words never match and are
left out.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import re
from collections.abc import Iterable, Mapping
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numba import njit
from numpy.typing import NDArray

from configs.errors import DataError
from data_prep.cache import cached_arrays, code_hash

FIRST_HAN, N_HAN = 0x4E00, 0x9FD5 - 0x4E00 + 1
HAN = 128
"""Id of U+4E00."""
N_IDS = HAN + N_HAN
ASCII = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+#&._%-"
MIN_FLOAT = -3.14e100
"""``jieba.finalseg``'s log probability of what never happens."""
HASH = np.uint64(0x9E3779B97F4A7C15)

# A slot of ``pairs`` and ``front``: 30 bits of key (two ids), 20 of the weight's place in ``weights``, 12 of which
# third characters may follow, and two marks. A slot of ``longer``: 46 bits of key, 16 of what may follow, two marks.
PAIR_KEY, PAIR_WEIGHT, PAIR_NEXT, N_PAIR_NEXT = 30, 30, 50, 12
FRONT_BITS = 15
UNLISTED = 62
"""The first character is no word of its own, so that it stands alone only where no word begins."""
LONG_KEY, LONG_NEXT, N_LONG_NEXT = 46, 46, 16
FORCED = 63
"""The hidden Markov model's word is cut into characters (frequency 0 in a user dictionary)."""

_WORD = re.compile(f"[\u4e00-\u9fd5{re.escape(ASCII)}]+")


class Tables(NamedTuple):
    """What the kernel looks words up in. Weights are log(frequency) - log(total), in jieba's own rounding.

    Hash tables of 2^b slots: a key's home is the upper b bits of ``key * HASH``, and collisions move on by one.
    """

    shifts: NDArray[np.uint64]
    """[5]: 64 - b of ``pairs``, ``front``, ``longer``, ``pair_filter``, ``long_filter``."""
    single: NDArray[np.float64]
    """[N_IDS]: the weight of a character."""
    weights: NDArray[np.float64]
    """Of pairs; the first is -inf: no word, only the beginning of one."""
    pairs: NDArray[np.uint64]
    """All pairs of characters that begin words, frequent ones at home."""
    front: NDArray[np.uint64]
    """The frequent ones among them again, only at home, in a table small enough for the cache of a core."""
    longer: NDArray[np.uint64]
    """[2 slots]: beginnings of three and more characters: a slot's key, and its weight as a float64's bits. The
    key is three ids, or (marked by its highest bit) the slot of all but the last character, and that one's id."""
    pair_filter: NDArray[np.uint64]
    """Bits: 1 for the keys of ``pairs`` and few others."""
    long_filter: NDArray[np.uint64]
    """The same for keys of three ids."""
    emit: NDArray[np.float64]
    """[4 N_HAN]: for each ideograph the states B, M, E, S."""
    start: NDArray[np.float64]
    """[4]."""
    moves: NDArray[np.float64]
    """[8]: E>B S>B, B>M M>M, B>E M>E, E>S S>S."""
    forced: NDArray[np.uint8]
    """[1]: whether any word is marked FORCED."""


def jieba_folder() -> Path:
    """Where the package lies.

    Raises:
        DataError: it is not installed.
    """
    spec = importlib.util.find_spec("jieba")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "The segmenter `jieba` cannot be loaded: `pip install jieba`, or choose another `data.segment.kind` "
            "(`none`: each Chinese character is a word by itself)."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def describe_tables(user_dictionary: str | None) -> dict[str, str]:
    """``name``, ``version`` and ``hash`` (of the dictionary, the model's tables and the user's dictionary).

    Raises:
        DataError: jieba is not installed, or the user's dictionary cannot be read.
    """
    folder = jieba_folder()
    parts = [folder / "dict.txt", *(folder / "finalseg" / f"prob_{part}.py" for part in ("start", "trans", "emit"))]
    try:
        contents = [part.read_bytes() for part in parts]
    except OSError as error:
        raise DataError(
            f"jieba in {folder} is not complete ({error}): `pip install --force-reinstall jieba`."
        ) from None
    if user_dictionary is not None:
        contents.append(_read(user_dictionary))
    digest = xxhash.xxh3_128()
    for content in contents:
        digest.update(len(content).to_bytes(8, "little") + content)
    return {"name": "jieba", "version": importlib.metadata.version("jieba"), "hash": digest.hexdigest()}


def load_tables(user_dictionary: str | None) -> Tables:
    """The tables, from the cache folder or built (some seconds).

    Raises:
        DataError: as ``describe_tables``; or a line of the user's dictionary cannot be understood.
    """
    key = f"{code_hash(__file__)}-{describe_tables(user_dictionary)['hash']}"
    arrays = cached_arrays("jieba", key, lambda: _build(user_dictionary)._asdict())
    return Tables(**{part: arrays[part] for part in Tables._fields})


def _read(user_dictionary: str) -> bytes:
    try:
        return Path(user_dictionary).read_bytes()
    except OSError as error:
        raise DataError(
            f"data.segment.user_dictionary: cannot read {user_dictionary} ({error.strerror}). Give a file in jieba's "
            "format: a word, a frequency or none, a tag or none on each line, in UTF-8."
        ) from None


def read_dictionary(user_dictionary: str | None) -> tuple[dict[str, int], int, set[str]]:
    """jieba's words with their frequencies (0: only the beginning of a word), the total, and words to cut apart.

    Raises:
        DataError: a line of the user's dictionary cannot be understood.
    """
    import jieba
    from jieba import finalseg

    tokenizer = jieba.Tokenizer()
    # Not by its own `initialize`, which trusts whatever lies in the system's folder for temporary files.
    with (jieba_folder() / "dict.txt").open("rb") as file:
        tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(file)
    tokenizer.initialized = True
    if user_dictionary is None:
        return tokenizer.FREQ, tokenizer.total, set()
    kept, finalseg.Force_Split_Words = finalseg.Force_Split_Words, set()  # jieba has one set for all dictionaries
    try:
        for number, line in enumerate(io.BytesIO(_read(user_dictionary)), 1):
            try:
                tokenizer.load_userdict(io.BytesIO(line))
            except (ValueError, AttributeError) as error:
                raise DataError(
                    f"data.segment.user_dictionary: line {number} of {user_dictionary} is not in jieba's format "
                    f"(WORD [FREQUENCY] [tag], UTF-8): {line[:60]!r} ({error})."
                ) from None
        return tokenizer.FREQ, tokenizer.total, finalseg.Force_Split_Words
    finally:
        finalseg.Force_Split_Words = kept


def _build(user_dictionary: str | None) -> Tables:
    frequencies, total, forced = read_dictionary(user_dictionary)
    return Tables(**word_tables(frequencies, total, forced), **model_tables())


def model_tables() -> dict[str, NDArray[Any]]:
    """``emit``, ``start`` and ``moves`` of jieba's hidden Markov model."""
    from jieba.finalseg import emit_P, start_P, trans_P

    emit = np.full((N_HAN, 4), MIN_FLOAT)
    for column, state in enumerate("BMES"):
        for character, probability in emit_P[state].items():
            if FIRST_HAN <= ord(character) < FIRST_HAN + N_HAN:
                emit[ord(character) - FIRST_HAN, column] = probability
    moves = [trans_P[a].get(b, MIN_FLOAT) for a, b in ("EB", "SB", "BM", "MM", "BE", "ME", "ES", "SS")]
    return {"emit": emit.reshape(-1), "start": np.array([start_P[s] for s in "BMES"]), "moves": np.array(moves)}


def word_tables(frequencies: Mapping[str, int], total: int, forced: Iterable[str]) -> dict[str, NDArray[Any]]:
    """The other fields of ``Tables``."""
    words = {word: frequency for word, frequency in frequencies.items() if _WORD.fullmatch(word)}
    apart = {word for word in forced if word in words}
    whole = log(total)
    weight = {f: log(f) - whole if f else -np.inf for f in set(words.values())}  # math.log rounds as jieba does
    single = np.full(N_IDS, log(1) - whole)
    mass: dict[str, int] = {}  # how often a beginning is met, about
    for word, frequency in words.items():
        if len(word) == 1 and frequency:
            single[_id(word)] = weight[frequency]
        for end in range(2, len(word) + 1):
            mass[word[:end]] = mass.get(word[:end], 0) + frequency
    levels: dict[int, list[str]] = {2: [], 3: []}
    for word in sorted(mass, key=lambda word: (-mass[word], word)):
        levels.setdefault(len(word), []).append(word)
    marks = dict.fromkeys(apart, 1 << FORCED)
    for word in mass:
        if not words.get(word[0]):
            marks[word] = marks.get(word, 0) | 1 << UNLISTED
    triples = np.array([_key(word) for word in levels[3]], np.uint64)
    pairs = _pairs(levels, words, weight, marks)
    longer = _longer(levels, triples, [weight[words[w]] for n in sorted(levels)[1:] for w in levels[n]], marks)
    pair_filter, long_filter = _filter(pairs["keys"]), _filter(triples)
    tables = (pairs["pairs"], pairs["front"], longer[::2], pair_filter, long_filter)
    bits = [_bits(len(table)) for table in tables]
    return {
        "shifts": np.array([64 - b for b in bits[:3]] + [58 - b for b in bits[3:]], np.uint64),
        "single": single,
        "weights": pairs["weights"],
        "pairs": pairs["pairs"],
        "front": pairs["front"],
        "longer": longer,
        "pair_filter": pair_filter,
        "long_filter": long_filter,
        "forced": np.array([bool(apart)], np.uint8),
    }


def _id(character: str) -> int:
    code = ord(character)
    return code - FIRST_HAN + HAN if code >= FIRST_HAN else code


def _key(word: str) -> int:
    key = 0
    for character in word:
        key = key << 15 | _id(character)
    return key


def _bits(size: int) -> int:
    return size.bit_length() - 1


def _table(entries: int) -> NDArray[np.uint64]:
    """Empty slots, a power of two, at most 7 of 10 to be filled."""
    return np.zeros(1 << max(4, (entries * 10 // 7).bit_length()), np.uint64)


@njit(cache=True)
def _place(keys: Any, slots: Any, shift: Any) -> Any:
    """Put keys into their slots, in order; int64 [len(keys)], where."""
    at = np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        slot = np.int64((keys[i] * HASH) >> shift)
        while slots[slot] != 0:
            slot = (slot + 1) & (len(slots) - 1)
        slots[slot] = keys[i]
        at[i] = slot
    return at


def _filter(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Eight bits and more a key, one of them set."""
    bits = max(6, (8 * len(keys)).bit_length())
    found = np.zeros(1 << (bits - 6), np.uint64)
    place = (keys * HASH) >> np.uint64(64 - bits)
    np.bitwise_or.at(found, (place >> np.uint64(6)).astype(np.int64), np.uint64(1) << (place & np.uint64(63)))
    return found


def _following(words: list[str], shift: int, n: int) -> dict[str, int]:
    """For each beginning the bits that say which characters may follow."""
    bits: dict[str, int] = {}
    for word in words:
        bits[word[:-1]] = bits.get(word[:-1], 0) | 1 << (shift + _id(word[-1]) % n)
    return bits


def _pairs(
    levels: dict[int, list[str]], words: dict[str, int], weight: dict[int, float], marks: dict[str, int]
) -> dict[str, NDArray[Any]]:
    found = [0, *sorted({words[word] for word in levels[2]} - {0})]
    if len(found) > 1 << (PAIR_NEXT - PAIR_WEIGHT):
        raise DataError("data.segment.user_dictionary: more than a million different frequencies; round them.")
    place = {frequency: i for i, frequency in enumerate(found)}
    after = _following(levels[3], PAIR_NEXT, N_PAIR_NEXT)
    values = [place[words[w]] << PAIR_WEIGHT | after.get(w, 0) | marks.get(w, 0) for w in levels[2]]
    keys, contents = np.array([_key(w) for w in levels[2]], np.uint64), np.array(values, np.uint64)
    pairs, front = _table(len(keys)), np.zeros(1 << FRONT_BITS, np.uint64)
    pairs[_place(keys, pairs, np.uint64(64 - _bits(len(pairs))))] |= contents
    home, first = np.unique(((keys * HASH) >> np.uint64(64 - FRONT_BITS)).astype(np.int64), return_index=True)
    front[home] = (keys | contents)[first]
    weights = np.array([-np.inf if f == 0 else weight[f] for f in found])
    return {"keys": keys, "pairs": pairs, "front": front, "weights": weights}


def _longer(
    levels: dict[int, list[str]], triples: NDArray[np.uint64], weights: list[float], marks: dict[str, int]
) -> NDArray[np.uint64]:
    table = _table(len(weights))
    shift = np.uint64(64 - _bits(len(table)))
    at: list[int] = []
    place: dict[str, int] = {}
    for n in sorted(levels)[1:]:
        if n == 3:
            keys = triples
        else:
            numbers = [1 << (LONG_KEY - 1) | place[word[:-1]] << 15 | _id(word[-1]) for word in levels[n]]
            keys = np.array(numbers, np.uint64)
        found = _place(keys, table, shift).tolist()
        place = dict(zip(levels[n], found, strict=True))
        at += found
    words = [word for n in sorted(levels)[1:] for word in levels[n]]
    after = _following([word for word in words if len(word) > 3], LONG_NEXT, N_LONG_NEXT)
    where = np.array(at, np.int64)
    table[where] |= np.array([after.get(word, 0) | marks.get(word, 0) for word in words], np.uint64)
    longer = np.zeros((len(table), 2), np.uint64)
    longer[:, 0] = table
    longer[where, 1] = np.array(weights, np.float64).view(np.uint64)
    return longer.reshape(-1)

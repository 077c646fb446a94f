"""jieba's dictionary and hidden Markov model as flat arrays, for ``jieba_kernel.py``.

Everything is read from the installed package ``jieba`` (0.42): its ``dict.txt``, the tables of ``jieba.finalseg``, and
its own code for user dictionaries, so that words without a frequency get the one that jieba suggests.

jieba looks for words in runs of one alphabet only, the ideographs U+4E00-U+9FD5 and ``a-zA-Z0-9+#&._%-``. Its members
have ids: ASCII its own code, ideographs from 128 on, the frequent ones first; 0 is everything else. Other words never
match and are left out.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from configs.errors import DataError
from data_prep import jieba_trie
from data_prep.cache import cached_arrays, code_hash
from data_prep.jieba_trie import FIRST_HAN, N_HAN, N_IDS, word_tables

MIN_FLOAT = -3.14e100
"""``jieba.finalseg``'s log probability of what never happens."""


class Tables(NamedTuple):
    """What the kernel looks words up in. Weights are log(frequency) - log(total), in jieba's own rounding."""

    ids: NDArray[np.uint16]
    """[65536]: the id of a code point, 0 outside of the alphabet."""
    check: NDArray[np.uint16]
    """[slots]: the last character of the beginning at a slot of the trie (see ``jieba_trie.py``), or EMPTY."""
    nodes: NDArray[np.uint64]
    """[slots]: what is known of it; those below ``N_IDS`` are the single characters."""
    weights: NDArray[np.float64]
    """Those that occur; the first is -inf: no word, only the beginning of one."""
    single: NDArray[np.float64]
    """[N_IDS]: the weight of a character."""
    emit: NDArray[np.float64]
    """[4 N_IDS]: for each ideograph the states B, M, E, S."""
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
        digest = _digest(tuple((part, part.stat().st_mtime_ns, part.stat().st_size) for part in parts)).copy()
    except OSError as error:
        raise DataError(
            f"jieba in {folder} is not complete ({error}): `pip install --force-reinstall jieba`."
        ) from None
    if user_dictionary is not None:
        _add(digest, _read(user_dictionary))
    return {"name": "jieba", "version": importlib.metadata.version("jieba"), "hash": digest.hexdigest()}


@lru_cache(maxsize=2)
def _digest(states: tuple[tuple[Path, int, int], ...]) -> Any:
    """Of the contents of some files in their ``states`` (time of change, size): each preparation asks several times."""
    digest = xxhash.xxh3_128()
    for part, _, _ in states:
        _add(digest, part.read_bytes())
    return digest


def _add(digest: Any, content: bytes) -> None:
    digest.update(len(content).to_bytes(8, "little"))
    digest.update(content)


def load_tables(user_dictionary: str | None) -> Tables:
    """The tables, from the cache folder or built (some seconds).

    Raises:
        DataError: as ``describe_tables``; or a line of the user's dictionary cannot be understood.
    """
    key = f"{code_hash(__file__, jieba_trie.__file__)}-{describe_tables(user_dictionary)['hash']}"
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
    words = word_tables(frequencies, total, forced)
    return Tables(**words, **model_tables(words["ids"]))


def model_tables(ids: NDArray[np.uint16]) -> dict[str, NDArray[Any]]:
    """``emit``, ``start`` and ``moves`` of jieba's hidden Markov model, for characters of these ``ids``."""
    from jieba.finalseg import emit_P, start_P, trans_P

    emit = np.full((N_IDS, 4), MIN_FLOAT)
    for column, state in enumerate("BMES"):
        for character, probability in emit_P[state].items():
            if FIRST_HAN <= ord(character) < FIRST_HAN + N_HAN:
                emit[ids[ord(character)], column] = probability
    moves = [trans_P[a].get(b, MIN_FLOAT) for a, b in ("EB", "SB", "BM", "MM", "BE", "ME", "ES", "SS")]
    return {"emit": emit.reshape(-1), "start": np.array([start_P[s] for s in "BMES"]), "moves": np.array(moves)}

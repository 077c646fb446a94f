"""Words that stand in for selected words (MacBERT, arXiv 2004.13922): near in word vectors, and of as many tokens.

The table is made once from the vector file, before the shards are, and is stored with them: masks stay a pure function
of (seed, view, sequence id). A word is known by the token ids that it has when it stands alone; ids that several
words share (by lower case, say) are the first one's. The paper takes its similar words from the package Synonyms and
does not say how near they are; the bound on the cosine is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numba import njit
from numpy.typing import NDArray

from configs.errors import DataError
from data_prep.atomic import aside_of, discard, put_into_place, sync_all, write_json
from data_prep.config import SimilarConfig
from data_prep.mapped import offsets_of
from data_prep.mask_kernels import hash_of
from data_prep.shards import read_json, write_array
from data_prep.tokenizer_base import Tokenizer
from data_prep.vectors import BLOCK, nearest, read_vectors

Ints = NDArray[np.int64]
FOLDER = "similar"


@dataclass(frozen=True)
class SimilarWords:
    """``starts``: int64 [w + 1], where each word begins in ``ids``: int64 [t], tokens; ``near``: int32 [w, k], numbers
    of similar words of as many tokens, nearest first, -1 behind the last."""

    starts: Ints
    ids: Ints
    near: NDArray[np.int32]

    @cached_property
    def tables(self) -> tuple[NDArray[np.int32], Ints, Ints, NDArray[np.int32]]:
        """For mask_tables.Rule: an open-addressing hash table in front of the three arrays."""
        words = len(self.starts) - 1
        slots = np.full(1 << (2 * words).bit_length() if words > 0 else 0, -1, np.int32)
        if words > 0:
            _fill(slots, self.starts, self.ids)
        return slots, self.starts, self.ids, self.near


NO_WORDS = SimilarWords(np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros((0, 0), np.int32))


@njit(cache=True, nogil=True)
def _fill(slots: Any, starts: Any, ids: Any) -> None:
    last = np.uint64(len(slots) - 1)
    for word in range(len(starts) - 1):
        slot = hash_of(ids, starts[word], starts[word + 1] - starts[word]) & last
        while slots[slot] >= 0:
            slot = (slot + np.uint64(1)) & last
        slots[slot] = word


def find_similar(config: SimilarConfig, tokenizer: Tokenizer) -> SimilarWords:
    """The table of the words in ``config.vectors``.

    Raises:
        DataError: the file is unusable, or no word in it is similar to another.
    """
    vectors = read_vectors(config.vectors, config.words)
    known: dict[tuple[int, ...], int] = {}
    specials = set(tokenizer.special_ids.values())
    for row, (ids, _) in enumerate(tokenizer.encode(vectors.words)):
        word = tuple(ids.tolist())
        if word and tokenizer.decode_token(word[0]) == "\u2581":  # SentencePiece's mark of a word that begins a text
            word = word[1:]
        if word and specials.isdisjoint(word):
            known.setdefault(word, row)
    groups: dict[int, list[int]] = {}
    for number, word in enumerate(known):
        groups.setdefault(len(word), []).append(number)
    rows = np.array(list(known.values()), np.int64)
    near = np.full((len(known), config.neighbours), -1, np.int32)
    for members in groups.values():
        group = np.array(members, np.int64)
        found = _near(vectors.units[rows[group]], config)
        near[group, : found.shape[1]] = np.where(found >= 0, group[found], -1)
    if not (near >= 0).any():
        raise DataError(
            f"No word in {config.vectors} has another of as many tokens with a cosine of {config.min_cosine:g} or "
            "more. Check that the file is of the corpus's language, lower masks.similar.min_cosine, or remove "
            "masks.similar."
        )
    flat = np.array([token for word in known for token in word], np.int64)
    return SimilarWords(offsets_of(np.array([len(word) for word in known], np.int64)), flat, near)


def _near(units: NDArray[np.float32], config: SimilarConfig) -> NDArray[np.int64]:
    """int64 [n, k]: rows of ``units`` near to each, -1 for none."""
    k = min(config.neighbours, len(units) - 1)
    out = np.empty((len(units), k), np.int64)
    step = max(1, BLOCK // len(units))
    for first in range(0, len(units), step):
        block = np.arange(first, min(first + step, len(units)))
        found, cosines = nearest(units, block, k)
        out[block] = np.where(cosines >= config.min_cosine, found, -1)
    return out


def make_similar(config: SimilarConfig | None, tokenizer: Tokenizer, folder: Path) -> str | None:
    """Make the table in ``folder/similar`` unless it is there; returns a hash of its content, None without one.

    Under its final name the table is whole; several processes may make it at once.

    Raises:
        DataError: see :func:`find_similar`.
        OSError: the folder cannot be written.
    """
    target = folder / FOLDER
    if config is None:
        discard(target)
        return None
    made_from = {"settings": config.model_dump(), "tokenizer": tokenizer.hash, "vectors": _state(config.vectors)}

    def sound(there: Path) -> bool:
        note = read_json(there / "made-from.json")
        return note.get("made_from") == made_from and note.get("content") == content_of(there)

    if not sound(target):
        aside, words = aside_of(target), find_similar(config, tokenizer)
        for name, array in (("starts", words.starts), ("ids", words.ids), ("near", words.near)):
            write_array(aside / f"{name}.bin", array)
        write_json(aside / "made-from.json", {"made_from": made_from, "content": content_of(aside)})
        sync_all(aside)
        put_into_place(aside, target, sound)
    return str(read_json(target / "made-from.json")["content"])


def _state(path: str) -> list[int]:
    """Size and time of change: a file of vectors has gigabytes."""
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise DataError(
            f"There is no file of word vectors {path} ({error.strerror}); correct masks.similar.vectors."
        ) from None
    return [stat.st_size, stat.st_mtime_ns]


def content_of(target: Path) -> str:
    digest = xxhash.xxh3_128()
    for name in ("starts", "ids", "near"):
        path = target / f"{name}.bin"
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def open_similar(folder: Path) -> SimilarWords:
    """The table of a prepared folder.

    Raises:
        DataError: it is missing or damaged.
    """
    target = folder / FOLDER
    if read_json(target / "made-from.json").get("content") != content_of(target):
        raise DataError(f"The table of similar words {target} is missing or damaged. Run `distill data verify`.")
    starts, ids = (np.fromfile(target / f"{name}.bin", "<i8") for name in ("starts", "ids"))
    near = np.fromfile(target / "near.bin", "<i4")
    return SimilarWords(starts, ids, near.reshape(len(starts) - 1, -1))

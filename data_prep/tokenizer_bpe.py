"""Byte-level BPE, as of RoBERTa: GPT-2's pre-tokenizer, 256 bytes as the alphabet, no normalisation.

Source: Radford et al. 2019 (GPT-2) for the scheme, Liu et al. 2019 (RoBERTa, arXiv 1907.11692) for the special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from configs.errors import DataError
from data_prep.tokenizer_base import EncodedStream, Tokenizer, library, not_unicode, read_bytes, read_json

BPE_SPECIALS = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
_NAMED = {
    "pad": ("pad_token",),
    "unk": ("unk_token",),
    "cls": ("cls_token", "bos_token"),
    "sep": ("sep_token", "eos_token"),
    "mask": ("mask_token",),
}
"""Keys of special_tokens_map.json and tokenizer_config.json."""

Merges = list[tuple[str, str]]


class BpeTokenizer(Tokenizer):
    """Ids equal to those of `tokenizers`; starts are counted in the bytes that the pieces stand for.

    Every character of a piece is one byte of the text, so the lengths of the pieces say where each begins:

    - a piece with a space in front ("Ġwoord") begins at the word's first character, and so does a space by itself;
    - a piece that begins inside a character (one of several bytes) begins where the piece before it does, which makes
      it a part of the same word, also when that one holds the end of the character before.

    A byte that the vocabulary lacks is <unk>. (RobBERT's lacks some that stand in no text. `transformers` drops such
    bytes without a trace.)
    """

    kind = "bpe"

    def __init__(
        self,
        pieces: Sequence[str],
        merges: Merges,
        specials: Mapping[str, str],
        where: str,
        add_prefix_space: bool = False,
    ) -> None:
        """Check the vocabulary and the merges.

        Args:
            merges: pairs of pieces, the first to be merged first.
            add_prefix_space: a sentence that begins without a space is encoded as if it had one.

        Raises:
            DataError: the vocabulary cannot be used (see :class:`Tokenizer`), or does not go with the merges.
        """
        settings = {
            "add_prefix_space": add_prefix_space,
            "merges": [f"{left} {right}" for left, right in merges],
        }
        super().__init__(pieces, dict(specials), settings, where)
        self.merges = merges
        alphabet = set(library().pre_tokenizers.ByteLevel.alphabet())
        _check_bytes(pieces, merges, alphabet, where)
        try:
            self._encoder = self._hugging_face()
        except Exception as error:  # `tokenizers` raises plain ones
            raise DataError(f"{where}: merges and vocabulary do not belong together ({error}). {_AGAIN}") from None
        self._lengths = np.fromiter(map(len, self.pieces), np.int64, len(self.pieces))
        self._lengths[self.special_ids["unk"]] = 1

    def __reduce__(self) -> tuple[Any, ...]:
        prefix = self.settings["add_prefix_space"]
        return (type(self), (self.pieces, self.merges, self.specials, "the vocabulary", prefix))

    def _hugging_face(self) -> Any:
        """The `tokenizers` pipeline without added tokens, which would be found inside the text."""
        tokenizers = library()
        encoder = tokenizers.Tokenizer(
            tokenizers.models.BPE(
                {piece: position for position, piece in enumerate(self.pieces)},
                self.merges,
                unk_token=self.specials["unk"],
                fuse_unk=False,
            )
        )
        encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(self.settings["add_prefix_space"])
        encoder.decoder = tokenizers.decoders.ByteLevel()
        return encoder

    def _encode_all(self, texts: Sequence[str]) -> EncodedStream:
        try:
            text = "".join(texts).encode("utf-8")
        except UnicodeEncodeError as error:
            raise not_unicode(error) from None
        found = [e.ids for e in self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)]
        counts = np.fromiter(map(len, found), np.int64, len(found))
        ids = np.fromiter(chain.from_iterable(found), np.int64, int(counts.sum()))
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        return ids.astype(self.dtype), self._starts(np.frombuffer(text, np.uint8), ids, counts, lengths), counts

    def _starts(
        self,
        text: npt.NDArray[np.uint8],
        ids: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.int64]:
        """int64 [N]: the character in its sentence where each token begins.

        Args:
            text: the bytes of all sentences, one after another.
            ids, counts: int64 [N] tokens, and how many of them each of the sentences has.
            lengths: characters of each sentence.
        """
        leads = np.append((text & 0xC0) != 0x80, True)
        bytes_at = np.flatnonzero(leads)  # of each character, and the end
        edges = np.append(0, np.cumsum(lengths))  # of the sentences, in characters
        sizes = np.diff(bytes_at[edges])
        ends = np.cumsum(self._lengths[ids])
        tokens = np.append(0, np.cumsum(counts))
        before = np.append(0, ends)[tokens]
        # A space put in front is one byte more than the text has; it begins where the text does.
        extra = np.diff(before) - sizes
        inner = ends - self._lengths[ids] - np.repeat(before[:-1] + extra, counts)
        places = np.maximum(inner, 0) + np.repeat(bytes_at[edges[:-1]], counts)

        spaces = text[bytes_at[:-1]] == ord(" ")
        words = np.where(spaces, len(spaces), np.arange(len(spaces)))
        words = np.minimum.accumulate(words[::-1])[::-1]  # the first character from here on that is not a space
        own = np.cumsum(leads)[places] - 1
        starts = np.append(words, len(spaces))[own]
        starts = np.where(starts < np.repeat(edges[1:], counts), starts, own)
        whole = np.maximum.accumulate(np.where(leads[places], np.arange(len(places)), 0))
        found: npt.NDArray[np.int64] = starts[whole] - np.repeat(edges[:-1], counts)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` with its spaces; bytes that are no character by themselves become U+FFFD."""
        return str(self._encoder.decode(list(ids), skip_special_tokens=False))

    def save(self, folder: Path) -> None:
        vocab = {piece: position for position, piece in enumerate(self.pieces)}
        files = {
            "vocab.json": json.dumps(vocab, ensure_ascii=False).encode("utf-8"),
            "merges.txt": "".join(f"{line}\n" for line in ["#version: 0.2", *self.settings["merges"]]).encode("utf-8"),
        }
        config = {
            "tokenizer_class": "RobertaTokenizer",
            "add_prefix_space": self.settings["add_prefix_space"],
            "bos_token": self.specials["cls"],
            "eos_token": self.specials["sep"],
        }
        self._write(folder, files, self._hugging_face(), config)

    def _special_token(self, part: str) -> Any:
        # "is <mask>" stands for "is goed", whose last piece is "Ġgoed": the mask takes the space in front of it.
        return library().AddedToken(self.specials[part], special=True, normalized=False, lstrip=part == "mask")

    def _post_processor(self) -> Any:
        """<s> A </s> and <s> A </s> </s> B </s>, all of type 0."""
        sep, cls = ((self.specials[part], self.special_ids[part]) for part in ("sep", "cls"))
        prefix = self.settings["add_prefix_space"]
        return library().processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=prefix)


_AGAIN = "Fetch the files of the tokenizer again."


def open_bpe(path: Path) -> BpeTokenizer:
    """See :func:`data_prep.tokenizer.open_tokenizer`."""
    if not path.is_dir():
        return _from_json(path, {}, dict(BPE_SPECIALS))
    stated: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (path / name).is_file():
            stated |= {key: value for key, value in read_json(path / name).items() if value is not None}
    own = {"add_prefix_space": stated["add_prefix_space"]} if isinstance(stated.get("add_prefix_space"), bool) else {}
    if (path / "tokenizer.json").is_file():
        return _from_json(path / "tokenizer.json", own, _specials(stated))
    absent = [name for name in ("vocab.json", "merges.txt") if not (path / name).is_file()]
    if not absent:
        return _from_pair(path, own, _specials(stated))
    hint = ""
    if (path / "vocab.txt").is_file():
        hint = " It holds a vocab.txt: set `data.tokenizer.kind=wordpiece`?"
    elif any(path.glob("*.model")):
        hint = " It holds a SentencePiece model: set `data.tokenizer.kind=sentencepiece`?"
    raise DataError(
        f"The folder {path} holds no tokenizer.json and no {' and no '.join(absent)}: correct `data.tokenizer.vocab`."
        + hint
    )


def _specials(stated: dict[str, Any]) -> dict[str, str]:
    """The entries that play the parts: as the files say, else by RoBERTa's names."""
    contents = {key: value.get("content") if isinstance(value, dict) else value for key, value in stated.items()}
    named = {key: content for key, content in contents.items() if isinstance(content, str)}
    return {
        part: next((named[key] for key in keys if key in named), BPE_SPECIALS[part]) for part, keys in _NAMED.items()
    }


def _from_json(path: Path, own: dict[str, Any], specials: dict[str, str]) -> BpeTokenizer:
    """The tokenizer of a ``tokenizer.json``; ``own``: settings that hold instead of its own."""
    if path.name in ("vocab.json", "merges.txt"):
        raise DataError(f"{path} is one of two files; give their folder as `data.tokenizer.vocab`.")
    tree = read_json(path)
    model, splitter = tree.get("model"), tree.get("pre_tokenizer")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or "merges" not in model:
        kind = model.get("type") if isinstance(model, dict) else None
        raise DataError(
            f"{path} holds a tokenizer of type {kind}, not byte-level BPE: set `data.tokenizer.kind` to its kind, or "
            "correct `data.tokenizer.vocab`."
        )
    splitter = splitter if isinstance(splitter, dict) else {}
    problem = ""
    if splitter.get("type") != "ByteLevel" or not splitter.get("use_regex", True):
        problem = "does not cut text as RoBERTa does (its pre_tokenizer is not a plain ByteLevel)"
    elif tree.get("normalizer") is not None:
        problem = "normalises text"
    elif model.get("dropout"):
        problem = "merges at random (dropout)"
    elif model.get("ignore_merges"):
        problem = "takes whole words before it merges (ignore_merges)"
    elif model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        problem = "marks pieces of words by a prefix or suffix"
    if problem:
        raise DataError(f"{path} {problem}, which preparation does not support. Give a tokenizer of the RoBERTa kind.")
    try:
        ids = dict(model["vocab"])
        for added in tree.get("added_tokens") or []:
            ids.setdefault(added["content"], added["id"])
        merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path} is not a complete tokenizer.json. {_AGAIN}") from None
    settings = {"add_prefix_space": bool(splitter.get("add_prefix_space", True)), **own}
    return BpeTokenizer(_in_order(ids, path), _pairs(merges, path), specials, str(path), **settings)


def _from_pair(folder: Path, own: dict[str, Any], specials: dict[str, str]) -> BpeTokenizer:
    """The tokenizer of ``vocab.json`` and ``merges.txt`` (and ``added_tokens.json``)."""
    path = folder / "merges.txt"
    ids = read_json(folder / "vocab.json")
    if (folder / "added_tokens.json").is_file():
        ids = read_json(folder / "added_tokens.json") | ids
    try:
        lines = read_bytes(path).decode("utf-8").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text. {_AGAIN}") from None
    if lines[0].startswith("#version"):
        lines = lines[1:]
    merges = [tuple(line.split(" ")) for line in lines if line]
    return BpeTokenizer(_in_order(ids, folder / "vocab.json"), _pairs(merges, path), specials, str(folder), **own)


def _in_order(ids: dict[str, Any], path: Path) -> list[str]:
    """The entries in the order of their ids."""
    numbers = list(ids.values())
    if any(type(number) is not int for number in numbers) or sorted(numbers) != list(range(len(numbers))):
        raise DataError(f"{path}: the ids of the entries are not 0 to {len(ids) - 1}, each once. {_AGAIN}")
    return sorted(ids, key=ids.__getitem__)


def _pairs(merges: Sequence[tuple[Any, ...]], path: Path) -> Merges:
    for place, merge in enumerate(merges):
        if len(merge) != 2 or not all(isinstance(piece, str) and piece for piece in merge):
            raise DataError(f"{path}: merge {place + 1} is {merge!r}, but a merge is of two pieces. {_AGAIN}")
    return [(left, right) for left, right in merges]


def _check_bytes(pieces: Sequence[str], merges: Merges, alphabet: set[str], where: str) -> None:
    """Refuse what has no bytes as its letters.

    Raises:
        DataError: most of the bytes are missing, or something else is merged.
    """
    # Entries that stood in no text are often left out, those of some bytes among them, but never of so many.
    bytes_known = len(alphabet.intersection(pieces))
    strange = next((piece for merge in merges for piece in merge if not alphabet.issuperset(piece)), None)
    if bytes_known < 128 or strange is not None:
        found = f"it merges {strange!r}" if strange is not None else f"it has {bytes_known} of the 256 bytes as entries"
        raise DataError(
            f"{where} is not byte-level BPE: {found}. Give the tokenizer of a RoBERTa-like model, or another "
            "`data.tokenizer.kind`."
        )

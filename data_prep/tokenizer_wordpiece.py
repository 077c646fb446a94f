"""BERT's WordPiece: ids equal to those of `tokenizers`, at the speed of a table lookup."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from configs.errors import DataError
from data_prep.config import TokenizerConfig
from data_prep.tokenizer_base import (
    SPECIALS,
    EncodedStream,
    Ints,
    Tokenizer,
    check_units,
    library,
    not_unicode,
    read_bytes,
    read_json,
)
from data_prep.wordpiece_kernel import DONE, FULL, LONGEST, build_trie, scan
from data_prep.wordpiece_letters import SINGLE, SPACE, normalizer, read_letters

_RUN_AT_ONCE = 1 << 16


class WordPieceTokenizer(Tokenizer):
    """A table for ideographs and punctuation, a trie for words.

    BERT's normaliser and pre-tokenizer look at one character at a time (:mod:`data_prep.wordpiece_letters`), so a text
    is cut into words by a table lookup for each character, and each word into the longest pieces by a walk through the
    vocabulary, all in one pass of a kernel (:mod:`data_prep.wordpiece_kernel`). Words with combining marks that
    `tokenizers` would put into another order go through it as they are.

    Nothing but constants is shared by calls, so threads may share an instance.
    """

    kind = "wordpiece"

    def __init__(
        self,
        pieces: Sequence[str],
        where: str,
        lowercase: bool = True,
        strip_accents: bool | None = None,
        chinese: bool = True,
    ) -> None:
        settings = {"lowercase": lowercase, "strip_accents": strip_accents, "chinese": chinese}
        super().__init__(pieces, SPECIALS, settings, where)
        self.lowercase = lowercase
        self._letters = read_letters(lowercase, strip_accents, chinese)
        # No text becomes these two ids, so they can stand for what is not a token.
        self._space, self._run = (self.dtype.type(self.special_ids[part]) for part in ("cls", "sep"))
        self._unknown = self.dtype.type(self.special_ids["unk"])
        self.skips_breaks = bool(self._letters.kinds[ord("\n")] == SPACE)

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.pieces, "the vocabulary", *self.settings.values())
        return (type(self), arguments)

    # What only encoding needs is made with the first text: a tokenizer is also opened for its hash, or to decode.

    @cached_property
    def _encoder(self) -> Any:
        return self._hugging_face()

    @cached_property
    def _trie(self) -> npt.NDArray[np.int64]:
        return build_trie(self.pieces)

    def _hugging_face(self) -> Any:
        """The `tokenizers` pipeline without added tokens, which would be found inside the text."""
        tokenizers = library()
        vocab = {piece: position for position, piece in enumerate(self.pieces)}
        encoder = tokenizers.Tokenizer(
            tokenizers.models.WordPiece(vocab, unk_token=SPECIALS["unk"], max_input_chars_per_word=LONGEST)
        )
        encoder.normalizer = normalizer(**self.settings)
        encoder.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        encoder.decoder = tokenizers.decoders.WordPiece(prefix="##")
        return encoder

    @cached_property
    def _table(self) -> npt.NDArray[Any]:
        """``dtype`` [0x110000]: the id of a character that is a token by itself, else ``_space`` or ``_run``."""
        ids = np.full(0x110000, self._unknown)
        for position, piece in enumerate(self.pieces):
            if len(piece) == 1:
                ids[ord(piece)] = position
        kinds = self._letters.kinds
        table = np.full(0x110000, self._run)
        table[kinds == SPACE] = self._space
        single = np.flatnonzero(kinds == SINGLE)
        table[single] = ids[self._letters.letters[single]]
        return table

    def _encode_all(self, texts: Sequence[str]) -> EncodedStream:
        try:
            chars = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
        except UnicodeEncodeError as error:
            raise not_unicode(error) from None
        units = np.append(0, np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts))))
        ids, places, counts = self.encode_stream(chars, units)
        return ids, places - np.repeat(units[:-1], counts), counts

    def encode_stream(self, chars: npt.NDArray[np.uint32], units: Ints) -> EncodedStream:
        check_units(chars, units)
        room = int(units[-1] - units[0])
        counts = np.empty(len(units) - 1, np.int64)
        while True:
            ids, places = np.empty(room, self.dtype), np.empty(room, np.int64)
            facts = (self._space, self._run, self._unknown, self._letters.letters, self._letters.more, self._trie)
            tokens, opened, state = scan(chars, units, self._table, *facts, ids, places, counts)
            if state != FULL:
                break
            room = 2 * room + 16
        if state != DONE:
            raise not_unicode(f"it holds U+{int(chars[state]):04X}, which is no character")
        ids, places = ids[:tokens], places[:tokens]
        return self._close(chars, units, ids, places, counts) if opened else (ids, places, counts)

    def _close(
        self, chars: npt.NDArray[np.uint32], units: Ints, ids: npt.NDArray[Any], places: Ints, counts: Ints
    ) -> EncodedStream:
        """Replace the words that the kernel left open (``_run``) by what `tokenizers` makes of them."""
        opened = np.flatnonzero(ids == self._run)
        unit_of = np.searchsorted(np.cumsum(counts), opened, side="right")
        found = [
            self._one_word(chars, int(places[token]), int(units[unit + 1]))
            for token, unit in zip(opened, unit_of, strict=True)
        ]
        sizes = np.fromiter((len(pieces) for pieces, _ in found), np.int64, len(found))
        repeats = np.ones(len(ids), np.int64)
        repeats[opened] = sizes
        ids, places = np.repeat(ids, repeats), np.repeat(places, repeats)
        begins = opened + np.cumsum(sizes - 1) - (sizes - 1)
        for begin, size, (word_ids, word_places) in zip(begins, sizes, found, strict=True):
            ids[begin : begin + size] = word_ids
            places[begin : begin + size] = word_places
        np.add.at(counts, unit_of, sizes - 1)
        return ids, places, counts

    def _one_word(self, chars: npt.NDArray[np.uint32], begin: int, limit: int) -> tuple[list[int], Ints]:
        """Ids and places of the word that begins at ``begin``."""
        at, end = begin, begin
        while end == at and end < limit:  # by and by: most words are short, and some are not
            at = min(limit, 2 * at - begin + 64)
            stops = np.flatnonzero(self._table[chars[end:at]] != self._run)
            end = end + int(stops[0]) if len(stops) else at
        kept = np.arange(begin, end)
        if len(kept) > _RUN_AT_ONCE:  # unknown if more than 100 letters are left, whatever they are
            kept = kept[self._letters.letters[chars[kept]] != 0][:_RUN_AT_ONCE]
        encoding = self._encoder.encode(chars[kept].tobytes().decode("utf-32-le"), add_special_tokens=False)
        return encoding.ids, kept[[start for start, _ in encoding.offsets]]

    def save(self, folder: Path) -> None:
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.settings["lowercase"],
            "strip_accents": self.settings["strip_accents"],
            "tokenize_chinese_chars": self.settings["chinese"],
        }
        content = "".join(f"{piece}\n" for piece in self.pieces).encode("utf-8")
        self._write(folder, {"vocab.txt": content}, self._hugging_face(), config)


def open_wordpiece(path: Path, config: TokenizerConfig) -> WordPieceTokenizer:
    """See :func:`data_prep.tokenizer.open_tokenizer`."""
    settings: dict[str, Any] = {"lowercase": config.lowercase}
    if path.is_dir():
        folder = path
        path = folder / "vocab.txt"
        if not path.is_file():
            path = folder / "tokenizer.json"
        if not path.is_file():
            raise DataError(
                f"The folder {folder} holds neither vocab.txt nor tokenizer.json: correct "
                "`data.tokenizer.vocab`"
                + (", or set `data.tokenizer.kind=sentencepiece`." if any(folder.glob("*.model")) else ".")
            )
        if path.name == "tokenizer.json":
            pieces, stated = _read_json(path)
            settings |= stated
        else:
            pieces = _read_lines(path)
        settings |= _stated(folder / "tokenizer_config.json")
    elif path.suffix == ".json":
        pieces, stated = _read_json(path)
        settings |= stated
    else:
        pieces = _read_lines(path)
    return WordPieceTokenizer(pieces, str(path), **settings)


def _read_lines(path: Path) -> list[str]:
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); a WordPiece vocabulary is "
            "a text file with one entry a line. For a SentencePiece model set "
            "`data.tokenizer.kind=sentencepiece`."
        ) from None
    # Only these end a line: str.splitlines would also cut at U+2028 and U+0085, which may be entries.
    pieces = text.replace("\r\n", "\n").split("\n")
    while pieces and not pieces[-1]:
        pieces.pop()
    return pieces


def _read_json(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Entries and settings of a ``tokenizer.json`` with a WordPiece model."""
    tree = read_json(path)
    model = tree.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(vocab, dict) or model.get("type", "WordPiece") != "WordPiece":
        kind = model.get("type") if isinstance(model, dict) else None
        raise DataError(
            f"{path} holds a tokenizer of type {kind}; only BERT's WordPiece can be read "
            "from a tokenizer.json. Give a vocab.txt, or a spiece.model with `data.tokenizer.kind=sentencepiece`."
        )
    if model.get("continuing_subword_prefix", "##") != "##":
        raise DataError(f"{path}: word pieces are marked with {model['continuing_subword_prefix']!r}, not with `##`.")
    ids = dict(vocab)
    try:
        for added in tree.get("added_tokens") or []:
            ids.setdefault(added["content"], added["id"])
        pieces = sorted(ids, key=lambda piece: int(ids[piece]))
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path} is not a complete tokenizer.json. Fetch or write it again.") from None
    if [ids[piece] for piece in pieces] != list(range(len(pieces))):
        raise DataError(f"{path}: the ids of the entries are not 0 to {len(pieces) - 1}, each once.")
    normalizer = tree.get("normalizer")
    if not isinstance(normalizer, dict) or normalizer.get("type") != "BertNormalizer":
        return pieces, {}
    return pieces, {
        "lowercase": bool(normalizer.get("lowercase", True)),
        "strip_accents": normalizer.get("strip_accents"),
        "chinese": bool(normalizer.get("handle_chinese_chars", True)),
    }


def _stated(path: Path) -> dict[str, Any]:
    """What a folder's tokenizer_config.json says about the treatment of text."""
    if not path.is_file():
        return {}
    tree = read_json(path)
    keys = {
        "do_lower_case": "lowercase",
        "strip_accents": "strip_accents",
        "tokenize_chinese_chars": "chinese",
    }
    return {ours: tree[key] for key, ours in keys.items() if isinstance(tree.get(key), bool)}

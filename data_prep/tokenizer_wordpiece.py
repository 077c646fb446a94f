"""BERT's WordPiece: ids equal to those of `tokenizers`, found by table for what Chinese text mostly is."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from configs.errors import DataError
from data_prep.config import TokenizerConfig
from data_prep.tokenizer_base import SPECIALS, Encoded, Tokenizer, library, read_bytes, read_json

# As in BERT's `_is_chinese_char`: these are tokens by themselves.
HAN = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
_PUNCTUATION = ((0x2010, 0x2027), (0x3001, 0x301F), (0xFF01, 0xFF65))
_SPACE, _RUN = -1, -2
_MEMO = 1 << 18
_MEMO_WORD = 64

Pieces = tuple[tuple[int, ...], tuple[int, ...]]


class WordPieceTokenizer(Tokenizer):
    """Table for ideographs and punctuation, a memo for other words.

    BERT's normaliser and pre-tokenizer look at one character at a time (accents belong to the run before
    them), so a text may be cut wherever a space, an ideograph or a punctuation mark stands. Those
    characters are looked up; each run between them goes through `tokenizers` as it is, once.
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
        self._encoder = self._hugging_face()
        self._table = self._single_characters()
        self._memo: dict[str, Pieces] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.pieces, "the vocabulary", *self.settings.values())
        return (type(self), arguments)

    def _hugging_face(self) -> Any:
        """The `tokenizers` pipeline without added tokens, which would be found inside the text."""
        tokenizers = library()
        vocab = {piece: position for position, piece in enumerate(self.pieces)}
        encoder = tokenizers.Tokenizer(
            tokenizers.models.WordPiece(vocab, unk_token=SPECIALS["unk"], max_input_chars_per_word=100)
        )
        encoder.normalizer = tokenizers.normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=self.settings["chinese"],
            strip_accents=self.settings["strip_accents"],
            lowercase=self.settings["lowercase"],
        )
        encoder.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        encoder.decoder = tokenizers.decoders.WordPiece(prefix="##")
        return encoder

    def _single_characters(self) -> npt.NDArray[np.int32]:
        """int32 [0x110000]: the id of a character that is always a token by itself, else _SPACE or _RUN."""
        table = np.full(0x110000, _RUN, dtype=np.int32)
        table[[ord(c) for c in " \t\n\r\u00a0\u3000"]] = _SPACE
        single = [ord(c) for c in string.punctuation]
        single += [c for a, b in _PUNCTUATION for c in range(a, b + 1) if unicodedata.category(chr(c))[0] == "P"]
        if self.settings["chinese"]:
            for first, last in HAN:
                table[first : last + 1] = self.special_ids["unk"]
            # Those with a canonical decomposition are left to the pipeline, which may apply it.
            compatible = [*range(0xF900, 0xFB00), *range(0x2F800, 0x2FA20)]
            table[compatible] = _RUN
        table[single] = self.special_ids["unk"]
        for position, piece in enumerate(self.pieces):
            if len(piece) == 1 and table[ord(piece)] >= 0:
                table[ord(piece)] = position
        return table

    def encode(self, sentences: Sequence[str]) -> list[Encoded]:
        joined = "\n".join(sentences)
        try:
            characters = np.frombuffer(joined.encode("utf-32-le"), dtype="<u4")
        except UnicodeEncodeError as error:
            raise DataError(f"A text to be tokenized is not valid Unicode: {error}.") from None
        codes = self._table[characters]
        positions = np.flatnonzero(codes >= 0)
        ids = codes[positions]
        in_run = codes == _RUN
        if in_run.any():
            edges = np.flatnonzero(np.diff(in_run, prepend=False, append=False))
            run_ids, run_positions = self._runs(joined, edges[::2].tolist(), edges[1::2].tolist())
            # Both lists are sorted and a stable sort merges them; a run's tokens may share a position.
            positions = np.concatenate([positions, run_positions])
            order = np.argsort(positions, kind="stable")
            positions = positions[order]
            ids = np.concatenate([ids, run_ids])[order]
        ids = ids.astype(self.dtype)
        lengths = np.fromiter(map(len, sentences), dtype=np.int64, count=len(sentences))
        begins = np.cumsum(lengths + 1) - lengths - 1
        cuts = np.append(np.searchsorted(positions, begins), len(positions)).tolist()
        starts = positions - np.repeat(begins, np.diff(cuts)) if len(sentences) else positions
        return [(ids[a:b], starts[a:b]) for a, b in pairwise(cuts)]

    def _runs(
        self, text: str, begins: list[int], ends: list[int]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Ids and positions in ``text`` of the tokens of the runs ``text[begins[i]:ends[i]]``."""
        memo = self._memo
        runs = [text[a:b] for a, b in zip(begins, ends, strict=True)]
        fresh = [run for run in dict.fromkeys(runs) if run not in memo]
        if len(memo) + len(fresh) > _MEMO:
            memo.clear()
            fresh = list(dict.fromkeys(runs))
        # Long ones are rare and seldom come back (addresses, base64): they are not kept.
        extra: dict[str, Pieces] = {}
        for run, encoding in zip(fresh, self._encoder.encode_batch(fresh), strict=True):
            keep = memo if len(run) <= _MEMO_WORD else extra
            keep[run] = (tuple(encoding.ids), tuple(start for start, _ in encoding.offsets))
        ids: list[int] = []
        positions: list[int] = []
        for run, begin in zip(runs, begins, strict=True):
            found = memo.get(run) or extra[run]
            ids += found[0]
            if len(found[1]) == 1:
                positions.append(begin + found[1][0])
            else:
                positions += [begin + start for start in found[1]]
        return np.array(ids, dtype=np.int32), np.array(positions, dtype=np.int64)

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

"""SentencePiece models, unigram and BPE: ids of `sentencepiece`, and the same model for `tokenizers`."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import DataError
from data_prep.sentencepiece_model import ALIASES, BPE, NORMAL, Model, blind, exact, open_processor, read_model
from data_prep.tokenizer_base import SPECIALS, EncodedStream, Ints, Tokenizer, library, not_unicode, read_bytes

_SPACE = "\u2581"
_SEAM = "\U000e0001"
"""Parts what `tokenizers` would take for one character; cleaned text has none. Grapheme clusters end at it."""
_MARK = "\u034c"
"""A combining mark that no character is joined to."""
_SHOWN = 5
_ASKED = (*range(0xD800), *range(0xE000, 0x20000))
"""Code points about which a character map is asked: planes 0 and 1."""


class SentencePieceTokenizer(Tokenizer):
    """A unigram or BPE model; its ids are those of `sentencepiece`.

    The scores of a unigram model are rounded first (:func:`data_prep.sentencepiece_model.exact`), in the saved
    ``spiece.model`` too, so that both libraries find the same one of several equally good ways to cut a text.

    One exception is known for the saved tokenizer.json: in models with a character map (``nmt_nfkc``), a character that
    the map changes and a combining mark that it joins to it (U+FF21 U+0308, a full-width letter with an accent) stay
    two characters there.
    """

    kind = "sentencepiece"

    def __init__(self, content: bytes, where: str) -> None:
        """Read ``content``, the bytes of a ``spiece.model``.

        Raises:
            DataError: not such a model, of a kind that is not supported, or a special entry is missing.
        """
        model = read_model(content, where)
        self._content = exact(content, model)
        self._model = model = read_model(self._content, where)
        specials = {
            part: next((name for name in names if name in model.pieces), SPECIALS[part])
            for part, names in ALIASES.items()
        }
        settings = {
            "algorithm": model.algorithm,
            "scores": [struct.pack("<f", score).hex() for score in model.scores],
            "kinds": model.kinds,
            "character_map": model.character_map.hex(),
            "dummy_prefix": model.dummy_prefix,
            "trim": model.trim,
        }
        super().__init__(model.pieces, specials, settings, where)
        self._processor = open_processor(blind(self._content, model))
        self._lengths = np.fromiter(map(len, model.pieces), np.int64, len(model.pieces))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self._content, "the model"))

    def _encode_all(self, texts: Sequence[str]) -> EncodedStream:
        texts = list(texts)
        try:
            found = self._processor.encode(texts, out_type=int, num_threads=1)
            offsets = None if self._model.as_it_is else self._processor.normalize(texts, with_offsets=True)
        except (UnicodeEncodeError, TypeError) as error:
            raise not_unicode(error) from None
        counts = np.fromiter(map(len, found), np.int64, len(found))
        ids = np.fromiter(chain.from_iterable(found), np.int64, int(counts.sum()))
        # Pieces are cut out of the normalised text one after another.
        sizes = np.fromiter(map(len, texts if offsets is None else (text for text, _ in offsets)), np.int64, len(texts))
        lengths = self._surfaces(texts, ids, counts, sizes)
        ends = np.cumsum(lengths)
        firsts = np.cumsum(counts) - counts
        inner = ends - lengths - np.repeat(np.append(0, ends)[firsts], counts)
        if offsets is not None:
            places = np.fromiter(
                chain.from_iterable(places for _, places in offsets), np.int64, int(sizes.sum()) + len(texts)
            )
            inner = places[inner + np.repeat(np.cumsum(sizes + 1) - sizes - 1, counts)]
        return ids.astype(self.dtype), inner, counts

    def _surfaces(self, texts: list[str], ids: Ints, counts: Ints, sizes: Ints) -> Ints:
        """int64 [N]: characters of the normalised text that each token stands for.

        Those of an unknown token are what the others leave; where a text has several, `sentencepiece` is asked again.
        """
        unknown = ids == self.special_ids["unk"]
        lengths = np.where(unknown, 0, self._lengths[ids])
        text_of = np.repeat(np.arange(len(texts)), counts)
        left = sizes - np.bincount(text_of, lengths, len(texts)).astype(np.int64)
        n_unknown = np.bincount(text_of[unknown], minlength=len(texts))
        lengths[unknown] = left[text_of[unknown]]
        several = np.flatnonzero(n_unknown > 1)
        if len(several):
            pieces = self._processor.encode([texts[i] for i in several], out_type=str, num_threads=1)
            lengths[np.isin(text_of, several)] = [len(piece) for text in pieces for piece in text]
        return lengths

    def _hugging_face(self) -> Any:
        """The model as a `tokenizers` pipeline. No pre-tokenizer: like `sentencepiece`, it cuts the whole sentence."""
        tokenizers = library()
        model = self._model
        if model.algorithm == BPE:
            vocab = {piece: position for position, piece in enumerate(model.pieces)}
            inner = tokenizers.models.BPE(vocab, _merges(model), unk_token=self.specials["unk"], fuse_unk=True)
        else:
            scored = list(zip(model.pieces, model.scores, strict=True))
            inner = tokenizers.models.Unigram(scored, unk_id=self.special_ids["unk"], byte_fallback=False)
        encoder = tokenizers.Tokenizer(inner)
        normalizers = tokenizers.normalizers
        steps: list[Any] = self._mapping(normalizers) if model.character_map else []
        if model.trim:
            steps += [
                normalizers.Replace(tokenizers.Regex("^ +"), ""),
                normalizers.Replace(tokenizers.Regex(f"[ {_SPACE}]+$"), ""),
                normalizers.Replace(tokenizers.Regex(" {2,}"), " "),
            ]
        steps.append(normalizers.Replace(" ", _SPACE))
        if model.dummy_prefix:
            steps.append(normalizers.Prepend(_SPACE))
        encoder.normalizer = normalizers.Sequence(steps)
        scheme = "always" if model.dummy_prefix else "never"
        encoder.decoder = tokenizers.decoders.Metaspace(_SPACE, prepend_scheme=scheme)
        return encoder

    def _mapping(self, normalizers: Any) -> list[Any]:
        """The model's character map. `tokenizers` asks the map about whole grapheme clusters and forgets what follows
        the first character that the map knows: combining marks are parted from what they would be lost with."""
        tokenizers = library()
        around = [f"x{chr(code)}y" for code in _ASKED]
        found = self._processor.normalize(around)
        # The sign for spaces may be changed into a space, and look unchanged.
        rows = zip(_ASKED, around, found, strict=True)
        changed = np.array([c for c, text, new in rows if new.removeprefix(_SPACE) != text or chr(c) == _SPACE])
        runs = np.split(changed, np.flatnonzero(np.diff(changed) > 1) + 1)
        ranges = "".join(f"\\x{{{run[0]:X}}}-\\x{{{run[-1]:X}}}" for run in runs)
        before = f"[{ranges}\\p{{M}}]"
        seam = normalizers.Replace(tokenizers.Regex(f"(?<={before})(?=\\p{{M}})"), _SEAM)
        return [seam, normalizers.Precompiled(self._model.character_map), normalizers.Replace(_SEAM, "")]

    def save(self, folder: Path) -> None:
        """See :class:`Tokenizer`.

        Raises:
            DataError: the tokenizer.json would normalise some character otherwise than the model does.
        """
        encoder = self._hugging_face()
        self._check_normalizer(encoder.normalizer)
        pieces = "".join(f"{piece}\n" for piece in self.pieces).encode("utf-8")
        files = {"spiece.model": self._content, "vocab.txt": pieces}
        self._write(folder, files, encoder, {"tokenizer_class": "PreTrainedTokenizerFast"})

    def _check_normalizer(self, normalizer: Any) -> None:
        """Ask both libraries about every character of planes 0 and 1, also with a combining mark behind it, if there is
        anything to ask."""
        if not self._model.character_map:
            return
        texts = [f"x{chr(code)}{after}y" for after in ("", _MARK) for code in _ASKED]
        rights = self._processor.normalize(texts)
        wrong = [t[1] for t, right in zip(texts, rights, strict=True) if normalizer.normalize_str(t) != right]
        if wrong:
            shown = ", ".join(f"U+{ord(character):04X}" for character in wrong[:_SHOWN])
            raise DataError(
                f"The normalisation of this SentencePiece model cannot be written as a tokenizer.json: {len(wrong)} "
                f"characters would become something else ({shown}). Train a model with another "
                "`normalization_rule_name`, or leave `data.tokenizer.vocab` out to have one trained."
            )


def _merges(model: Model) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece; the best piece first."""
    rank = {piece: i for i, (piece, kind) in enumerate(zip(model.pieces, model.kinds, strict=True)) if kind == NORMAL}
    order = sorted(rank, key=lambda piece: (-model.scores[rank[piece]], rank[piece]))
    found: list[tuple[str, str]] = []
    for piece in order:
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in pairs if pair[0] in rank and pair[1] in rank]
        found += sorted(known, key=lambda pair: (rank[pair[0]], rank[pair[1]]))
    return found


def open_sentencepiece(path: Path) -> SentencePieceTokenizer:
    """See :func:`data_prep.tokenizer.open_tokenizer`."""
    if path.is_dir():
        names = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
        found = next((path / name for name in names if (path / name).is_file()), None)
        if found is None:
            raise DataError(
                f"The folder {path} holds no spiece.model: correct `data.tokenizer.vocab`"
                + (", or set `data.tokenizer.kind=wordpiece`." if (path / "vocab.txt").is_file() else ".")
            )
        path = found
    return SentencePieceTokenizer(read_bytes(path), str(path))

"""SentencePiece unigram models, run through `tokenizers` because that reports character offsets."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import DataError
from data_prep.tokenizer_base import SPECIALS, Encoded, Tokenizer, library, not_unicode, read_bytes

# Which entry plays the part of ours; models in the wild name them in these ways.
_ALIASES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
_SPACE = "\u2581"
_NORMAL, _UNKNOWN, _USER_DEFINED, _BYTE = 1, 2, 4, 6
_UNIGRAM = 1


@dataclass(frozen=True)
class _Model:
    """What a ``spiece.model`` says, as far as ids depend on it."""

    pieces: list[str]
    scores: list[float]
    kinds: list[int]
    algorithm: int
    byte_fallback: bool
    suffix: bool
    character_map: bytes
    dummy_prefix: bool
    trim: bool
    escape: bool


def library_sentencepiece() -> Any:
    """The package `sentencepiece`.

    Raises:
        DataError: it is not installed.
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise DataError(
            f"`data.tokenizer.kind=sentencepiece` needs the package `sentencepiece` ({error}): "
            "`pip install sentencepiece`, or use `data.tokenizer.kind=wordpiece`."
        ) from None
    return sentencepiece


class SentencePieceTokenizer(Tokenizer):
    """A unigram model; its ids equal those of `sentencepiece`.

    One exception is known, and `transformers` shares it: in models with a character map (``nmt_nfkc``),
    `tokenizers` loses a combining mark that stands right after a character which the map changes
    (U+FF0C U+034C gives ``,``), where `sentencepiece` keeps it.
    """

    kind = "sentencepiece"

    def __init__(self, content: bytes, where: str) -> None:
        """Read ``content``, the bytes of a ``spiece.model``.

        Raises:
            DataError: not such a model, not a unigram one, or a special entry is missing.
        """
        self._content = content
        self._model = _read_model(content, where)
        _refuse(self._model, where)
        specials = {
            part: next((name for name in names if name in self._model.pieces), SPECIALS[part])
            for part, names in _ALIASES.items()
        }
        settings = {
            "scores": [struct.pack("<f", score).hex() for score in self._model.scores],
            "kinds": self._model.kinds,
            "character_map": self._model.character_map.hex(),
            "dummy_prefix": self._model.dummy_prefix,
            "trim": self._model.trim,
        }
        super().__init__(self._model.pieces, specials, settings, where)
        self._encoder = self._hugging_face(hide_specials=True)
        model = self._model
        # Where the text is taken as it is, offsets are sums of the lengths of pieces, and `sentencepiece`
        # itself is the faster way to them. (It would find user defined specials in the text.)
        as_it_is = not (model.character_map or model.dummy_prefix or model.trim or _USER_DEFINED in model.kinds)
        self._processor = _processor(content) if as_it_is else None

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self._content, "the model"))

    def _hugging_face(self, hide_specials: bool) -> Any:
        """The model as a `tokenizers` pipeline.

        Args:
            hide_specials: `tokenizers` looks for every entry of a unigram vocabulary inside the text, while
                `sentencepiece` never finds those that are not ordinary. They are given a space in front:
                after normalisation no text holds a space.
        """
        tokenizers = library()
        model = self._model
        vocab = [
            (f" {piece}" if hide_specials and kind != _NORMAL else piece, score)
            for piece, score, kind in zip(model.pieces, model.scores, model.kinds, strict=True)
        ]
        encoder = tokenizers.Tokenizer(
            tokenizers.models.Unigram(vocab, unk_id=self.special_ids["unk"], byte_fallback=False)
        )
        normalizers = tokenizers.normalizers
        steps: list[Any] = [normalizers.Precompiled(model.character_map)] if model.character_map else []
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
        # No pre-tokenizer: like sentencepiece, the best path is sought over the whole sentence.
        scheme = "always" if model.dummy_prefix else "never"
        encoder.decoder = tokenizers.decoders.Metaspace(_SPACE, prepend_scheme=scheme)
        return encoder

    def encode(self, sentences: Sequence[str]) -> list[Encoded]:
        if self._processor is not None:
            return self._encode_as_it_is(self._processor, list(sentences))
        try:
            encodings = self._encoder.encode_batch(list(sentences), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise not_unicode(error) from None
        out: list[Encoded] = []
        for encoding in encodings:
            starts = [start for start, _ in encoding.offsets]
            out.append((np.array(encoding.ids, dtype=self.dtype), np.array(starts, dtype=np.int64)))
        return out

    def _encode_as_it_is(self, processor: Any, sentences: list[str]) -> list[Encoded]:
        try:
            ids = processor.encode(sentences, out_type=int, num_threads=1)
            pieces = processor.encode(sentences, out_type=str, num_threads=1)
        except (UnicodeEncodeError, TypeError) as error:
            raise not_unicode(error) from None
        out: list[Encoded] = []
        for found, surfaces in zip(ids, pieces, strict=True):
            lengths = np.fromiter(map(len, surfaces), dtype=np.int64, count=len(surfaces))
            out.append((np.array(found, dtype=self.dtype), np.cumsum(lengths) - lengths))
        return out

    def save(self, folder: Path) -> None:
        pieces = "".join(f"{piece}\n" for piece in self.pieces).encode("utf-8")
        files = {"spiece.model": self._content, "vocab.txt": pieces}
        config = {"tokenizer_class": "PreTrainedTokenizerFast"}
        self._write(folder, files, self._hugging_face(hide_specials=False), config)


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


def _processor(content: bytes) -> Any:
    processor = library_sentencepiece().SentencePieceProcessor()
    processor.LoadFromSerializedProto(content)
    return processor


def _read_model(content: bytes, where: str) -> _Model:
    try:
        processor = _processor(content)
        # The Python interface tells pieces and scores, but not how text is normalised: that is read here.
        model = list(_fields(content))
        trainer = dict(_fields(next((value for key, value in model if key == 2), b"")))
        normalizer = dict(_fields(next((value for key, value in model if key == 3), b"")))
        kinds = [int(dict(_fields(value)).get(3, _NORMAL)) for key, value in model if key == 1]
    except (RuntimeError, OSError, ValueError, IndexError, TypeError):
        raise DataError(
            f"{where} is not a SentencePiece model: correct `data.tokenizer.vocab`, or set "
            "`data.tokenizer.kind=wordpiece` for a vocab.txt."
        ) from None
    size = processor.get_piece_size()
    return _Model(
        pieces=[processor.id_to_piece(i) for i in range(size)],
        scores=[processor.get_score(i) for i in range(size)],
        kinds=kinds,
        algorithm=trainer.get(3, _UNIGRAM),
        byte_fallback=bool(trainer.get(35, 0)),
        suffix=bool(trainer.get(24, 0)),
        character_map=bytes(normalizer.get(2, b"")),
        dummy_prefix=bool(normalizer.get(3, 1)),
        trim=bool(normalizer.get(4, 1)),
        escape=bool(normalizer.get(5, 1)),
    )


def _refuse(model: _Model, where: str) -> None:
    """Raise for what would give other ids than `sentencepiece` does."""
    known = {name for names in _ALIASES.values() for name in names}
    forced = [
        piece
        for piece, kind in zip(model.pieces, model.kinds, strict=True)
        if kind == _USER_DEFINED and piece not in known
    ]
    problem = ""
    if model.algorithm != _UNIGRAM:
        problem = "is not a unigram model"
    elif model.byte_fallback or _BYTE in model.kinds:
        problem = "falls back to bytes"
    elif model.suffix or not model.escape:
        problem = "does not mark spaces at the beginning of words"
    elif forced:
        problem = f"has user defined symbols ({', '.join(forced[:5])})"
    if problem:
        raise DataError(
            f"{where} {problem}, which preparation does not support. Train a unigram model without it, "
            "or leave `data.tokenizer.vocab` out to have one trained."
        )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of one protobuf message: ``(number, int or bytes)``.

    Raises:
        ValueError, IndexError: ``data`` is not such a message.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError("not a protobuf message")
        if at + length > len(data):
            raise ValueError("a field ends behind its message")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7

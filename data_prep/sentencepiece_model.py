"""What a ``spiece.model`` says, and the same model with small changes."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from configs.errors import DataError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
UNIGRAM, BPE = 1, 2
GRID = 1 << 10
"""Scores are multiples of 1/GRID: see :func:`exact`."""
# Which entry plays the part of ours; models in the wild name them in these ways.
ALIASES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}


@dataclass(frozen=True)
class Model:
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

    @property
    def as_it_is(self) -> bool:
        """The text is not changed before it is cut, but for spaces becoming U+2581."""
        return not (self.character_map or self.dummy_prefix or self.trim)


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


def open_processor(content: bytes) -> Any:
    """`sentencepiece` with this model."""
    processor = library_sentencepiece().SentencePieceProcessor()
    processor.LoadFromSerializedProto(content)
    return processor


def read_model(content: bytes, where: str) -> Model:
    """The model in ``content``, the bytes of a ``spiece.model``.

    Raises:
        DataError: it is none, or one whose ids cannot be found by both libraries.
    """
    try:
        processor = open_processor(content)
        # The Python interface tells pieces and scores, but not how text is normalised: that is read here.
        fields = list(_fields(content))
        trainer = dict(_fields(next((value for key, value in fields if key == 2), b"")))
        normalizer = dict(_fields(next((value for key, value in fields if key == 3), b"")))
        kinds = [int(dict(_fields(value)).get(3, NORMAL)) for key, value in fields if key == 1]
    except (RuntimeError, OSError, ValueError, IndexError, TypeError):
        raise DataError(
            f"{where} is not a SentencePiece model: correct `data.tokenizer.vocab`, or set "
            "`data.tokenizer.kind=wordpiece` for a vocab.txt."
        ) from None
    size = processor.get_piece_size()
    model = Model(
        pieces=[processor.id_to_piece(i) for i in range(size)],
        scores=[processor.get_score(i) for i in range(size)],
        kinds=kinds,
        algorithm=trainer.get(3, UNIGRAM),
        byte_fallback=bool(trainer.get(35, 0)),
        suffix=bool(trainer.get(24, 0)),
        character_map=bytes(normalizer.get(2, b"")),
        dummy_prefix=bool(normalizer.get(3, 1)),
        trim=bool(normalizer.get(4, 1)),
        escape=bool(normalizer.get(5, 1)),
    )
    _refuse(model, where)
    return model


def _refuse(model: Model, where: str) -> None:
    """Raise for what would give other ids than `sentencepiece` does."""
    known = {name for names in ALIASES.values() for name in names}
    kinds = zip(model.pieces, model.kinds, strict=True)
    forced = [piece for piece, kind in kinds if kind == USER_DEFINED and piece not in known]
    problem = ""
    if model.algorithm not in (UNIGRAM, BPE):
        problem = "is neither a unigram nor a BPE model"
    elif model.byte_fallback or BYTE in model.kinds:
        problem = "falls back to bytes"
    elif model.suffix or not model.escape:
        problem = "does not mark spaces at the beginning of words"
    elif forced:
        problem = f"has user defined symbols ({', '.join(forced[:5])})"
    if problem:
        raise DataError(
            f"{where} {problem}, which preparation does not support. Train a unigram or BPE model without it, "
            "or leave `data.tokenizer.vocab` out to have one trained."
        )


def exact(content: bytes, model: Model) -> bytes:
    """The same unigram model with its scores rounded to multiples of 1/GRID.

    Sums of such scores are exact in single precision (up to 2^24 / GRID), as `sentencepiece` adds them. Otherwise
    rounding decides between the same pieces in another order (``!!!`` ``!!`` or ``!!`` ``!!!``), and it does so
    otherwise in `tokenizers`, which adds in double precision. BPE compares scores only and is left as it is.
    """
    rounded = [round(score * GRID) / GRID for score in model.scores]
    if model.algorithm != UNIGRAM or rounded == model.scores:
        return content
    return _with_pieces(content, rounded, model.kinds)


def blind(content: bytes, model: Model) -> bytes:
    """The same model, which does not look for its user defined entries (``[MASK]``) inside the text."""
    if USER_DEFINED not in model.kinds:
        return content
    return _with_pieces(content, model.scores, [CONTROL if k == USER_DEFINED else k for k in model.kinds])


def _with_pieces(content: bytes, scores: Sequence[float], kinds: Sequence[int]) -> bytes:
    """``content`` with other scores and kinds of its pieces, and without the samples that it tests itself with."""
    out, place = [], 0
    for key, value in _fields(content):
        if key == 4:
            continue
        if key == 1:
            entry = dict(_fields(value))[1]
            value = _delimited(1, entry) + b"\x15" + struct.pack("<f", scores[place]) + b"\x18" + bytes([kinds[place]])
            place += 1
        out.append(_delimited(key, value))
    return b"".join(out)


def _delimited(key: int, value: bytes) -> bytes:
    """One field of a protobuf message: tag, length, bytes."""
    length, head = len(value), bytearray([key << 3 | 2])
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    return bytes(head) + value


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

"""What every tokenizer is: ids with character offsets for preparation, and the same one for `transformers`."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from configs.errors import DataError, output_error

SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
MIN_ENTRIES = 10

Ints = npt.NDArray[np.int64]
Encoded = tuple[npt.NDArray[Any], Ints]
EncodedStream = tuple[npt.NDArray[Any], Ints, Ints]


def library() -> Any:
    """The package `tokenizers`, with its own threads off unless the user asked for them.

    Preparation runs one process per core; threads on top of that only compete, and warn after a fork.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers

    return tokenizers


class Tokenizer(ABC):
    """Ids and offsets of sentences. No text becomes a special id: ``[MASK]`` in the corpus is just text."""

    kind: str
    vocab_size: int
    dtype: np.dtype[Any]
    """uint16, or uint32 for more than 65536 entries."""
    special_ids: dict[str, int]
    """Ids of ``pad``, ``unk``, ``cls``, ``sep``, ``mask``."""
    hash: str
    """Of the ordered entries and of all settings that change ids."""

    def __init__(self, pieces: Sequence[str], specials: dict[str, str], settings: dict[str, Any], where: str) -> None:
        """Check the vocabulary.

        Args:
            pieces: the entries in the order of their ids.
            specials: for each of pad, unk, cls, sep and mask the entry that plays the part.
            settings: everything else that ids depend on (JSON values).
            where: path of the vocabulary, for messages.

        Raises:
            DataError: too few entries, one that stands twice, a special one that is missing.
        """
        if len(pieces) < MIN_ENTRIES:
            raise DataError(
                f"{where} has {len(pieces)} entries; a vocabulary has one entry a line and at least "
                f"{MIN_ENTRIES} of them. Give another `data.tokenizer.vocab`."
            )
        ids: dict[str, int] = {}
        for position, piece in enumerate(pieces):
            if piece in ids:
                raise DataError(
                    f"{where}: the entry {piece!r} stands twice (entries {ids[piece] + 1} and "
                    f"{position + 1}), so that its id is not clear. Remove the duplicate, or use the file "
                    "the model came with."
                )
            ids[piece] = position
        missing = [entry for entry in specials.values() if entry not in ids]
        if missing:
            raise DataError(
                f"{where} has no entry {' and no '.join(missing)}; masked language modelling needs "
                f"{', '.join(specials.values())}. Use the vocabulary of a masked language model, or leave "
                "`data.tokenizer.vocab` out to train one."
            )
        self.pieces = list(pieces)
        self.specials = dict(specials)
        self.settings = dict(settings)
        self.vocab_size = len(pieces)
        self.dtype = np.dtype(np.uint16 if len(pieces) <= 65536 else np.uint32)
        self.special_ids = {name: ids[entry] for name, entry in specials.items()}
        content = json.dumps([self.kind, self.settings, self.specials, self.pieces], ensure_ascii=True, sort_keys=True)
        self.hash = xxhash.xxh3_128_hexdigest(content.encode("ascii"))

    skips_breaks = False
    """Whether a line break at the end of a text changes nothing."""

    @abstractmethod
    def _encode_all(self, texts: Sequence[str]) -> EncodedStream:
        """What :meth:`encode_stream` returns, with places counted from the beginning of each text."""

    def encode(self, sentences: Sequence[str]) -> list[Encoded]:
        """For each sentence its ids (``dtype``) and their starts (int64, characters into that sentence).

        No [CLS] and [SEP]; starts do not decrease (one character may become several tokens).

        Raises:
            DataError: a sentence is not valid Unicode (a lone surrogate).
        """
        ids, starts, counts = self._encode_all(sentences)
        cuts = np.append(0, np.cumsum(counts)).tolist()
        return [(ids[a:b], starts[a:b]) for a, b in pairwise(cuts)]

    def encode_stream(self, chars: npt.NDArray[np.uint32], units: Ints) -> EncodedStream:
        """The tokens of many texts that stand one after another as code points.

        Args:
            chars: uint32 [N].
            units: int64 [u+1], ascending: text i is ``chars[units[i]:units[i+1]]``.

        Returns:
            (ids, places, counts): ids ``dtype`` [T]; int64 [T], where in ``chars`` each token begins, ascending within
            a text; int64 [u], how many tokens each text has.

        Raises:
            DataError: there is something that is no character of Unicode (a lone surrogate).
        """
        ids, starts, counts = self._encode_all(stream_texts(chars, units))
        return ids, starts + np.repeat(units[:-1], counts), counts

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the vocabulary and what ``AutoTokenizer.from_pretrained(folder)`` needs.

        Raises:
            OutputError: the folder cannot be written.
        """

    def decode_token(self, id: int) -> str:
        """The vocabulary entry of ``id``."""
        return self.pieces[id]

    def decode(self, ids: Sequence[int]) -> str:
        """The tokens of one word as a person reads them, without the marks of word pieces."""
        pieces = [self.pieces[id] for id in ids]
        return "".join(piece.removeprefix("##").replace("\u2581", "") or piece for piece in pieces)

    def _special_token(self, part: str) -> Any:
        return library().AddedToken(self.specials[part], special=True, normalized=False)

    def _post_processor(self) -> Any:
        """What puts the special tokens around text: [CLS] A [SEP] and [CLS] A [SEP] B [SEP], B of type 1."""
        names = self.specials
        return library().processors.TemplateProcessing(
            single=f"{names['cls']}:0 $A:0 {names['sep']}:0",
            pair=f"{names['cls']}:0 $A:0 {names['sep']}:0 $B:1 {names['sep']}:1",
            special_tokens=[(names[part], self.special_ids[part]) for part in ("cls", "sep")],
        )

    def _write(self, folder: Path, files: dict[str, bytes], hugging_face: Any, config: dict[str, Any]) -> None:
        """Write ``files``, tokenizer.json (with special tokens) and tokenizer_config.json."""
        hugging_face.add_special_tokens([self._special_token(part) for part in self.specials])
        hugging_face.post_processor = self._post_processor()
        config = {**config, **{f"{part}_token": entry for part, entry in self.specials.items()}}
        files = {
            **files,
            "tokenizer.json": hugging_face.to_str(pretty=False).encode("utf-8"),
            "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2).encode("utf-8"),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                # Renamed into place: another process may be opening the folder at this moment.
                temporary = folder / f".{name}.{os.getpid()}"
                temporary.write_bytes(content)
                temporary.replace(folder / name)
        except OSError as error:
            raise output_error(folder, error) from None


def check_units(chars: npt.NDArray[np.uint32], units: Ints) -> None:
    """Raise ValueError unless ``units`` are ascending places in ``chars`` (kernels do not look where they read)."""
    if chars.dtype != np.uint32 or units.dtype != np.int64 or len(units) == 0:
        raise ValueError(f"chars are {chars.dtype}, units are {len(units)} of {units.dtype}; wanted: uint32, int64")
    if units[0] < 0 or units[-1] > len(chars) or (np.diff(units) < 0).any():
        raise ValueError(f"units are not ascending places among {len(chars)} characters")


def stream_texts(chars: npt.NDArray[np.uint32], units: Ints) -> list[str]:
    """The texts of a stream.

    Raises:
        DataError: there is something that is no character of Unicode.
    """
    check_units(chars, units)
    try:
        whole = chars[units[0] : units[-1]].tobytes().decode("utf-32-le")
    except UnicodeDecodeError as error:
        raise not_unicode(error) from None
    return [whole[a:b] for a, b in pairwise((units - units[0]).tolist())]


def not_unicode(error: object) -> DataError:
    """The error for a text that is none."""
    return DataError(f"A text to be tokenized is not valid Unicode: {error}.")


def read_bytes(path: Path) -> bytes:
    """Content of a vocabulary file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"Cannot read the vocabulary {path}: {error.strerror or error}. Correct `data.tokenizer.vocab`."
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a tokenizer.

    Raises:
        DataError: it cannot be read, or is something else.
    """
    try:
        tree = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}). Fetch or write it again.") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path} does not hold a JSON object. Fetch or write it again.")
    return tree

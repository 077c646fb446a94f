"""One block of a source -> one shard folder: the work of one preparation task, in one process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from configs.errors import DataError
from data_prep.clean import clean, sentences
from data_prep.config import DataConfig
from data_prep.corpus import HELD_OUT_BIT, offsets_of, spread
from data_prep.documents import Block, Counts
from data_prep.masking import MaskRule, draw
from data_prep.readers import Reader
from data_prep.segment import Segmenter, open_segmenter
from data_prep.shards import SPLITS, ShardWriter, SplitWriter, map_array, read_index, write_array
from data_prep.tokenizer import open_tokenizer
from data_prep.tokenizer_base import Tokenizer
from data_prep.variants import VARIANTS, Sequences

BATCH = 64
"""Documents that are tokenised together."""
CHUNK = 20_000
"""Sequences whose masks are drawn together."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """What a worker process needs to know to make one shard."""

    config: DataConfig
    reader: Reader
    block: Block
    ordinal: int
    name: str
    data: Path
    held_out_below: int
    """Documents whose hash (64 bits) is below this are held out."""


def document_hash(text: str, seed: int) -> int:
    """64 bits of the cleaned text and the data's seed: decides the split, wherever the document stands."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8"), seed=seed & 0xFFFFFFFFFFFFFFFF)


def cleaned(config: DataConfig, reader: Reader, block: Block, counts: Counts) -> Iterator[str]:
    """The cleaned texts of a block; what is dropped is counted by reason.

    Raises:
        DataError: the system cannot read on. (As an ``OSError`` it would pass for one met while writing.)
    """
    try:
        for document in reader.documents(block, counts):
            text, reason = clean(document.text, config.clean)
            if text is None:
                counts["documents"] -= 1  # the reader counted it as read
                counts.drop(reason)
            else:
                yield text
    except OSError as error:
        raise DataError(
            f"Cannot read {block.path}: {error.strerror or error}. Check the disk, and start again: finished shards "
            "are kept."
        ) from error


def prepare_block(task: Task) -> dict[str, Any]:
    """Make the shard of ``task`` and put it into place; returns its manifest without the file list."""
    config, counts = task.config, Counts()
    tokenizer = open_tokenizer(task.data / "tokenizer", config.tokenizer)
    segmenter = open_segmenter(config.segment)
    with ShardWriter(task.data / "shards" / task.name, tokenizer.dtype) as writer:
        texts = cleaned(config, task.reader, task.block, counts)
        while batch := list(islice(texts, BATCH)):
            for text, document in zip(batch, encode(batch, tokenizer, segmenter), strict=True):
                held_out = document_hash(text, config.seed) < task.held_out_below
                writer.splits["held_out" if held_out else "train"].add_document(document)
                counts["characters"] += len(text)
                counts["bytes"] += len(text.encode("utf-8"))
        splits = {}
        for name in SPLITS:
            split = writer.splits[name]
            split.close()
            splits[name] = write_views(split, name, task, tokenizer)
        facts = {"ordinal": task.ordinal, "block": asdict(task.block), "counts": dict(counts), "splits": splits}
        writer.finish(facts)
    return facts


def encode(
    texts: list[str], tokenizer: Tokenizer, segmenter: Segmenter
) -> list[list[tuple[NDArray[np.integer], NDArray[np.bool_]]]]:
    """For each text its sentences as (ids, continuation bits).

    Words are cut in the whole text, so that the segmenter sees context; a token continues a word when it begins
    at a character that begins none, or at the same character as the token before it.
    """
    cut = [sentences(text) for text in texts]
    encoded = iter(tokenizer.encode([sentence for document in cut for sentence in document]))
    out = []
    for text, document in zip(texts, cut, strict=True):
        code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        starts = segmenter.word_starts(text)[code_points != ord("\n")]
        at = 0
        parts = []
        for sentence in document:
            ids, offsets = next(encoded)
            continues = ~starts[at + offsets]
            continues[1:] |= offsets[1:] == offsets[:-1]
            continues[:1] = False
            parts.append((ids, continues))
            at += len(sentence)
        out.append(parts)
    return out


def write_views(split: SplitWriter, name: str, task: Task, tokenizer: Tokenizer) -> dict[str, Any]:
    """Sequence index, stored masks and token counts of a written split; returns its facts for the manifest."""
    config, folder = task.config, split.folder
    index = read_index(folder / "tokens.idx")
    n_tokens = int(index.lengths.sum(dtype=np.int64))
    tokens = map_array(folder / "tokens.bin", split.dtype.name, (n_tokens,))
    bits = map_array(folder / "words.bits", "u1", ((n_tokens + 7) // 8,))
    continues = np.unpackbits(bits, count=n_tokens, bitorder="little").astype(np.bool_)
    kind, longest = config.sequences.kind, config.sequences.max_length
    sequences = VARIANTS[kind](index, continues, longest - 2)
    view = folder / "sequences" / f"{kind}-{longest}"
    write_array(view / "offsets.bin", sequences.offsets)
    write_array(view / "pieces.bin", sequences.pieces)
    if name == "train":
        counts = np.bincount(tokens, minlength=tokenizer.vocab_size) if n_tokens else np.zeros(tokenizer.vocab_size)
        write_array(folder / "unigram.bin", counts.astype(np.int64))
    views = config.masks.views if config.masks.mode == "stored" else 0
    base = np.uint64(task.ordinal << 32) | (HELD_OUT_BIT if name == "held_out" else np.uint64(0))
    specials = tuple(sorted(tokenizer.special_ids.values()))
    shares = (config.masks.rate, config.masks.mask, config.masks.random)
    rule = MaskRule(*shares, tokenizer.special_ids["mask"], tokenizer.vocab_size, specials)
    masked = [
        write_masks(view / "masks" / f"view-{v}", sequences, tokens, continues, rule, (config.seed, v, base))
        for v in range(views)
    ]
    return {
        "documents": len(index.documents) - 1,
        "sentences": len(index.lengths),
        "tokens": n_tokens,
        "words": n_tokens - int(continues.sum()),
        "unknown": int((tokens == tokenizer.special_ids["unk"]).sum()),
        "sequences": len(sequences.offsets) - 1,
        "pieces": len(sequences.pieces),
        "masked": masked,
    }


def write_masks(
    folder: Path,
    sequences: Sequences,
    tokens: NDArray[np.integer],
    continues: NDArray[np.bool_],
    rule: MaskRule,
    key: tuple[int, int, np.uint64],
) -> int:
    """Draw and store one view (``key``: seed, view, id of sequence 0); returns how many tokens it masks."""
    seed, view, base = key
    n = len(sequences.offsets) - 1
    folder.mkdir(parents=True)
    counts = [np.zeros(0, np.int64)]
    with (folder / "positions.bin").open("wb") as positions, (folder / "ids.bin").open("wb") as ids:
        for begin in range(0, n, CHUNK):
            local = np.arange(begin, min(begin + CHUNK, n), dtype=np.int64)
            first, last = sequences.offsets[local], sequences.offsets[local + 1]
            pieces = sequences.pieces[spread(first, last - first)]
            where = spread(pieces[:, 0], pieces[:, 1])
            ends = offsets_of(pieces[:, 1])[offsets_of(last - first)]
            numbers = base | local.astype(np.uint64)
            views = np.full(len(local), view, np.int64)
            masks = draw(rule, seed, views, numbers, tokens[where], continues[where], ends)
            positions.write(masks.positions.astype("<u2").tobytes())
            ids.write(masks.ids.astype(tokens.dtype.newbyteorder("<")).tobytes())
            counts.append(np.diff(masks.offsets))
    offsets = offsets_of(np.concatenate(counts))
    write_array(folder / "offsets.bin", offsets.astype(np.uint64))
    return int(offsets[-1])

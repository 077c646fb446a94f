"""One block of a source -> one shard folder: the work of one preparation task, in one process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

import data_prep.pairs  # noqa: F401  it registers a kind of sequences
from configs.errors import DataError
from data_prep.clean import clean, units
from data_prep.config import CleanConfig, DataConfig
from data_prep.corpus import HELD_OUT_BIT, offsets_of, spread
from data_prep.documents import Block, Counts
from data_prep.masking import MaskRule, draw, mask_rule
from data_prep.readers import Reader
from data_prep.segment import Segmenter, open_segmenter
from data_prep.shards import SPLITS, ShardWriter, SplitWriter, map_array, read_index, write_array
from data_prep.tokenizer import open_tokenizer
from data_prep.tokenizer_base import Tokenizer
from data_prep.variants import VARIANTS, Sequences, Units

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
            encoded = encode(batch, tokenizer, segmenter, config.clean, counts)
            for text, document in zip(batch, encoded, strict=True):
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
    texts: list[str], tokenizer: Tokenizer, segmenter: Segmenter, rule: CleanConfig, counts: Counts
) -> list[list[tuple[NDArray[np.integer], NDArray[np.bool_]]]]:
    """For each text its units as (ids, continuation bits); those that are too short are left out and counted.

    Words are cut in the whole text, so that the segmenter sees context; a token continues a word when it begins
    at a character that begins none, or at the same character as the token before it.
    """
    cut = [units(text, rule) for text in texts]
    long_enough = [[len(unit) >= rule.min_unit_characters for unit in document] for document in cut]
    kept = [u for document, keep in zip(cut, long_enough, strict=True) for u in compress(document, keep)]
    counts["short_units"] += sum(map(len, cut)) - len(kept)
    encoded = iter(tokenizer.encode(kept))
    out = []
    for text, document, keep in zip(texts, cut, long_enough, strict=True):
        code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        starts = segmenter.word_starts(text)[code_points != ord("\n")]
        at = 0
        parts = []
        for unit, wanted in zip(document, keep, strict=True):
            if wanted:
                ids, offsets = next(encoded)
                continues = ~starts[at + offsets]
                continues[1:] |= offsets[1:] == offsets[:-1]
                continues[:1] = False
                parts.append((ids, continues))
            at += len(unit)
        out.append(parts)
    return out


def write_views(split: SplitWriter, name: str, task: Task, tokenizer: Tokenizer) -> dict[str, Any]:
    """Sequence index, stored masks and token counts of a written split; returns its facts for the manifest."""
    config, folder = task.config, split.folder
    index = read_index(folder / "tokens.idx")
    lengths = index.lengths.astype(np.int64)
    n_tokens = int(lengths.sum())
    tokens = map_array(folder / "tokens.bin", split.dtype.name, (n_tokens,))
    bits = map_array(folder / "words.bits", "u1", ((n_tokens + 7) // 8,))
    continues = np.unpackbits(bits, count=n_tokens, bitorder="little").astype(np.bool_)
    base = np.uint64(task.ordinal << 32) | (HELD_OUT_BIT if name == "held_out" else np.uint64(0))
    written = Units(lengths, index.documents, tokens, continues, config.seed, base)
    sequences = VARIANTS[config.sequences.kind](written, config.sequences)
    view = folder / "sequences" / config.sequences.folder
    write_array(view / "offsets.bin", sequences.offsets)
    write_array(view / "pieces.bin", sequences.pieces)
    if sequences.firsts is not None and sequences.order is not None:
        write_array(view / "firsts.bin", sequences.firsts.astype(np.uint16))
        write_array(view / "order.bin", sequences.order)
    if name == "train":
        counts = np.bincount(tokens, minlength=tokenizer.vocab_size) if n_tokens else np.zeros(tokenizer.vocab_size)
        write_array(folder / "unigram.bin", counts.astype(np.int64))
    masked = []
    if config.masks.stored(name):
        rule = mask_rule(config.masks, name, tokenizer.special_ids, tokenizer.vocab_size)
        masked = [
            write_masks(view / "masks" / f"view-{v}", sequences, tokens, continues, rule, (config.seed, v, base))
            for v in range(config.masks.views)
        ]
    return {
        "documents": len(index.documents) - 1,
        "sentences": len(lengths),
        "tokens": n_tokens,
        "words": n_tokens - int(continues.sum()),
        "unknown": int((tokens == tokenizer.special_ids["unk"]).sum()),
        "sequences": len(sequences.offsets) - 1,
        "pieces": len(sequences.pieces),
        "sequence_tokens": int(sequences.pieces[:, 1].sum()),
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
            where, inner = spread(pieces[:, 0], pieces[:, 1]), offsets_of(pieces[:, 1])
            ends = inner[offsets_of(last - first)]
            words = continues[where]
            words[inner[:-1]] = False  # no word reaches over the border of two pieces
            numbers = base | local.astype(np.uint64)
            views = np.full(len(local), view, np.int64)
            masks = draw(rule, seed, views, numbers, tokens[where], words, ends)
            masks = masks.between(None if sequences.firsts is None else sequences.firsts[local])
            positions.write(masks.positions.astype("<u2").tobytes())
            ids.write(masks.ids.astype(tokens.dtype.newbyteorder("<")).tobytes())
            counts.append(np.diff(masks.offsets))
    offsets = offsets_of(np.concatenate(counts))
    write_array(folder / "offsets.bin", offsets.astype(np.uint64))
    return int(offsets[-1])

"""One block of a source -> one shard folder: the work of one preparation task, in one process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import data_prep.pairs  # noqa: F401  it registers a kind of sequences
from configs.errors import DataError
from data_prep.atomic import write_json
from data_prep.clean import clean_texts, select
from data_prep.config import DataConfig, FilterConfig, SegmentConfig, TokenizerConfig
from data_prep.corpus import HELD_OUT_BIT
from data_prep.documents import Block, Counts
from data_prep.drops import EXAMPLES, Drops
from data_prep.encode import encode
from data_prep.filters import REASONS, any_filter, judge
from data_prep.mapped import Arrays, Mapped, offsets_of
from data_prep.masking import MaskRule, drawn, mask_rule
from data_prep.readers import Reader
from data_prep.segment import Segmenter, open_segmenter
from data_prep.shards import SPLITS, ShardWriter, SplitWriter, map_array, read_index, write_array
from data_prep.similar import open_similar
from data_prep.statistics import LONGEST_PIECE, note_unknown, statistics
from data_prep.stream import Stream
from data_prep.tokenizer import open_tokenizer
from data_prep.tokenizer_base import Tokenizer
from data_prep.variants import VARIANTS, Units

BATCH = 1 << 18
"""Characters that are prepared together: what travels between the steps stays in the processor's cache."""
CHUNK = 1 << 20
"""Tokens that are counted together."""
SEQUENCES = 1024
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


def cleaned(config: DataConfig, reader: Reader, block: Block, counts: Counts) -> Iterator[Stream]:
    """The cleaned texts of a block, many at a time; what is dropped is counted by reason.

    Raises:
        DataError: the system cannot read on. (As an ``OSError`` it would pass for one met while writing.)
    """
    try:
        for texts in batches(reader.texts(block, counts)):
            stream, dropped = clean_texts(texts, config.clean)
            if any_filter(config.clean.filters):
                stream = filtered(stream, config.clean.filters, dropped)
            for reason, n in dropped.items():
                counts[f"dropped_{reason}"] += n
                counts["documents"] -= n  # the reader counted them as read
            yield stream
    except OSError as error:
        raise DataError(
            f"Cannot read {block.path}: {error.strerror or error}. Check the disk, and start again: finished shards "
            "are kept."
        ) from error


def filtered(stream: Stream, rule: FilterConfig, dropped: Counter[str]) -> Stream:
    """The documents that pass the quality filters; the others are counted in ``dropped``."""
    codes = judge(stream.chars, stream.documents, rule)
    if not codes.any():
        return stream
    found = np.bincount(codes, minlength=len(REASONS)).tolist()
    dropped.update({reason: n for reason, n in zip(REASONS[1:], found[1:], strict=True) if n})
    return select(stream, codes == 0)


def batches(texts: Iterable[list[str]]) -> Iterator[list[str]]:
    """``texts`` joined to lists of about ``BATCH`` characters."""
    held, size = list[str](), 0
    for some in texts:
        for text in some:
            held.append(text)
            size += len(text)
            if size >= BATCH:
                yield held
                held, size = [], 0
    if held:
        yield held


def opened(config: DataConfig, folder: Path) -> tuple[Tokenizer, Segmenter]:
    """The tokenizer in ``folder`` and the segmenter; a process that makes many shards opens them once."""
    state = tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.iterdir()))
    return _opened(folder, state, config.tokenizer.model_dump_json(), config.segment.model_dump_json())


@lru_cache(maxsize=1)
def _opened(folder: Path, state: object, tokenizer: str, segment: str) -> tuple[Tokenizer, Segmenter]:
    del state  # only makes a changed folder another one
    rule = TokenizerConfig.model_validate_json(tokenizer)
    return open_tokenizer(folder, rule), open_segmenter(SegmentConfig.model_validate_json(segment))


def prepare_block(task: Task) -> dict[str, Any]:
    """Make the shard of ``task`` and put it into place; returns its manifest without the file list."""
    config, counts = task.config, Counts()
    tokenizer, segmenter = opened(config, task.data / "tokenizer")
    unknown: Counter[str] = Counter()
    with ShardWriter(task.data / "shards" / task.name, tokenizer.dtype) as writer:
        streams = cleaned(config, task.reader, task.block, counts)
        drops = Drops.open(task.data, task.ordinal, task.block.path) if config.dedup.wanted else None
        for stream in streams if drops is None else drops.without(streams, counts):
            encoded = encode(stream, tokenizer, segmenter, config.clean)
            hashes, size = stream.hashes(config.seed)
            held_out = hashes < np.uint64(task.held_out_below)
            writer.splits["train"].add(*encoded.chosen(~held_out))
            writer.splits["held_out"].add(*encoded.chosen(held_out))
            note_unknown(unknown, encoded.texts_of(tokenizer.special_ids["unk"], LONGEST_PIECE))
            counts["short_units"] += encoded.short
            counts["characters"] += len(stream.chars)
            counts["bytes"] += size
        splits = {}
        for name in SPLITS:
            split = writer.splits[name]
            split.close()
            splits[name] = write_views(split, name, task, tokenizer)
        if drops is not None and drops.examples:
            write_json(writer.aside / EXAMPLES, {"documents": drops.examples})
        facts = {"ordinal": task.ordinal, "block": asdict(task.block), "counts": dict(counts), "splits": splits}
        train = writer.splits["train"].folder
        facts["statistics"] = statistics(train, tokenizer.dtype.name, config.sequences.folder, unknown)
        writer.finish(facts)
    return facts


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
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for begin in range(0, n_tokens, CHUNK):  # by chunks: they become int64 inside
        counts += np.bincount(tokens[begin : begin + CHUNK], minlength=tokenizer.vocab_size)
    if name == "train":
        write_array(folder / "unigram.bin", counts)
    masked = []
    if config.masks.stored(name):
        words = open_similar(task.data) if config.masks.similar is not None else None
        rule = mask_rule(config.masks, name, tokenizer.special_ids, tokenizer.vocab_size, words=words)
        firsts = None if sequences.firsts is None else sequences.firsts.astype(np.uint16)
        arrays = Arrays(tokens, bits, sequences.offsets, sequences.pieces, firsts, sequences.order)
        shard = Mapped([arrays], wide=split.dtype.itemsize == 4, pairs=firsts is not None)
        masked = [
            write_masks(view / "masks" / f"view-{v}", shard, rule, (config.seed, v, base), split.dtype)
            for v in range(config.masks.views)
        ]
    return {
        "documents": len(index.documents) - 1,
        "sentences": len(lengths),
        "tokens": n_tokens,
        "words": n_tokens - int(continues.sum()),
        "unknown": int(counts[tokenizer.special_ids["unk"]]),
        "sequences": len(sequences.offsets) - 1,
        "pieces": len(sequences.pieces),
        "sequence_tokens": int(sequences.pieces[:, 1].sum()),
        "masked": masked,
    }


def write_masks(
    folder: Path, shard: Mapped, rule: MaskRule, key: tuple[int, int, np.uint64], dtype: np.dtype[Any]
) -> int:
    """Draw and store one view (``key``: seed, view, id of sequence 0); returns how many tokens it masks."""
    seed, view, base = key
    n = int(shard.starts[-1])
    folder.mkdir(parents=True)
    counts = [np.zeros(0, np.int64)]
    with (folder / "positions.bin").open("wb") as positions, (folder / "ids.bin").open("wb") as ids:
        for begin in range(0, n, SEQUENCES):
            local = np.arange(begin, min(begin + SEQUENCES, n), dtype=np.int64)
            masks = drawn(shard, rule, seed, np.full(len(local), view), base | local.astype(np.uint64), local)
            positions.write(masks.positions.astype("<u2").tobytes())
            ids.write(masks.ids.astype(dtype.newbyteorder("<")).tobytes())
            counts.append(np.diff(masks.offsets))
    offsets = offsets_of(np.concatenate(counts))
    write_array(folder / "offsets.bin", offsets.astype(np.uint64))
    return int(offsets[-1])

"""One block of a source -> one shard folder: the work of one preparation task, in one process."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import data_prep.pairs  # noqa: F401  it registers a kind of sequences
from configs.errors import DataError
from data_prep.atomic import write_json
from data_prep.clean import clean_texts
from data_prep.config import DataConfig, SegmentConfig, TokenizerConfig
from data_prep.config_quality import FilterConfig
from data_prep.corpus import HELD_OUT_BIT
from data_prep.documents import Block, Counts
from data_prep.drops import EXAMPLES, Drops
from data_prep.encode import encode
from data_prep.filters import REASONS, any_filter, judge
from data_prep.mapped import Arrays, Mapped, offsets_of
from data_prep.masking import MaskRule, drawn_views, mask_rule
from data_prep.readers import Reader
from data_prep.segment import Segmenter, open_segmenter
from data_prep.shards import (
    SPLITS,
    ShardWriter,
    SplitWriter,
    forget,
    is_sound,
    map_array,
    read_index,
    read_manifest,
    write_array,
)
from data_prep.share import Allowance, copies, sampled
from data_prep.similar import open_similar
from data_prep.statistics import LONGEST_PIECE, count_tokens, note_unknown, statistics
from data_prep.stream import Stream
from data_prep.tokenizer import open_tokenizer
from data_prep.tokenizer_base import Tokenizer
from data_prep.variants import VARIANTS, Units

BATCH = 1 << 18
"""Characters that are prepared together: what travels between the steps stays in the processor's cache."""
SEQUENCES = 1024
"""Sequences whose masks are drawn together."""
PART_SHIFT = 18
"""Bits of an ordinal (of 30) that number the blocks; those above number the parts of a block."""

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

    Of a source with a ``weight`` below 1 only the share; up to the limits of the block.

    Raises:
        DataError: the system cannot read on. (As an ``OSError`` it would pass for one met while writing.)
    """
    allowance, taken, before = Allowance(block), 0, counts["documents"]
    try:
        for texts in batches(reader.texts(block, counts)):
            stream, found = clean_texts(texts, config.clean)
            if any_filter(config.clean.filters):
                stream = filtered(stream, config.clean.filters, found)
            counts.update(found)
            counts["documents"] -= sum(found.dropped.values())  # the reader counted them as read
            stream = sampled(stream, reader.source.weight, config.seed, counts)
            size, stream = len(stream.chars), allowance.take(stream)
            counts["characters_read"] -= size - len(stream.chars)
            taken += len(stream.documents) - 1
            if allowance.spent:  # what was read beyond the limit was not read
                counts["documents"] = before + taken
            if len(stream.documents) > 1:
                yield stream
            if allowance.spent:
                return
    except OSError as error:
        raise DataError(
            f"Cannot read {block.path}: {error.strerror or error}. Check the disk, and start again: finished shards "
            "are kept."
        ) from error


def filtered(stream: Stream, rule: FilterConfig, counts: Counts) -> Stream:
    """The documents that pass the quality filters; the others are counted by reason."""
    codes = judge(stream.chars, stream.documents, rule)
    if not codes.any():
        return stream
    found = np.bincount(codes, minlength=len(REASONS)).tolist()
    counts.update({f"dropped_{reason}": n for reason, n in zip(REASONS[1:], found[1:], strict=True) if n})
    return stream.kept(codes == 0, counts)


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


@lru_cache(maxsize=2)
def _opened(folder: Path, state: object, tokenizer: str, segment: str) -> tuple[Tokenizer, Segmenter]:
    del state  # only makes a changed folder another one
    rule = TokenizerConfig.model_validate_json(tokenizer)
    return open_tokenizer(folder, rule), open_segmenter(SegmentConfig.model_validate_json(segment))


def get_ready(task: Task) -> None:
    """Open what the work on any block needs and load most kernels: processes forked from this one need not."""
    tools = opened(task.config, task.data / "tokenizer")
    stream, _ = clean_texts(["今天天气很好。" * 64], task.config.clean)
    if len(stream.documents) > 1:
        stream.hashes(task.config.seed)
        encode(stream, *tools, task.config.clean).chosen(np.ones(1, np.int64))


def prepare_block(task: Task) -> dict[str, Any]:
    """Make the shard of ``task`` and put it into place; returns its manifest without the file list.

    A block whose size was not known (compressed, streamed) may become several shards, so that memory is bounded: the
    further ones are named in ``parts`` of the first one's manifest, which comes into place last. Those of them that
    an earlier start has left are kept.
    """
    config, counts = task.config, Counts()
    tools = opened(config, task.data / "tokenizer")
    streams = cleaned(config, task.reader, task.block, counts)
    drops = Drops.open(task.data, task.ordinal, task.block.path) if config.dedup.wanted else None
    if drops is not None:
        streams = drops.without(streams, counts)
    names: list[str] = []
    with ShardWriter(task.data / "shards" / task.name, tools[0].dtype) as writer:
        # A block without documents has its shard, too.
        for part, some in groupby(chain([(0, None)], numbered(streams, part_bytes(task))), key=lambda item: item[0]):
            texts = (stream for _, stream in some if stream is not None)
            if part == 0:
                first = write_splits(writer, task, texts, tools, counts)
                continue
            names.append(write_part(task, part, texts, tools, counts))
        if drops is not None and drops.examples:
            write_json(writer.aside / EXAMPLES, {"documents": drops.examples})
        facts = {"ordinal": task.ordinal, "block": asdict(task.block), "counts": dict(counts), **first}
        if names:
            facts["parts"] = names
        writer.finish(facts)
    give_back_memory()
    return facts


def write_part(
    task: Task, part: int, streams: Iterable[Stream], tools: tuple[Tokenizer, Segmenter], counts: Counts
) -> str:
    """One of the further shards of a block; returns its name.

    One that an earlier start has left whole is kept. Its texts must pass for all that, since they tell where the next
    part begins, but they are not tokenized again: what they would add to ``counts`` stands in its manifest (``own``).
    """
    further = replace(task, name=f"{task.name}.{part:03d}", ordinal=part_ordinal(task, part))
    folder = task.data / "shards" / further.name
    kept = read_manifest(folder).get("own") if folder.is_dir() and is_sound(folder) else None
    if kept is not None:
        for _ in streams:
            pass
        counts.update(kept)
        return further.name
    own = Counts()
    with ShardWriter(folder, tools[0].dtype) as writer:
        made = write_splits(writer, further, streams, tools, own)
        facts = {"ordinal": further.ordinal, "block": asdict(task.block), "counts": {}, "own": dict(own)}
        writer.finish({**facts, **made})
    counts.update(own)
    give_back_memory()
    return further.name


def close_tools() -> None:
    """Forget the tokenizer and the segmenter of :func:`opened`: no more shards are made."""
    _opened.cache_clear()
    give_back_memory()


def give_back_memory() -> None:
    """Hand what is free back to the system; glibc would keep it for requests of the same sizes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def part_bytes(task: Task) -> int:
    """Bytes of text that make a shard full. No block of UTF-8 text of a known size, each document once, has more."""
    return max(1, int((task.config.block_megabytes << 20) / max(1.0, task.reader.source.weight)))


def numbered(streams: Iterable[Stream], size: int) -> Iterator[tuple[int, Stream]]:
    """``streams`` with the number of their part. A document begins the next part when this one has ``size`` bytes."""
    part, held = 0, 0
    for stream in streams:
        ends = stream.utf8()[1]
        first, n = 0, len(ends) - 1
        while first < n:
            if held >= size:
                part, held = part + 1, 0
            last = first + int(np.searchsorted(ends[first:-1] - ends[first] + held, size))
            yield part, stream if last - first == n else stream.between(first, last)
            held += int(ends[last] - ends[first])
            first = last


def part_ordinal(task: Task, part: int) -> int:
    """Ordinals of parts lie above those of all blocks, which are known before; the first part has the block's own."""
    if task.ordinal >> PART_SHIFT or part >> (30 - PART_SHIFT):
        raise DataError(f"{task.block.path} has too many parts; set a larger data.block_megabytes.")
    return task.ordinal | part << PART_SHIFT


def write_splits(
    writer: ShardWriter,
    task: Task,
    streams: Iterable[Stream],
    tools: tuple[Tokenizer, Segmenter],
    counts: Counts,
) -> dict[str, Any]:
    """Tokens and views of both splits of one shard; returns its part of the manifest."""
    config, (tokenizer, segmenter) = task.config, tools
    unknown: Counter[str] = Counter()
    seen = {name: np.zeros(tokenizer.vocab_size, np.int64) for name in SPLITS}
    for stream in streams:
        encoded = encode(stream, tokenizer, segmenter, config.clean)
        hashes, size = stream.hashes(config.seed)
        held_out = hashes < np.uint64(task.held_out_below)
        times = copies(hashes, task.reader.source.weight)
        for name, taken in (("train", times * ~held_out), ("held_out", held_out.astype(np.int64))):
            chosen = encoded.chosen(taken)
            writer.splits[name].add(*chosen)
            count_tokens(chosen[0], seen[name])  # while they are in the cache
        note_unknown(unknown, encoded.texts_of(tokenizer.special_ids["unk"], LONGEST_PIECE))
        counts["short_units"] += encoded.short
        counts["characters"] += len(stream.chars)
        counts["bytes"] += size
    splits = {}
    for name in SPLITS:
        writer.splits[name].close()
        give_back_memory()  # what lay between is larger than all that lives on
        splits[name] = write_views(writer.splits[name], name, task, tokenizer, seen[name])
    give_back_memory()
    train = writer.splits["train"].folder
    noted = statistics(train, tokenizer.dtype.name, config.sequences.folder, unknown)
    return {"splits": splits, "statistics": noted}


def write_views(split: SplitWriter, name: str, task: Task, tokenizer: Tokenizer, counts: Ints) -> dict[str, Any]:
    """Sequence index, stored masks and ``counts`` of a written split's tokens; returns its facts for the manifest."""
    config, folder = task.config, split.folder
    index = read_index(folder / "tokens.idx")
    lengths = index.lengths.astype(np.int64)
    n_tokens = int(lengths.sum())
    tokens = map_array(folder / "tokens.bin", split.dtype.name, (n_tokens,))
    bits = map_array(folder / "words.bits", "u1", ((n_tokens + 7) // 8,))
    continues = np.unpackbits(bits, count=n_tokens, bitorder="little").view(np.bool_)
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
        write_array(folder / "unigram.bin", counts)
    masked = []
    if config.masks.stored(name):
        words = open_similar(task.data) if config.masks.similar is not None else None
        rule = mask_rule(config.masks, name, tokenizer.special_ids, tokenizer.vocab_size, words=words)
        firsts = None if sequences.firsts is None else sequences.firsts.astype(np.uint16)
        arrays = Arrays(tokens, bits, sequences.offsets, sequences.pieces, firsts, sequences.order)
        shard = Mapped([arrays], wide=split.dtype.itemsize == 4, pairs=firsts is not None)
        masked = write_masks(view / "masks", shard, rule, (config.seed, base), config.masks.views)
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


def write_masks(folder: Path, shard: Mapped, rule: MaskRule, key: tuple[int, np.uint64], views: int) -> list[int]:
    """Draw and store the views (``key``: seed, id of sequence 0); returns how many tokens each of them masks."""
    n, folders = int(shard.starts[-1]), [folder / f"view-{v}" for v in range(views)]
    counts = [[np.zeros(0, np.int64)] for _ in folders]
    with ExitStack() as opened:
        files = []
        for own in folders:
            own.mkdir(parents=True)
            files.append([opened.enter_context((own / name).open("wb")) for name in ("positions.bin", "ids.bin")])
        for begin in range(0, n, SEQUENCES):
            if begin % (16 * SEQUENCES) == 0:
                forget(shard.arrays[0].tokens)
            found = drawn_views(shard, rule, key[0], range(views), key[1], begin, min(begin + SEQUENCES, n))
            for (positions, ids), own_counts, (offsets, *content) in zip(files, counts, found, strict=True):
                positions.write(content[0].astype("<u2", copy=False).data)
                ids.write(content[1].astype(content[1].dtype.newbyteorder("<"), copy=False).data)
                own_counts.append(np.diff(offsets))
    masked = []
    for own, own_counts in zip(folders, counts, strict=True):
        offsets = offsets_of(np.concatenate(own_counts))
        write_array(own / "offsets.bin", offsets.astype(np.uint64))
        masked.append(int(offsets[-1]))
    return masked

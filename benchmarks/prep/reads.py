"""Reading prepared data: masked batches against plain copies, random reads against Arrow, views against preparation.

`python -m benchmarks.prep.reads FILES...` (text or JSONL) prints one line a bar; rivals are interleaved.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.block import write_masks
from data_prep.config import DataConfig, MaskConfig, SegmentConfig, SequenceConfig, SourceConfig, TokenizerConfig
from data_prep.corpus import Corpus, ShardSplit, Split
from data_prep.documents import Counts
from data_prep.mapped import Arrays, Mapped
from data_prep.masking import Empty, mask_rule
from data_prep.pipeline import prepare
from data_prep.readers import open_sources
from data_prep.variants import VARIANTS, Units
from distill_core.buffers import Buffers

BATCH, LENGTH, ROUNDS, VIEWS = 256, 512, 25, 4
TOKENS = 52_800_000
"""Of the random reads: more than caches hold."""
KINDS: dict[str, dict[str, Any]] = {
    "documents": {},
    "lines": {},
    "merged": {"merge_probability": 0.5},
    "shuffled": {},
    "packed": {},
    "pairs": {},
}
Bar = tuple[str, float, str]


def run(texts: list[str]) -> list[Bar]:
    """(bar, value, unit) of bars 6, 7 and 12, measured on ``texts``."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        corpus, seconds = prepared(source, Path(folder) / "data")
        return [*masking(corpus), *reading(Path(folder) / "random"), *variants(corpus, seconds)]


def prepared(source: Path, folder: Path) -> tuple[Corpus, float]:
    """The texts in packed sequences, and the processor seconds of preparing them without masks."""
    config = DataConfig(
        sources=[SourceConfig(path=str(source))],
        segment=SegmentConfig(),
        tokenizer=TokenizerConfig(vocab_size=8000, train_characters=500_000),
        sequences=SequenceConfig(kind="packed", max_length=LENGTH),
        masks=MaskConfig(views=VIEWS),
        block_megabytes=1024,
        workers=1,
    )
    prepare(config, folder)  # trains the vocabulary, and compiles
    vocab = TokenizerConfig(vocab=str(folder / "tokenizer"))
    dynamic = config.model_copy(update={"masks": MaskConfig(mode="dynamic"), "tokenizer": vocab})
    began = time.process_time()
    prepare(dynamic, folder.with_name("dynamic"))
    return Corpus.open(folder), time.process_time() - began


def ratio(ours: Callable[[], object], theirs: Callable[[], object], keep: int = 1) -> tuple[float, float, float]:
    """(median seconds of ours, of theirs, median of the quotients ours / theirs), interleaved.

    ``keep``: batches of each side that stay alive. With 1 the memory of a batch is that of one before it, still in the
    cache; with more batches than a round has all of it is new, and the system hands out its pages.
    """
    times: tuple[list[float], list[float]] = ([], [])
    calls = max(4, keep)
    for call in (ours, theirs):
        call()
    for _ in range(ROUNDS):
        for call, spent in ((ours, times[0]), (theirs, times[1])):
            alive: deque[object] = deque(maxlen=keep)
            began = time.process_time_ns()
            for _ in range(calls):
                alive.append(call())
            spent.append((time.process_time_ns() - began) / calls / 1e9)
            del alive
    quotients = [a / b for a, b in zip(*times, strict=True)]
    return statistics.median(times[0]), statistics.median(times[1]), statistics.median(quotients)


def masking(corpus: Corpus) -> list[Bar]:
    """Bar 6: a masked batch against copies of two int64 [256, 512] arrays (ids and labels).

    *used memory*: both sides write into memory that a batch before has given back, as the training's loader does.
    *new memory*: 64 batches of each side stay alive, so that the system hands out its pages anew.
    """
    split = corpus.split("train")
    whole = np.flatnonzero(split.lengths(np.arange(len(split))) == LENGTH)
    draw = np.random.default_rng(0)
    batches = [draw.choice(whole, BATCH) for _ in range(64)]
    turn = iter(range(1 << 60))

    def index() -> np.ndarray:
        return batches[next(turn) % len(batches)]

    plain = [split.gather(batch).ids.astype(np.int64) for batch in batches]  # so many that neither side stays cached
    targets = [np.empty_like(plain[0]) for _ in range(2)]
    epochs = np.zeros(BATCH, np.int64)

    def copies(into: Callable[[int], np.ndarray]) -> object:
        out = [into(number) for number in range(2)]
        for target in out:
            np.copyto(target, plain[next(turn) % len(plain)])
        return out

    manifest = json.loads(json.dumps(corpus.manifest))
    manifest["masking"]["mode"] = "dynamic"
    drawn = Corpus(corpus.folder, manifest).split("train")
    out: list[Bar] = []
    rooms: dict[str, tuple[int, Empty, Callable[[int], np.ndarray]]] = {
        "used memory": (1, Buffers(), targets.__getitem__),
        "new memory": (64, np.empty, lambda number: np.empty_like(plain[0])),
    }
    for memory, (keep, empty, into) in rooms.items():
        for name, part in (("stored", split), ("dynamic", drawn)):
            ours, theirs, quotient = ratio(
                partial(_masked, part, index, epochs, empty), partial(copies, into), keep=keep
            )
            out.append((f"6 gather + {name} mask / two int64 copies, {memory}", quotient, "x"))
            out.append((f"6 gather + {name} mask, {memory}", ours * 1e3, "ms"))
        out.append((f"6 two int64 copies, {memory}", theirs * 1e3, "ms"))
    return out


def _masked(split: Split, index: Callable[[], np.ndarray], epochs: np.ndarray, empty: Empty) -> object:
    return split.masked(index(), epochs, empty)


def synthetic(folder: Path, tokens: int) -> Split:
    """Full sequences of random ids, in four shards."""
    draw, room = np.random.default_rng(0), LENGTH - 2
    n = tokens // LENGTH // 4
    shards = []
    for number in range(4):
        own = folder / str(number) / "train"
        view = own / "sequences" / "packed"
        view.mkdir(parents=True)
        draw.integers(104, 21128, n * room, np.uint16).tofile(own / "tokens.bin")
        draw.integers(0, 256, (n * room + 7) // 8, np.uint8).tofile(own / "words.bits")
        np.arange(n + 1, dtype=np.int64).tofile(view / "offsets.bin")
        np.stack([np.arange(n) * room, np.full(n, room)], axis=1).astype(np.int64).tofile(view / "pieces.bin")
        facts = {"tokens": n * room, "sequences": n, "pieces": n, "masked": []}
        shards.append(ShardSplit(own, facts, {"variant": "packed", "dtype": "uint16", "pairs": False}))
    special_ids = {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
    manifest = {
        "masking": {"mode": "dynamic", "seed": 0},
        "tokenizer": {"special_ids": special_ids, "vocab_size": 21128, "dtype": "uint16"},
        "splits": {"train": {"tokens": 4 * n * room}},
        "shards": [{"ordinal": number} for number in range(4)],
    }
    return Split(shards, manifest, "train", np.zeros(21128, np.int64), None, False)


def as_arrow(split: Split, folder: Path) -> Any:
    """The same sequences as lists in a dataset of ``datasets``, 2.13 bytes a token as ours, in its numpy format.

    Its integers are int64 unless it is told otherwise; told to leave the ids as uint16, it is faster by 3 %.
    """
    import pyarrow as pa
    from datasets import Dataset, load_from_disk

    everything = split.gather(np.arange(len(split)))
    assert everything.bits is not None
    columns = {}
    for name, flat, size in (("ids", everything.ids, LENGTH), ("bits", everything.bits, LENGTH // 8)):
        ends = np.arange(len(split) + 1, dtype=np.int32) * size
        columns[name] = pa.ListArray.from_arrays(pa.array(ends), pa.array(flat))
    Dataset(pa.table(columns)).save_to_disk(str(folder))
    return load_from_disk(str(folder)).with_format("numpy", dtype=np.uint16)


def reading(folder: Path) -> list[Bar]:
    """Bar 7: 256 random sequences of 512 tokens, by ``datasets`` in its numpy format and by us.

    The bar is the row in which both give ids and word bits. The last row is the read of training: it gives masked ids,
    positions and labels besides, with masks drawn from the bits.
    """
    split = synthetic(folder / "ours", TOKENS)
    arrow = as_arrow(split, folder / "arrow")
    draw = np.random.default_rng(1)
    batches = [draw.integers(0, len(split), BATCH) for _ in range(64)]
    turn = iter(range(1 << 60))

    def index() -> np.ndarray:
        return batches[next(turn) % len(batches)]

    buffers, epochs, both = Buffers(), np.zeros(BATCH, np.int64), ["ids", "bits"]
    ways: dict[str, tuple[Callable[[], object], list[str]]] = {
        "ids": (partial(_read, split, index, False, buffers), ["ids"]),
        "ids and word bits": (partial(_read, split, index, True, buffers), both),
        "masked, for training": (partial(_masked, split, index, epochs, buffers), both),
    }
    out: list[Bar] = []
    for name, (read, columns) in ways.items():
        rival = arrow.select_columns(columns)
        ours, theirs, quotient = ratio(read, lambda rival=rival: rival[index().tolist()])  # type: ignore[misc]
        what = " and ".join(columns).replace("bits", "word bits")
        out.append((f"7 batched random reads ({name}) / Arrow's ({what})", 1 / quotient, "x"))
        out.append((f"7 batched random reads ({name})", BATCH / ours / 1e6, "M sequences/s"))
        if name != "masked, for training":
            out.append((f"7 Arrow's batched random reads ({what})", BATCH / theirs / 1e6, "M sequences/s"))
    return out


def _read(split: Split, index: Callable[[], np.ndarray], bits: bool, empty: Empty) -> object:
    return split.gather(index(), bits, empty)


def variants(corpus: Corpus, seconds: float) -> list[Bar]:
    """Share of each kind's index, and of stored views of masks, in the whole preparation."""
    shard = corpus.split("train")._shards[0]
    tokens, bits = shard.arrays.tokens, shard.arrays.bits
    from data_prep.shards import read_index

    index = read_index(shard.folder / "tokens.idx")
    continues = np.unpackbits(bits, count=len(tokens), bitorder="little").astype(np.bool_)
    out: list[Bar] = []
    for kind, own in KINDS.items():
        config = SequenceConfig.model_validate({"kind": kind, "max_length": LENGTH, **own})
        spent = []
        for _ in range(6):
            lengths = index.lengths.astype(np.int64)
            units = Units(lengths, index.documents, tokens, continues, 1337, np.uint64(0))
            began = time.process_time()
            VARIANTS[kind](units, config)
            spent.append(time.process_time() - began)
        took = statistics.median(spent[1:])
        out.append((f"12 {kind}", 1e9 * took / len(tokens), "ns/token"))
        out.append((f"12 {kind} / whole preparation", 100 * took / seconds, "%"))
    manifest = corpus.manifest["tokenizer"]
    for name, masks in (("four stored views", MaskConfig()), ("n-grams", MaskConfig(ngram=[0.4, 0.3, 0.2, 0.1]))):
        rule = mask_rule(masks, "train", manifest["special_ids"], manifest["vocab_size"])
        arrays = Arrays(*(getattr(shard.arrays, field) for field in Arrays.__dataclass_fields__))
        mapped = Mapped([arrays], wide=False, pairs=False)
        spent = []
        for _ in range(6):
            with tempfile.TemporaryDirectory() as folder:
                began = time.process_time()
                write_masks(Path(folder), mapped, rule, (1337, np.uint64(0)), VIEWS)
                spent.append(time.process_time() - began)
        took = statistics.median(spent[1:]) / VIEWS
        out.append((f"masks, {name}", 1e9 * took / len(tokens), "ns/token/view"))
        out.append((f"masks, {name} / whole preparation", 100 * VIEWS * took / seconds, "%"))
    return out


def read_texts(paths: list[str], limit: int = 20_000_000) -> list[str]:
    """Texts of files, up to about ``limit`` characters."""
    config = DataConfig(sources=[SourceConfig(path=path) for path in paths])
    texts, total = [], 0
    for reader in open_sources(config):
        for block in reader.blocks(1 << 40):
            for document in reader.documents(block, Counts()):
                texts.append(document.text)
                total += len(document.text)
                if total >= limit:
                    return texts
    return texts


if __name__ == "__main__":
    for bar, value, unit in run(read_texts(sys.argv[1:])):
        print(f"{bar:70s} {value:10.3f} {unit}")

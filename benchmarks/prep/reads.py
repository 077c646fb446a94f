"""Reading prepared data: masked batches against plain copies, random reads against Arrow, views against preparation.

`python -m benchmarks.prep.reads FILES...` (text or JSONL) prints one line a bar; rivals are interleaved.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.block import write_masks
from data_prep.config import DataConfig, MaskConfig, SegmentConfig, SequenceConfig, SourceConfig, TokenizerConfig
from data_prep.corpus import Corpus
from data_prep.documents import Counts
from data_prep.mapped import Arrays, Mapped
from data_prep.masking import mask_rule
from data_prep.pipeline import prepare
from data_prep.readers import open_sources
from data_prep.variants import VARIANTS, Units

BATCH, LENGTH, ROUNDS = 256, 512, 25
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
        return [*reading(corpus, Path(folder) / "arrow"), *variants(corpus, seconds)]


def prepared(source: Path, folder: Path) -> tuple[Corpus, float]:
    """The texts in packed sequences, and the processor seconds of preparing them without masks."""
    config = DataConfig(
        sources=[SourceConfig(path=str(source))],
        segment=SegmentConfig(),
        tokenizer=TokenizerConfig(vocab_size=8000, train_characters=500_000),
        sequences=SequenceConfig(kind="packed", max_length=LENGTH),
        masks=MaskConfig(views=4),
        block_megabytes=1024,
        workers=1,
    )
    prepare(config, folder)  # trains the vocabulary, and compiles
    vocab = TokenizerConfig(vocab=str(folder / "tokenizer"))
    dynamic = config.model_copy(update={"masks": MaskConfig(mode="dynamic"), "tokenizer": vocab})
    began = time.process_time()
    prepare(dynamic, folder.with_name("dynamic"))
    return Corpus.open(folder), time.process_time() - began


def ratio(ours: Callable[[], object], theirs: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float, float]:
    """(median seconds of ours, of theirs, median of the quotients ours / theirs), interleaved."""
    times: tuple[list[float], list[float]] = ([], [])
    for call in (ours, theirs):
        call()
    for _ in range(rounds):
        for call, spent in ((ours, times[0]), (theirs, times[1])):
            began = time.process_time_ns()
            for _ in range(4):
                call()
            spent.append((time.process_time_ns() - began) / 4e9)
    quotients = [a / b for a, b in zip(*times, strict=True)]
    return statistics.median(times[0]), statistics.median(times[1]), statistics.median(quotients)


def reading(corpus: Corpus, folder: Path) -> list[Bar]:
    from datasets import Dataset, Features, Sequence, Value, load_from_disk

    split = corpus.split("train")
    whole = np.flatnonzero(split.lengths(np.arange(len(split))) == LENGTH)
    draw = np.random.default_rng(0)
    batches = [draw.choice(whole, BATCH) for _ in range(64)]
    turn = iter(range(1 << 60))

    def index() -> np.ndarray:
        return batches[next(turn) % len(batches)]

    everything = split.gather(whole).ids.reshape(-1, LENGTH)
    rows = Dataset.from_dict({"ids": everything.astype(np.uint16)}, Features({"ids": Sequence(Value("uint16"))}))
    rows.save_to_disk(str(folder))
    arrow = load_from_disk(str(folder)).with_format("numpy")
    places = {number: place for place, number in enumerate(whole.tolist())}
    assert np.array_equal(arrow[[places[n] for n in batches[0]]]["ids"].ravel(), split.gather(batches[0]).ids)

    plain = [split.gather(batch).ids for batch in batches]  # as many as the batches, so that neither side stays cached
    epochs = np.zeros(BATCH, np.int64)

    def copies() -> object:
        return plain[next(turn) % len(plain)].copy(), plain[next(turn) % len(plain)].copy()

    def dynamic() -> object:
        return drawn.masked(index(), epochs)

    manifest = json.loads(json.dumps(corpus.manifest))
    manifest["masking"]["mode"] = "dynamic"
    drawn = Corpus(corpus.folder, manifest).split("train")
    out: list[Bar] = []
    for name, call in (("stored", lambda: split.masked(index(), epochs)), ("dynamic", dynamic)):
        ours, theirs, quotient = ratio(call, copies)
        out.append((f"6 gather + {name} mask {BATCH}x{LENGTH} / two int64 copies", quotient, "x"))
        out.append((f"6 gather + {name} mask", ours * 1e3, "ms"))
    out.append(("6 two int64 copies", theirs * 1e3, "ms"))
    random = [places[n] for n in batches[0].tolist()]
    ours, theirs, quotient = ratio(lambda: split.gather(index()), lambda: arrow[random]["ids"])
    out.append(("7 batched random reads vs Arrow (ids and word bits)", 1 / quotient, "x"))
    out.append(("7 batched random reads", BATCH / ours / 1e6, "M sequences/s"))
    return out


def variants(corpus: Corpus, seconds: float) -> list[Bar]:
    """Share of each kind's index, and of one stored view of masks, in the whole preparation."""
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
        out.append((f"12 {kind} / whole preparation", 100 * statistics.median(spent[1:]) / seconds, "%"))
    manifest = corpus.manifest["tokenizer"]
    for name, masks in (("one stored view", MaskConfig()), ("n-grams", MaskConfig(ngram=[0.4, 0.3, 0.2, 0.1]))):
        rule = mask_rule(masks, "train", manifest["special_ids"], manifest["vocab_size"])
        arrays = Arrays(*(getattr(shard.arrays, field) for field in Arrays.__dataclass_fields__))
        mapped = Mapped([arrays], wide=False, pairs=False)
        spent = []
        for attempt in range(6):
            with tempfile.TemporaryDirectory() as folder:
                began = time.process_time()
                write_masks(Path(folder) / "view", mapped, rule, (1337, attempt, np.uint64(0)), np.dtype(np.uint16))
                spent.append(time.process_time() - began)
        took = statistics.median(spent[1:])
        out.append((f"masks, {name}", 1e9 * took / len(tokens), "ns/token"))
        out.append((f"masks, {name} / whole preparation", 100 * took / seconds, "%"))
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

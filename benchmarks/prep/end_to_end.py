"""Bars 1, 2 and 3: from JSON lines to a shard in place, against others and against plain decoding.

"dynamic" is what the bars mean: read, decode, clean, words, tokens, bits, index, statistics, checksums, write, sync,
rename. "stored" draws and stores four views of masks as well; "no words" leaves out the segmenter. Each process opens
tokenizer and segmenter once, in the unmeasured round.

python -m benchmarks.prep.end_to_end VOCABULARY FILES...
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.prep.peers import megatron_like, minirbt_path
from benchmarks.prep.timing import Row, Steps, interleaved, show, texts_of
from data_prep import block, clean, encode
from data_prep.config import DataConfig, MaskConfig, SegmentConfig, SequenceConfig, SourceConfig, TokenizerConfig
from data_prep.readers import open_sources
from data_prep.segment import open_segmenter
from data_prep.shards import ShardWriter, SplitWriter
from data_prep.stream import Stream
from data_prep.tokenizer import open_tokenizer

PEER_MEGABYTES, SLOW_MEGABYTES = 2.0, 0.15
"""Of text that the others get: their time is in proportion to it."""


def write_jsonl(path: Path, texts: list[str]) -> float:
    """``texts`` as records; returns their megabytes as UTF-8."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    return sum(len(text.encode("utf-8")) for text in texts) / 1e6


def first(texts: list[str], megabytes: float) -> list[str]:
    """Some of the texts, taken evenly."""
    total = sum(map(len, texts)) * 3 / 1e6
    return texts[:: max(1, round(total / megabytes))]


def task_for(source: Path, vocabulary: Path, data: Path, name: str = "benchmark", **changes: Any) -> block.Task:
    """The one block of ``source``, with its tokenizer in place."""
    tokenizer = TokenizerConfig(vocab=str(vocabulary))
    config = DataConfig(sources=[SourceConfig(path=str(source))], tokenizer=tokenizer, **changes)
    (data / "shards").mkdir(parents=True, exist_ok=True)
    open_tokenizer(vocabulary, tokenizer).save(data / "tokenizer")
    (reader,) = open_sources(config)
    (whole,) = reader.blocks(1 << 40)
    return block.Task(config, reader, whole, 0, f"00000-{name}", data, int(0.01 * 2**64))


def split_by_step(task: block.Task) -> dict[str, float]:
    """Processor seconds of each step of one shard."""
    reader = task.reader
    owners: list[tuple[Any, str, str]] = [
        (clean, "raw_stream", "code points"),
        (block, "clean_texts", "clean"),
        (encode, "cut", "sentences"),
        (encode, "_pack", "sentences"),
        (Stream, "hashes", "hash, bytes"),
        (encode.Encoded, "chosen", "bits, split"),
        (block, "write_views", "index, masks"),
        (ShardWriter, "finish", "checksums, sync"),
        (SplitWriter, "add", "write"),
        (SplitWriter, "close", "write"),
        (block, "statistics", "statistics"),
        (block, "note_unknown", "statistics"),
        (encode.Encoded, "texts_of", "statistics"),
        (block, "opened", "start-up"),
    ]
    saved = [(owner, name, vars(owner)[name]) for owner, name, _ in owners]
    opened = (
        open_segmenter(task.config.segment),
        open_tokenizer(task.data / "tokenizer", task.config.tokenizer),
    )
    kinds = [(type(opened[0]), "starts", "words"), (type(opened[1]), "encode_stream", "tokens")]
    inherited = [(kind, name) for kind, name, _ in kinds if name not in vars(kind)]
    saved += [(kind, name, vars(kind)[name]) for kind, name, _ in kinds if name in vars(kind)]
    steps = Steps()
    try:
        for owner, name, step in [*owners, *kinds]:
            setattr(owner, name, steps.timed(step, getattr(owner, name)))
        reader.texts = steps.timed_items("read, JSON", reader.texts)  # type: ignore[method-assign]
        block.prepare_block(task)
    finally:
        for owner, name, value in saved:
            setattr(owner, name, value)
        for kind, name in inherited:
            delattr(kind, name)
        del reader.texts  # type: ignore[misc]
    return steps.seconds


def run(texts: list[str], vocabulary: Path) -> list[Row]:
    """Bars 1 to 3, and where the time goes."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    folder = Path(tempfile.mkdtemp(prefix="prep-benchmark-"))
    try:
        size = write_jsonl(folder / "all.jsonl", texts)
        some, few = first(texts, PEER_MEGABYTES), first(texts, SLOW_MEGABYTES)
        peer_size = write_jsonl(folder / "some.jsonl", some)
        few_size = write_jsonl(folder / "few.jsonl", few)
        masks = {"dynamic": MaskConfig(mode="dynamic"), "stored": MaskConfig()}
        length = SequenceConfig(max_length=512)
        tasks = {
            name: task_for(folder / "all.jsonl", vocabulary, folder / "data", name, masks=rule, sequences=length)
            for name, rule in masks.items()
        }
        tasks["no words"] = task_for(
            folder / "all.jsonl",
            vocabulary,
            folder / "data",
            "none",
            masks=masks["dynamic"],
            segment=SegmentConfig(kind="none"),
        )
        content = "\n".join(texts).encode("utf-8")
        seconds = interleaved(
            {
                "decode": lambda: content.decode("utf-8"),
                **{name: lambda task=task: block.prepare_block(task) for name, task in tasks.items()},
                "megatron": lambda: megatron_like(folder / "some.jsonl", vocabulary, folder),
                "minirbt": lambda: minirbt_path(few, vocabulary, folder),
            }
        )
        sizes = {"decode": len(content) / 1e6, "megatron": peer_size, "minirbt": few_size}
        speed = {name: sizes.get(name, size) / value for name, value in seconds.items()}
        rows: list[Row] = [(f"MB/s a core, {name}", value, "MB/s") for name, value in speed.items()]
        for name in tasks:
            rows += [
                (f"1 end to end ({name}) / Megatron-like preprocess", speed[name] / speed["megatron"], "x"),
                (f"2 end to end ({name}) / MiniRBT's path", speed[name] / speed["minirbt"], "x"),
                (f"3 end to end ({name}) / bytes.decode", speed[name] / speed["decode"], "of it"),
            ]
        for name in ("dynamic", "stored"):
            parts = split_by_step(tasks[name])
            total, characters = sum(parts.values()), sum(map(len, texts))
            for step, value in sorted(parts.items(), key=lambda item: -item[1]):
                rows.append((f"  {name}: {step}, {value / total:.1%}", value / characters * 1e9, "ns a character"))
        return rows
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    show(run(texts_of(sys.argv[2:], 20), Path(sys.argv[1])))

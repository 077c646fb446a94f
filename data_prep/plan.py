"""The first two phases of preparation: which blocks there are, and what each of them needs to know of the whole corpus.

``plan.json`` is written before any work and says what the folder is made from: another configuration or other input
is refused from then on. ``tasks.json`` follows when the vocabulary stands. From the two any process on any machine
knows every task, in one order, whatever the number of workers.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from configs.errors import DataError, output_error
from configs.loader import differences
from configs.loader import identity as identity_of
from data_prep.atomic import aside_of, put_into_place, sync_all
from data_prep.block import Task, cleaned
from data_prep.config import DataConfig, SourceConfig
from data_prep.documents import Block, Counts
from data_prep.readers import READERS, Reader, open_sources
from data_prep.readers.streams import compression
from data_prep.rewrite import describe_rewrite
from data_prep.segment import describe_segmenter
from data_prep.shards import read_manifest, write_manifest
from data_prep.similar import make_similar
from data_prep.sources import blocks_of, whole_shard
from data_prep.tokenizer import open_tokenizer, train_tokenizer
from data_prep.tokenizer_base import Tokenizer

SMALL_CORPUS_BYTES = 32 << 20
UNPACKED = 3
"""Bytes of text in a byte of a compressed file, about (Chinese with gzip: 2.9)."""
PLAN, TASKS = "plan.json", "tasks.json"


@dataclass(frozen=True)
class Job:
    """A preparation whose blocks can be worked on, each by itself, anywhere."""

    config: DataConfig
    folder: Path
    readers: list[Reader]
    tasks: list[Task]
    segmenter: dict[str, str]

    @classmethod
    def open(cls, folder: Path) -> Job:
        """The job that was planned in ``folder``, perhaps by another machine.

        Raises:
            DataError: nothing is planned there; its segmenter or OpenCC is not the planned one.
        """
        plan, facts = read_manifest(folder, PLAN), read_manifest(folder, TASKS)
        config = DataConfig.model_validate(as_of_now(plan["identity"]))
        changed = differences(facts["segmenter"], describe_segmenter(config.segment), "segmenter")
        changed += differences(facts["rewrite"], describe_rewrite(config.clean), "rewrite")
        if changed:
            refuse(folder, changed)
        sources = [SourceConfig.model_validate(source) for source in plan["sources"]]
        readers = [READERS[source.kind](source, index) for index, source in enumerate(sources)]
        blocks = [Block(**block) for block in plan["blocks"]]
        tasks = [
            Task(config, readers[block.source], block, ordinal, name, folder, facts["held_out_below"])
            for ordinal, (block, name) in enumerate(zip(blocks, facts["shards"], strict=True))
        ]
        return cls(config, folder, readers, tasks, facts["segmenter"])

    def shard(self, task: Task) -> Path:
        return self.folder / "shards" / task.name

    @property
    def missing(self) -> list[Task]:
        """The tasks whose shards are not there, or not sound."""
        return [task for task in self.tasks if whole_shard(self.shard(task)) is None]

    @property
    def seconds(self) -> float:
        """Since the plan was written."""
        return max(time.time() - (self.folder / PLAN).stat().st_mtime, 0.0)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return open_tokenizer(self.folder / "tokenizer", self.config.tokenizer)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the ``OSError`` of a failed write into an :class:`OutputError`."""
    try:
        yield
    except OSError as error:
        raise output_error(folder, error) from error


# ---------------------------------------------------------------- plan


def plan(config: DataConfig, folder: Path) -> tuple[list[Reader], list[Block]]:
    """Cut the sources into blocks and write ``plan.json``, or find that it says the same already.

    Raises:
        DataError: a source is unusable; what is in the folder was made from something else.
    """
    readers = open_sources(config)
    blocks = blocks_of(config, readers)
    content = {
        "identity": identity_of(config),
        "inputs": {reader.path: file_state(reader) for reader in readers},
        "vocabulary": vocabulary_hash(config),
        "sources": [reader.source.model_dump() for reader in readers],
        "blocks": [asdict(block) for block in blocks],
    }
    content = json.loads(json.dumps(content))  # as it will be read
    if (folder / PLAN).exists():
        changed = changes(read_manifest(folder, PLAN), content)
        if not changed:
            return readers, blocks
        if begun(folder):
            refuse(folder, changed)
    elif begun(folder):
        raise DataError(
            f"{folder} holds shards or a vocabulary, but no {PLAN} that tells what they were made from. Delete "
            f"{folder}, or choose another data.folder."
        )
    with writing(folder):
        write_manifest(folder, content, PLAN)
    return readers, blocks


def begun(folder: Path) -> bool:
    """Whether work was done in the folder that a change of plan would throw away."""
    shards = folder / "shards"
    return (folder / "tokenizer").exists() or (
        shards.is_dir() and any(not p.name.startswith(".") for p in shards.iterdir())
    )


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Lines on what differs between two plans; [] when they are the same."""
    found = differences(as_of_now(before["identity"]), after["identity"])
    then, now = before["inputs"], after["inputs"]
    for path in dict.fromkeys([*then, *now]):
        if path not in now or path not in then:
            found.append(f"{path}: {'a new file' if path in now else 'not among the sources any more'}")
        elif then[path] != now[path]:
            same_size = then[path][:1] == now[path][:1]
            found.append(
                f"{path}: written to since (of the same size)"
                if same_size
                else f"{path}: {then[path][0]} -> {now[path][0]} bytes"
            )
    if before["vocabulary"] != after["vocabulary"] and not found:
        found.append("data.tokenizer.vocab: its entries are not those that the data was prepared with")
    if not found and before["blocks"] != after["blocks"]:
        found.append("the blocks that the sources are cut into")
    return found


def refuse(folder: Path, changed: list[str]) -> None:
    """Raise DataError on what differs from what ``folder`` was prepared from."""
    shown = "\n  - ".join(changed[:20])
    raise DataError(
        f"{folder} holds data that was prepared from another configuration or other files:\n  - {shown}\n"
        f"Go back to the old values, choose another data.folder (or run `name`), or delete {folder}."
    )


def as_of_now(identity: dict[str, Any]) -> dict[str, Any]:
    """The identity in an older manifest with the fields that came since then, which had their defaults."""
    tokenizer = identity.get("tokenizer", {})
    if tokenizer.get("kind") == "sentencepiece" and tokenizer.get("lowercase") is True:
        # It was the default, without effect, before it was refused there.
        identity = {**identity, "tokenizer": {**tokenizer, "lowercase": False}}
    try:
        return identity_of(DataConfig.model_validate(identity))
    except ValueError:  # fields that are no more: the differences will show them
        return identity


def file_state(reader: Reader) -> list[int]:
    """Size and time of change of the reader's file; [] when it is not one."""
    stat = os.stat(reader.path) if os.path.isfile(reader.path) else None
    return [stat.st_size, stat.st_mtime_ns] if stat else []


def vocabulary_hash(config: DataConfig) -> str | None:
    vocab = config.tokenizer.vocab
    return None if vocab is None else open_tokenizer(Path(vocab), config.tokenizer).hash


# ---------------------------------------------------------------- tasks


def settle(config: DataConfig, folder: Path, readers: list[Reader], blocks: list[Block]) -> Job:
    """The vocabulary, the border between the splits, and with them the names of all shards: ``tasks.json``.

    Raises:
        DataError: the corpus or the vocabulary is unusable; the segmenter is another one than at the beginning.
    """
    if not (folder / TASKS).exists():
        below = held_out_threshold(config, readers, blocks) if config.sources else 0
        with writing(folder):
            tokenizer = make_tokenizer(config, readers, blocks, folder)
            similar = make_similar(config.masks.similar, tokenizer, folder)
        segmenter, rewrite = describe_segmenter(config.segment), describe_rewrite(config.clean)
        key: list[Any] = [identity_of(config), tokenizer.hash, segmenter, below, similar, *rewrite.items()]
        if config.dedup.wanted:  # what a shard leaves out depends on all inputs
            key.append([file_state(reader) for reader in readers])
        names = [shard_name(ordinal, key, readers[b.source], b) for ordinal, b in enumerate(blocks)]
        with writing(folder):
            write_manifest(
                folder, {"held_out_below": below, "segmenter": segmenter, "rewrite": rewrite, "shards": names}, TASKS
            )
    return Job.open(folder)


def make_tokenizer(config: DataConfig, readers: list[Reader], blocks: list[Block], folder: Path) -> Tokenizer:
    """Open the given vocabulary, or train one on the corpus; saved in ``folder/tokenizer`` either way."""
    target = folder / "tokenizer"
    if not target.exists():
        aside = aside_of(target)
        if config.tokenizer.vocab is None:
            train_tokenizer(all_texts(config, readers, blocks), config.tokenizer, aside)
        else:
            open_tokenizer(Path(config.tokenizer.vocab), config.tokenizer).save(aside)
        sync_all(aside)
        put_into_place(aside, target, lambda there: True)
    return open_tokenizer(target, config.tokenizer)


def all_texts(config: DataConfig, readers: list[Reader], blocks: list[Block]) -> Iterator[str]:
    """Cleaned texts from the beginning of the corpus."""
    for block in blocks:
        for stream in cleaned(config, readers[block.source], block, Counts()):
            yield from stream.texts()


def held_out_threshold(config: DataConfig, readers: list[Reader], blocks: list[Block]) -> int:
    """The hash below which a document is held out.

    In a large corpus that is the share itself. A small one is read once to take the exact quantile, because
    there chance alone could leave no document in one of the splits.
    """
    share = int(config.held_out * 2**64)
    paths = {reader.path for reader in readers}
    if any(not os.path.isfile(p) for p in paths) or sum(os.path.getsize(p) for p in paths) > SMALL_CORPUS_BYTES:
        return share
    counts = Counts()
    streams = (stream for block in blocks for stream in cleaned(config, readers[block.source], block, counts))
    hashes: list[int] = sorted({key for stream in streams for key in stream.hashes(config.seed)[0].tolist()})
    if len(hashes) < 2:
        dropped = ", ".join(f"{n} {reason}" for reason, n in counts.dropped.items()) or "nothing dropped"
        raise DataError(
            f"The corpus has {len(hashes)} usable documents ({dropped}); at least two different ones are needed, one "
            "of them for the held-out split. In .txt files a blank line stands between documents."
        )
    return hashes[max(1, min(len(hashes) - 1, round(config.held_out * len(hashes))))]


def shard_name(ordinal: int, key: list[Any], reader: Reader, block: Block) -> str:
    """Ordinal and a hash of all that the shard's content depends on."""
    content = json.dumps([*key, asdict(block), file_state(reader)], sort_keys=True, ensure_ascii=True)
    return f"{ordinal:05d}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def block_size(task: Task) -> int:
    """What the block weighs beside others: bytes, about (or the reader's unit); 0 when it is not known."""
    block = task.block
    if block.stop is not None:
        size = block.stop - block.start
    else:
        size = os.path.getsize(block.path) if os.path.isfile(block.path) else 0
    return size * UNPACKED if compression(block.path) else size

"""Raw files -> a prepared data folder, step by step; restartable, and the same bytes for any number of workers."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import DataError, OutputError, output_error
from configs.loader import differences
from configs.loader import identity as identity_of
from data_prep.block import Task, cleaned, prepare_block
from data_prep.config import DataConfig
from data_prep.corpus import Corpus
from data_prep.documents import Block, Counts
from data_prep.readers import Reader, open_sources
from data_prep.segment import describe_segmenter
from data_prep.shards import (
    file_hash,
    map_array,
    read_manifest,
    shard_trouble,
    sync,
    write_array,
    write_json,
)
from data_prep.shards import write_manifest as write_sealed
from data_prep.tokenizer import open_tokenizer, train_tokenizer
from data_prep.tokenizer_base import Tokenizer

SMALL_CORPUS_BYTES = 32 << 20


@dataclass(frozen=True)
class Progress:
    """``blocks``: finished so far, of ``total_blocks``; ``documents``, ``megabytes`` of text, ``seconds`` so far."""

    blocks: int
    total_blocks: int
    documents: int
    megabytes: float
    seconds: float


def prepare(config: DataConfig, folder: Path, on_progress: Callable[[Progress], None] | None = None) -> Corpus:
    """Prepare ``config.sources`` into ``folder``, or return at once when that is done already.

    Finished shards of an interrupted preparation are kept. The manifest is written last. Without sources it lists no
    shards, and the tokenizer is all there is.

    Raises:
        DataError: a source, vocabulary or the whole corpus is unusable; the folder holds something else.
        OutputError: the folder cannot be written, or the disk is full.
    """
    if (folder / "manifest.json").exists():  # without the lock: finished data may be read-only and in use
        return reuse(config, folder)
    with locked(folder):
        if (folder / "manifest.json").exists():
            return reuse(config, folder)
        began = time.monotonic()
        readers = open_sources(config)
        blocks = [(reader, block) for reader in readers for block in reader.blocks(config.block_megabytes << 20)]
        threshold = held_out_threshold(config, blocks) if config.sources else 0
        with writing(folder):
            tokenizer = make_tokenizer(config, readers, folder)
        identity = identity_of(config)
        key = [identity, tokenizer.hash, describe_segmenter(config.segment), threshold]
        tasks = [
            Task(config, reader, block, ordinal, shard_name(ordinal, key, reader, block), folder, threshold)
            for ordinal, (reader, block) in enumerate(blocks)
        ]
        shards = run_tasks(tasks, config, folder, began, on_progress)
        with writing(folder):
            write_manifest(config, folder, readers, tokenizer, tasks, shards, time.monotonic() - began)
        return Corpus.open(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that two preparations never write into one folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "shards").mkdir(exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise output_error(folder, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise DataError(f"{folder} is being prepared by another process; wait for it, or stop it.") from None
    finally:
        os.close(handle)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the ``OSError`` of a failed write into an :class:`OutputError`."""
    try:
        yield
    except OSError as error:
        raise output_error(folder, error) from error


def reuse(config: DataConfig, folder: Path) -> Corpus:
    """The finished corpus in ``folder``, unless it was made from something else."""
    corpus = Corpus.open(folder)
    changed = differences(as_of_now(corpus.manifest["identity"]), identity_of(config))
    for name, size in corpus.manifest["inputs"].items():
        now = Path(name).stat().st_size if Path(name).is_file() else size  # gone since then: not needed any more
        if now != size:
            changed.append(f"{name}: {size} -> {now} bytes")
    vocab = config.tokenizer.vocab
    if vocab is not None and Path(vocab).exists():
        now_hash, then_hash = open_tokenizer(Path(vocab), config.tokenizer).hash, corpus.manifest["tokenizer"]["hash"]
        if now_hash != then_hash:
            changed.append(f"{vocab}: its entries are not those that the data was prepared with")
    words = config.segment.user_dictionary
    dictionary_read = words is not None and Path(words).exists()
    if dictionary_read and describe_segmenter(config.segment) != corpus.manifest["segmenter"]:
        changed.append(f"{words}: it or jieba is not what the data was prepared with")
    if changed:
        shown = "\n  - ".join(changed[:20])
        raise DataError(
            f"{folder} holds data that was prepared from another configuration or other files:\n  - {shown}\n"
            f"Go back to the old values, choose another data.folder (or run `name`), or delete {folder}."
        )
    return corpus


def as_of_now(identity: dict[str, Any]) -> dict[str, Any]:
    """The identity in an older manifest with the fields that came since then, which had their defaults."""
    try:
        return identity_of(DataConfig.model_validate(identity))
    except ValueError:  # fields that are no more: the differences will show them
        return identity


def make_tokenizer(config: DataConfig, readers: list[Reader], folder: Path) -> Tokenizer:
    """Open the given vocabulary, or train one on the corpus; saved in ``folder/tokenizer`` either way."""
    target, note = folder / "tokenizer", folder / "tokenizer" / "made-from.json"
    if config.tokenizer.vocab is not None:
        tokenizer = open_tokenizer(Path(config.tokenizer.vocab), config.tokenizer)
        shutil.rmtree(target, ignore_errors=True)  # with the note of a vocabulary that was trained here before
        tokenizer.save(target)
        return open_tokenizer(target, config.tokenizer)
    made_from: dict[str, Any] = {"sources": [s.model_dump() for s in config.sources]}
    made_from |= {"clean": config.clean.model_dump(), "tokenizer": config.tokenizer.model_dump()}
    made_from["inputs"] = [[reader.path, *file_state(reader)] for reader in readers]
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == made_from:
        return open_tokenizer(target, config.tokenizer)
    shutil.rmtree(target, ignore_errors=True)
    train_tokenizer(all_texts(config, readers), config.tokenizer, target)
    write_json(note, made_from)
    return open_tokenizer(target, config.tokenizer)


def all_texts(config: DataConfig, readers: list[Reader]) -> Iterator[str]:
    """Cleaned texts from the beginning of the corpus."""
    for reader in readers:
        for block in reader.blocks(1 << 40):
            for stream in cleaned(config, reader, block, Counts()):
                yield from stream.texts()


def held_out_threshold(config: DataConfig, blocks: list[tuple[Reader, Block]]) -> int:
    """The hash below which a document is held out.

    In a large corpus that is the share itself. A small one is read once to take the exact quantile, because
    there chance alone could leave no document in one of the splits.
    """
    share = int(config.held_out * 2**64)
    paths = {reader.path for reader, _ in blocks}
    if any(not os.path.isfile(p) for p in paths) or sum(os.path.getsize(p) for p in paths) > SMALL_CORPUS_BYTES:
        return share
    counts = Counts()
    streams = (stream for reader, block in blocks for stream in cleaned(config, reader, block, counts))
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


def file_state(reader: Reader) -> list[int]:
    """Size and time of change of the reader's file; [] when it is not one."""
    stat = os.stat(reader.path) if os.path.isfile(reader.path) else None
    return [stat.st_size, stat.st_mtime_ns] if stat else []


def check_space(tasks: list[Task], config: DataConfig, folder: Path) -> None:
    """Refuse to begin what cannot end: a low estimate of the bytes to be written against the free ones."""
    text = sum(block_size(t) * (2 if t.block.path.endswith((".gz", ".xz", ".zst")) else 1) for t in tasks)
    views = config.masks.views if config.masks.stored("train") else 0
    # A token is three bytes of Chinese text; it takes two bytes, an eighth for its word, and four in a view if masked.
    needed = text / 3 * (2.1 + 4 * config.masks.rate * views * (config.sequences.copies or 1))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"{folder} has {free / 1e9:.1f} GB free, but the shards need about {needed / 1e9:.1f} GB. Free some space, "
            "choose another data.folder, or store fewer mask views (data.masks.views, data.masks.mode=dynamic)."
        )


def run_tasks(
    tasks: list[Task],
    config: DataConfig,
    folder: Path,
    began: float,
    on_progress: Callable[[Progress], None] | None,
) -> list[dict[str, Any]]:
    """Make the shards that are missing; returns all their manifests, in order."""
    wanted = {task.name for task in tasks}
    for stale in (folder / "shards").iterdir():  # of a killed worker, or of another configuration
        if stale.name not in wanted or shard_trouble(stale, thorough=False):
            shutil.rmtree(stale, ignore_errors=True)
    missing = [task for task in tasks if not (folder / "shards" / task.name).exists()]
    check_space(missing, config, folder)
    finished: Counter[str] = Counter()
    ready = len(tasks) - len(missing)
    for facts in in_processes(missing, config.workers):
        finished.update({"blocks": 1, "documents": facts["counts"].get("documents", 0)})
        finished["bytes"] += facts["counts"].get("bytes", 0)
        if on_progress is not None:
            state = (ready + finished["blocks"], len(tasks), finished["documents"], finished["bytes"] / 1e6)
            on_progress(Progress(*state, time.monotonic() - began))
    return [read_manifest(folder / "shards" / task.name) for task in tasks]


def in_processes(tasks: list[Task], workers: int | None) -> Iterator[dict[str, Any]]:
    """Results of ``prepare_block`` as they come; a worker that dies is an error, not a hang."""
    count = min(workers or os.cpu_count() or 1, len(tasks))
    if count <= 1:
        yield from map(prepare_block, tasks)
        return
    # Spawned, not forked: tokenizers and numba keep threads, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, initializer=die_with_parent, initargs=(os.getpid(),)) as pool:
        # The largest blocks first, so that no worker is left alone with one at the end.
        running: dict[Future[dict[str, Any]], Task] = {
            pool.submit(prepare_block, task): task for task in sorted(tasks, key=block_size, reverse=True)
        }
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    yield future.result()
        except BrokenProcessPool:
            raise DataError(
                f"A preparation worker was killed while it worked on {task.block.path} or a block beside it (out of "
                "memory, most often). Lower data.workers or data.block_megabytes and start again: finished shards are "
                "kept."
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def die_with_parent(parent: int) -> None:
    """In a worker: end when the preparing process ends, even by SIGKILL (Linux; it would wait for work forever)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def block_size(task: Task) -> int:
    if task.block.stop is not None:
        return task.block.stop - task.block.start
    return os.path.getsize(task.block.path) if os.path.isfile(task.block.path) else 0


def write_manifest(
    config: DataConfig,
    folder: Path,
    readers: list[Reader],
    tokenizer: Tokenizer,
    tasks: list[Task],
    shards: list[dict[str, Any]],
    seconds: float,
) -> None:
    """Totals over the shards, the unigram counts, and the corpus hash; the manifest makes the folder complete."""
    counts: Counter[str] = Counter()
    splits: dict[str, Counter[str]] = {"train": Counter(), "held_out": Counter()}
    unigram = np.zeros(tokenizer.vocab_size, np.int64)
    for task, shard in zip(tasks, shards, strict=True):
        counts.update(shard["counts"])
        for name, total in splits.items():
            facts = shard["splits"][name]
            total.update({k: v for k, v in facts.items() if isinstance(v, int)})
            total["masked"] += sum(facts["masked"][:1])
        path = folder / "shards" / task.name / "train" / "unigram.bin"
        unigram += map_array(path, "<i8", (tokenizer.vocab_size,))
    if config.sources:
        check_splits(splits, counts)
    write_array(folder / "unigram.bin", unigram)
    listed = [
        {"name": task.name, "ordinal": task.ordinal, "splits": shard["splits"], "hash": content_hash(shard["files"])}
        for task, shard in zip(tasks, shards, strict=True)
    ]
    identity = identity_of(config)
    masking = {**config.masks.model_dump(), "held_out_rate": config.masks.rate_of("held_out"), "seed": config.seed}
    digest = json.dumps([[s["hash"] for s in listed], tokenizer.hash, masking], sort_keys=True)
    manifest = {
        "hash": hashlib.sha256(digest.encode()).hexdigest()[:32],
        "identity": identity,
        "inputs": {r.path: os.path.getsize(r.path) for r in readers if os.path.isfile(r.path)},
        "tokenizer": {
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "dtype": tokenizer.dtype.name,
            "special_ids": tokenizer.special_ids,
            "hash": tokenizer.hash,
            "trained": config.tokenizer.vocab is None,
        },
        "segmenter": describe_segmenter(config.segment),
        "variant": config.sequences.folder,
        "pairs": config.sequences.kind == "pairs",
        "max_length": config.sequences.max_length,
        "masking": masking,
        "documents": counts["documents"],
        "characters": counts["characters"],
        "text_bytes": counts["bytes"],
        "dropped": Counts(counts).dropped,
        "short_units": counts["short_units"],
        "splits": {name: dict(total) for name, total in splits.items()},
        "seconds": round(seconds, 3),
        "megabytes_per_second": round(counts["bytes"] / 1e6 / max(seconds, 1e-9), 3),
        "files": files_beside_the_shards(folder),
        "shards": listed,
    }
    write_sealed(folder, manifest)


def files_beside_the_shards(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of the unigram counts and the tokenizer's files, which are on the disk before the manifest is."""
    files = {}
    for path in [folder / "unigram.bin", *sorted(p for p in (folder / "tokenizer").iterdir() if p.is_file())]:
        sync(path)
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "xxh3": file_hash(path)}
    sync(folder / "tokenizer")
    return files


def check_splits(splits: dict[str, Counter[str]], counts: Counter[str]) -> None:
    dropped = ", ".join(f"{n} {reason}" for reason, n in Counts(counts).dropped.items()) or "nothing dropped"
    for name, total in splits.items():
        if total["sequences"] == 0:
            raise DataError(
                f"After preparation the {name} split is empty: {counts['documents']} usable documents ({dropped}). "
                "Check data.sources, and data.held_out."
            )


def content_hash(files: dict[str, dict[str, Any]]) -> str:
    text = json.dumps({name: facts["xxh3"] for name, facts in files.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def verify(folder: Path) -> list[str]:
    """Re-hash every file of a prepared folder; sentences on what is wrong, [] when it is sound."""
    manifest = read_manifest(folder)
    troubles = shard_trouble(folder, thorough=True)
    for shard in manifest["shards"]:
        where = folder / "shards" / shard["name"]
        found = shard_trouble(where, thorough=True)
        if not found and content_hash(read_manifest(where)["files"]) != shard["hash"]:
            found = [f"{where} is not the shard that the manifest of {folder} lists."]
        troubles += found
    return troubles

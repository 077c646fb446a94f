"""Preparations killed at every step of their work with files and at random moments, and started again.

``make test-prep-kill``. All starts are forked from this process, where everything is loaded already.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_prep import block, report, shards
from data_prep.atomic import ASIDE, sweep
from data_prep.config import DataConfig, MaskConfig, SegmentConfig, SimilarConfig, SourceConfig, TokenizerConfig
from data_prep.corpus import Corpus
from data_prep.pipeline import prepare
from data_prep.shards import ShardWriter, read_manifest
from data_prep.similar import make_similar
from data_prep.tokenizer import open_tokenizer
from tests.data_prep.conftest import sample_config
from tests.data_prep.sabotage import Saboteur, end_of, forked, killed_after
from tests.data_prep.test_pipeline import stable, tree
from tests.data_prep.test_similar import as_text, table

pytestmark = [pytest.mark.kill, pytest.mark.timeout(600)]

KILLS = 50
WORKERS = (1, 2, 4)
KILLED = -9


@dataclass
class Bench:
    """A small corpus, what comes out of it undisturbed, and a place for trials."""

    config: DataConfig
    expected: dict[str, str]
    manifest: dict[str, object]
    place: Path

    def start(self, folder: Path, workers: int, before: Callable[[], object] = lambda: None) -> int:
        """Begin a preparation in a child; its pid."""

        def work() -> None:
            os.fsync = lambda handle: None  # SIGKILL loses nothing that was written; only a machine's end does
            before()
            prepare(self.config.model_copy(update={"workers": workers}), folder)

        return forked(work, str(self.place / "log"))

    def check_partial(self, folder: Path) -> dict[str, int]:
        """What is there under a final name is as it will be at the end; returns inodes of finished shards' files."""
        found = {name: hash for name, hash in tree(folder).items() if ASIDE not in name} if folder.exists() else {}
        assert found.items() <= self.expected.items()
        if (folder / "manifest.json").exists():
            assert stable(read_manifest(folder)) == self.manifest
        return {name: (folder / name).stat().st_ino for name in found if name.startswith("shards/")}

    def check_whole(self, folder: Path, finished: dict[str, int]) -> None:
        """All is as if nothing had happened; ``finished`` was not made again; nothing is left over."""
        assert tree(folder) == self.expected
        assert stable(read_manifest(folder)) == self.manifest
        assert {name: (folder / name).stat().st_ino for name in finished} == finished

    def log(self) -> str:
        return (self.place / "log").read_text(encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def _without_plots() -> Iterator[None]:
    """Drawing takes longer than all the rest of a preparation so small, and touches no file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "histogram", lambda *_: None)
        yield


def bench_of(place: Path, files: int, *others: str) -> Bench:
    for number in range(files):
        texts = [f"第{number}卷第{i}回说的是{'春夏秋冬'[i % 4]}天。天气很好，我们走了{i}里路！" for i in range(12)]
        (place / f"{number}.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    small = {"masks": MaskConfig(views=1), "segment": SegmentConfig(kind="none")}
    sources = [
        SourceConfig(path=path) for path in (*(str(place / f"{number}.txt") for number in range(files)), *others)
    ]
    config = sample_config(sources=sources, tokenizer=TokenizerConfig(vocab_size=250), **small)
    whole = prepare(config, place / "whole")
    return Bench(config, tree(whole.folder), stable(whole.manifest), place)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench_of(tmp_path_factory.mktemp("kill"), 5)


def test_killed_at_each_step_with_files(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, 2)
    counter = Saboteur(None)
    noted = bench.place / "steps"

    def count() -> None:
        os.fsync = lambda handle: None
        counter.install()
        prepare(bench.config, bench.place / "counted")
        with open(noted, "w") as file:
            file.write(str(counter.steps - 2))  # without these two

    assert end_of(forked(count, str(bench.place / "log"))) == 0, bench.log()
    steps = int(noted.read_text())
    assert steps > 100  # all of them are seen: files of each shard, of the tokenizer, and beside them
    for step in range(steps):
        folder = bench.place / f"step-{step}"
        assert end_of(bench.start(folder, 1, Saboteur(step).install)) == KILLED, bench.log()
        finished = bench.check_partial(folder)
        assert end_of(bench.start(folder, 1)) == 0, bench.log()
        bench.check_whole(folder, finished)


def test_killed_at_random_moments(bench: Bench) -> None:
    """The whole process group, up to twice in a row, each start with another number of workers."""
    draws, kills, trial, window = random.Random(0), 0, 0, 2.0
    while kills < KILLS:
        folder = bench.place / f"trial-{trial}"
        finished: dict[str, int] = {}
        for again in range(2):
            began = time.monotonic()
            pid = bench.start(folder, WORKERS[(trial + again) % 3])
            if killed_after(draws.uniform(0, window), pid) == KILLED:
                kills += 1
                window *= 1.03
            else:  # it was done before: other work on this machine makes the time that it takes vary
                window = min(window, time.monotonic() - began)
            after = bench.check_partial(folder)
            assert finished.items() <= after.items()
            finished = after
        assert end_of(bench.start(folder, WORKERS[(trial + 2) % 3])) == 0, bench.log()
        bench.check_whole(folder, finished)
        trial += 1


def test_finished_parts_of_a_compressed_block_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed wherever a part comes into place: those that are there are not tokenized again, all bytes are the same."""
    texts = [f"第{i}回说的是{'春夏秋冬'[i % 4]}天。天气很好，我们走了{i}里路！" for i in range(60)]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    monkeypatch.setattr(block, "part_bytes", lambda task: 800)
    bench = bench_of(tmp_path, 0, str(tmp_path / "a.jsonl.gz"))
    parts = sorted({name.split("/")[1] for name in bench.expected if name.startswith("shards/")})
    assert len(parts) == 5
    write_splits, made = block.write_splits, tmp_path / "made"

    def noted(writer: ShardWriter, *arguments: Any) -> dict[str, Any]:
        with made.open("a") as file:
            file.write(writer.final.name + "\n")
        return write_splits(writer, *arguments)

    monkeypatch.setattr(block, "write_splits", noted)
    for finished in range(1, len(parts)):
        folder = tmp_path / f"killed-{finished}"

        def kill(last: str = parts[finished]) -> None:
            put = shards.put_into_place

            def until(aside: Path, final: Path, sound: Callable[[Path], bool]) -> None:
                put(aside, final, sound)
                if final.name == last:
                    os.kill(os.getpid(), signal.SIGKILL)

            shards.put_into_place = until

        assert end_of(bench.start(folder, 1, kill)) == KILLED, bench.log()
        inodes = bench.check_partial(folder)
        made.unlink()
        assert end_of(bench.start(folder, 1)) == 0, bench.log()
        bench.check_whole(folder, inodes)
        assert made.read_text().split() == [parts[0], *parts[finished + 1 :]]


def test_killed_at_each_step_of_the_table_of_similar_words(sample_corpus: Corpus, tmp_path: Path) -> None:
    """A table of other vectors stands there already: under the final name one of the two is whole, or there is none."""
    tokenizer = open_tokenizer(sample_corpus.tokenizer_folder, TokenizerConfig())
    old, new = (
        SimilarConfig(vectors=str(as_text(tmp_path / f"{seed}.txt", table(seed))), min_cosine=-1) for seed in range(2)
    )
    make_similar(old, tokenizer, tmp_path / "before")
    make_similar(new, tokenizer, tmp_path / "after")
    wholes = [tree(tmp_path / name) for name in ("before", "after")]
    assert wholes[0] != wholes[1] and len(wholes[1]) == 4
    step, ended = 0, KILLED
    while ended == KILLED:
        folder = tmp_path / f"step-{step}"
        make_similar(old, tokenizer, folder)

        def work(folder: Path = folder, step: int = step) -> None:
            Saboteur(step).install()
            make_similar(new, tokenizer, folder)

        ended = end_of(forked(work, str(tmp_path / "log")))
        found = {name: hash for name, hash in tree(folder).items() if ASIDE not in name}
        assert found in ([{}, *wholes] if ended == KILLED else wholes[1:])
        sweep(folder)
        make_similar(new, tokenizer, folder)
        assert tree(folder) == wholes[1]
        step += 1
    assert ended == 0 and step > 15


@pytest.mark.parametrize("workers", WORKERS)
def test_one_hash_for_any_number_of_workers(bench: Bench, workers: int) -> None:
    folder = bench.place / f"workers-{workers}"
    assert end_of(bench.start(folder, workers)) == 0, bench.log()
    bench.check_whole(folder, {})


def test_what_other_machines_are_at_work_on_is_left_alone(bench: Bench) -> None:
    """Until all shards are there: then nobody can need it."""
    folder = bench.place / "others"
    theirs = folder / "shards" / f"{ASIDE}another-machine-{os.getpid()}-0"
    theirs.mkdir(parents=True)
    assert killed_after(0.05, bench.start(folder, 1)) == KILLED
    assert theirs.exists()
    assert end_of(bench.start(folder, 1)) == 0, bench.log()
    bench.check_whole(folder, {})

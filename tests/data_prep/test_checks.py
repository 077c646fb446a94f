"""Checksums at first touch: every block that is read is checked, once, and no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xxhash

from configs.errors import DataError
from data_prep import checks, shards
from data_prep.corpus import Corpus, Split, Verify
from data_prep.pipeline import prepare
from data_prep.shards import file_facts, write_manifest
from tests.data_prep.conftest import kind_config, sample_config

SMALL = 1 << 8
"""Bytes of a block in these tests."""


@pytest.fixture(scope="module")
def blocked(sample_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs with stored masks, prepared with small blocks."""
    folder = tmp_path_factory.mktemp("blocked") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "CHECKED_BYTES", SMALL)
        return prepare(kind_config("next", str(sample_corpus.tokenizer_folder / "vocab.txt")), folder).folder


def test_facts_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "CHECKED_BYTES", SMALL)
    content = np.random.default_rng(0).bytes(2 * SMALL + 5)
    (tmp_path / "f").write_bytes(content)
    assert file_facts(tmp_path / "f") == {
        "bytes": len(content),
        "xxh3": xxhash.xxh3_128_hexdigest(content),
        "block_bytes": SMALL,
        "blocks": [xxhash.xxh3_64_hexdigest(content[a : a + SMALL]) for a in range(0, len(content), SMALL)],
    }


def failure(train: Split, number: int) -> str:
    """What reading a sequence under its two views complains of."""
    try:
        for view in range(2):
            train.masked(np.array([number]), np.array([view]))
    except DataError as error:
        return str(error)
    return ""


FILES = ["tokens.bin", "words.bits", "offsets.bin", "pieces.bin", "firsts.bin", "order.bin", "view-0/positions.bin"]


@pytest.mark.parametrize("name", [*FILES, "view-0/offsets.bin", "view-1/ids.bin"])
def test_a_damaged_block_is_named_when_it_is_read_and_not_before(blocked: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    shutil.copytree(blocked, folder)
    victim = max(
        (p for p in folder.glob("shards/*/train/**/*.*") if str(p).endswith(name)), key=lambda p: p.stat().st_size
    )
    content = bytearray(victim.read_bytes())
    block = len(content) // 2 // SMALL
    place = block * SMALL + 3
    content[place] ^= 1
    victim.write_bytes(bytes(content))
    train = Corpus.open(folder).split("train")
    seen, messages = 0, {}
    for number in range(len(train)):
        message = failure(train, number)
        if message:
            messages[number] = message
        seen += not message
    assert messages and seen, "only what lies in the block cannot be read"
    assert len(messages) < len(train) / 2
    expected = f"{victim} is damaged: block {block} (bytes {block * SMALL} to"
    assert all(expected in message and "distill prep" in message for message in messages.values())
    assert all(failure(train, number) for number in messages), "it does not become sound by being asked for again"
    with pytest.raises(DataError, match="does not have the content"):
        Corpus.open(folder, "open")
    unchecked = Corpus.open(folder, "none").split("train")
    assert unchecked._touched is None


def test_every_block_is_checked_once(blocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[Path, int]] = []
    check = checks.Checked.check

    def count(self: checks.Checked, block: int) -> None:
        counted.append((self.path, block))
        check(self, block)

    monkeypatch.setattr(checks.Checked, "check", count)
    train = Corpus.open(blocked).split("train")
    assert train._touched is not None
    everything = np.arange(len(train))
    train.lengths(everything[:1])
    assert 0 < len(counted) <= 4, "only the index of that sequence"
    for _ in range(2):
        for view in range(2):
            train.masked(everything, np.full(len(everything), view))
    train.gather(everything)
    assert len(counted) == len(set(counted))
    assert train._touched.left == 0 or train._touched.left < 0.2 * len(train._touched.blocks.state)
    read = {path for path, _ in counted}
    assert {p for p in blocked.glob("shards/*/train/**/*.bin") if p.stat().st_size and p.name != "unigram.bin"} <= read


def test_what_an_older_version_prepared_is_checked_by_whole_files(sample_corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(sample_corpus.folder, folder)
    for path in folder.glob("shards/*/manifest.json"):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for facts in manifest["files"].values():
            del facts["blocks"], facts["block_bytes"]
        for name in ("format", "checksum"):
            del manifest[name]
        write_manifest(path.parent, manifest)
    index = np.arange(5)
    old, new = Corpus.open(folder).split("train"), sample_corpus.split("train")
    assert np.array_equal(old.masked(index, index).ids, new.masked(index, index).ids)
    victim = max(folder.glob("shards/*/train/tokens.bin"), key=lambda p: p.stat().st_size)
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    split = Corpus.open(folder).split("train")
    with pytest.raises(DataError, match=r"tokens\.bin is damaged: block 0"):
        split.gather(np.arange(len(split)))


@pytest.mark.parametrize("verify", ["first_touch", "open", "none"])
def test_when_to_verify_changes_nothing_that_is_read(sample_corpus: Corpus, verify: Verify) -> None:
    config = sample_config(verify=verify)
    again = prepare(config, sample_corpus.folder)
    assert again.verify == verify, "a field of the run, not of the data"
    index = np.arange(9)
    ours, theirs = again.split("train").masked(index, index), sample_corpus.split("train").masked(index, index)
    assert np.array_equal(ours.ids, theirs.ids) and np.array_equal(ours.rows, theirs.rows)

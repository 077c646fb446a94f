from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError, OutputError
from data_prep import manifest, phases, pipeline, plan
from data_prep.block import prepare_block
from data_prep.config import DataConfig, SequenceConfig, SourceConfig, TokenizerConfig
from data_prep.corpus import Corpus
from data_prep.pipeline import Progress, prepare, verify
from data_prep.plan import Job
from data_prep.readers.text import TextReader
from data_prep.shards import read_manifest, shard_trouble, write_manifest
from tests.data_prep.conftest import sample_config

ROOT = Path(__file__).resolve().parents[2]


def tree(folder: Path) -> dict[str, str]:
    """Relative name -> hash of every file that is data (the manifest tells the time it took)."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in (".lock",))
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if p != folder / "manifest.json"
    }


def stable(manifest: dict[str, object]) -> dict[str, object]:
    return {k: v for k, v in manifest.items() if k not in ("seconds", "megabytes_per_second")}


def small(tmp_path: Path, **changes: object) -> DataConfig:
    """Two files: jsonl.gz with bad records, and text in several blocks."""
    texts = [f"第{i}篇文章讲的是{'春夏秋冬'[i % 4]}天的故事。今天天气很好，我们去公园散步{i}次！" for i in range(60)]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        for i, text in enumerate(texts[:30]):
            file.write(json.dumps({"id": f"a{i}", "text": text}, ensure_ascii=False) + "\n")
        file.write('not json\n{"title": "no text"}\n{"text": ""}\n{"text": "短"}\n')
    (tmp_path / "b.txt").write_text("\n\n".join(texts[30:]) + "\n", encoding="utf-8")
    sources = [SourceConfig(path=str(tmp_path / name)) for name in ("a.jsonl.gz", "b.txt")]
    return sample_config(sources=sources, tokenizer=TokenizerConfig(vocab_size=300), **changes)


def test_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    config = small(tmp_path)
    corpora = [
        prepare(config.model_copy(update={"workers": workers}), tmp_path / f"data-{workers}") for workers in (1, 2)
    ]
    assert tree(corpora[0].folder) == tree(corpora[1].folder)
    assert stable(corpora[0].manifest) == stable(corpora[1].manifest)
    assert corpora[0].hash == corpora[1].hash


def test_every_record_is_accounted_for(tmp_path: Path) -> None:
    manifest = prepare(small(tmp_path), tmp_path / "data").manifest
    assert manifest["documents"] == 60
    assert manifest["dropped"] == {"empty": 1, "no_text": 1, "not_json": 1, "too_short": 1}
    removed = sum(manifest["removed"].values())
    kept, dropped = manifest["characters"], manifest["characters_dropped"]
    assert manifest["characters_read"] + manifest["characters_rewritten"] == kept + dropped + removed
    splits = manifest["splits"]
    assert splits["train"]["documents"] + splits["held_out"]["documents"] == 60
    assert splits["held_out"]["documents"] == 6  # the exact quantile in a small corpus
    assert manifest["segmenter"]["name"] == "jieba" and manifest["segmenter"]["hash"]


def test_finished_data_is_kept(tmp_path: Path) -> None:
    config = small(tmp_path)
    prepare(config, tmp_path / "data")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*") if p.is_file() and p.name != ".lock"}
    prepare(config, tmp_path / "data")
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    config = small(tmp_path)
    prepare(config, tmp_path / "data")
    with pytest.raises(DataError, match=r"seed: 1337 -> 1") as error:
        prepare(config.model_copy(update={"seed": 1}), tmp_path / "data")
    assert "another data.folder" in str(error.value)


def test_data_of_an_older_version_is_good(tmp_path: Path) -> None:
    """Its manifest lacks the fields that came later: they had their defaults."""
    config = small(tmp_path)
    first = prepare(config, tmp_path / "data")
    manifest = read_manifest(first.folder)
    for part, later in (
        (manifest["identity"]["masks"], ("unit", "smoothing", "max_masked")),
        (manifest["masking"], ("unit", "smoothing", "max_masked", "held_out_rate")),
        (manifest["identity"]["clean"], ("unit", "min_unit_characters")),
        (
            manifest["identity"]["sequences"],
            ("merge_probability", "pair_order", "short_sequence_probability", "copies"),
        ),
        (manifest, ("pairs", "short_units")),
        *((split, ("sequence_tokens",)) for split in manifest["splits"].values()),
    ):
        for name in later:
            del part[name]
    write_manifest(first.folder, manifest)
    again = prepare(config, tmp_path / "data")
    index = np.arange(len(first.split("train")))
    before, after = (corpus.split("train") for corpus in (first, again))
    assert np.array_equal(before.masks(index, index).ids, after.drawn_masks(index, index % 3).ids)
    assert before.n_tokens == after.n_tokens
    with pytest.raises(DataError, match=r"sequences\.kind: 'documents' -> 'lines'"):
        prepare(config.model_copy(update={"sequences": SequenceConfig(kind="lines", max_length=48)}), tmp_path / "data")


def test_data_of_a_version_that_ignored_lowercase_is_good(tmp_path: Path) -> None:
    """SentencePiece then had the default of WordPiece in its identity; nothing depended on it."""
    config = small(tmp_path).model_copy(update={"tokenizer": TokenizerConfig(kind="sentencepiece", vocab_size=300)})
    first = prepare(config, tmp_path / "data")
    for name in ("manifest.json", "plan.json"):
        content = read_manifest(first.folder, name)
        content["identity"]["tokenizer"]["lowercase"] = True
        del content["identity"]["tokenizer"]["algorithm"]
        write_manifest(first.folder, content, name)
    assert prepare(config, tmp_path / "data").hash == first.hash
    (first.folder / "manifest.json").unlink()
    before = [path.stat().st_ino for path in sorted((first.folder / "shards").rglob("tokens.bin"))]
    assert prepare(config, tmp_path / "data").hash == first.hash
    assert before == [path.stat().st_ino for path in sorted((first.folder / "shards").rglob("tokens.bin"))]


def test_changed_input_is_refused(tmp_path: Path) -> None:
    config = small(tmp_path)
    prepare(config, tmp_path / "data")
    with (tmp_path / "b.txt").open("a") as file:
        file.write("\n新的一段。\n")
    with pytest.raises(DataError, match=r"b\.txt: \d+ -> \d+ bytes"):
        prepare(config, tmp_path / "data")


def test_a_changed_vocabulary_is_refused(tmp_path: Path) -> None:
    trained = prepare(small(tmp_path), tmp_path / "first")
    vocab = tmp_path / "vocab.txt"
    entries = (trained.tokenizer_folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    vocab.write_text("\n".join(entries) + "\n", encoding="utf-8")
    config = small(tmp_path).model_copy(update={"tokenizer": TokenizerConfig(vocab=str(vocab))})
    prepare(config, tmp_path / "data")
    prepare(config, tmp_path / "data")
    vocab.write_text("\n".join([*entries[:-1], "别的"]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"vocab\.txt: its entries are not those"):
        prepare(config, tmp_path / "data")


def test_an_interrupted_preparation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished shards are kept, the rest is made, and the result is that of an undisturbed run."""
    config = small(tmp_path)
    whole = prepare(config, tmp_path / "whole")
    made: list[str] = []
    real = phases.prepare_block

    def interrupted(task):  # type: ignore[no-untyped-def]
        made.append(task.name)
        if len(made) == 2:
            raise KeyboardInterrupt
        return real(task)

    with monkeypatch.context() as patch:
        patch.setattr(phases, "prepare_block", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, tmp_path / "data")
    with pytest.raises(DataError, match="holds no prepared data"):
        Corpus.open(tmp_path / "data")
    (tmp_path / "data" / "shards" / ".tmp-left-behind").mkdir()
    resumed: list[Progress] = []
    again = prepare(config, tmp_path / "data", resumed.append)
    assert [(state.blocks, state.total_blocks) for state in resumed] == [(1, 2), (2, 2)]  # only the second
    assert resumed[0].remaining is None and resumed[1].remaining == 0
    assert tree(again.folder) == tree(whole.folder)
    assert again.hash == whole.hash


def test_a_damaged_shard_is_made_again(tmp_path: Path) -> None:
    config = small(tmp_path)
    first = prepare(config, tmp_path / "data")
    expected = tree(first.folder)
    (tmp_path / "data" / "manifest.json").unlink()
    victim = next((tmp_path / "data" / "shards").rglob("tokens.bin"))
    victim.write_bytes(victim.read_bytes()[:-2])
    prepare(config, tmp_path / "data")
    assert tree(tmp_path / "data") == expected


def test_a_killed_worker_is_an_error_not_a_hang(tmp_path: Path) -> None:
    program = (
        "import sys, os, signal\n"
        "from pathlib import Path\n"
        "from data_prep import phases, pipeline\n"
        "from tests.data_prep.test_pipeline import killer, small\n"
        "if __name__ == '__main__':\n"
        "    phases.prepare_block = killer\n"
        "    folder = Path(sys.argv[1])\n"
        "    try:\n"
        "        pipeline.prepare(small(folder, workers=2), folder / 'data')\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error)\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert run.stdout.startswith("DataError A preparation worker was killed"), run.stdout + run.stderr


def killer(task: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_two_preparations_do_not_collide(tmp_path: Path) -> None:
    with (
        pipeline.locked(tmp_path / "data"),
        pytest.raises(DataError, match="being prepared by another process"),
    ):
        prepare(small(tmp_path), tmp_path / "data")


@pytest.mark.parametrize(("text", "found"), [("", "0 usable"), ("只有一篇文章在这里。\n", "1 usable")])
def test_too_little_text(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "c.txt").write_text(text, encoding="utf-8")
    config = sample_config(sources=[SourceConfig(path=str(tmp_path / "c.txt"))])
    with pytest.raises(DataError) as error:
        prepare(config, tmp_path / "data")
    assert f"The corpus has {found} documents" in str(error.value)


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        prepare(small(tmp_path), tmp_path / "file" / "data")


def test_verify_finds_a_flipped_bit(tmp_path: Path) -> None:
    folder = prepare(small(tmp_path), tmp_path / "data").folder
    assert verify(folder) == []
    victim = next((folder / "shards").rglob("ids.bin"))
    content = bytearray(victim.read_bytes())
    content[0] ^= 1
    victim.write_bytes(bytes(content))
    (trouble,) = verify(folder)
    assert str(victim) in trouble


def test_finished_data_may_be_locked(tmp_path: Path) -> None:
    """Several runs share a folder: none of them waits for, or fails on, another one that looks at it."""
    config = small(tmp_path)
    first = prepare(config, tmp_path / "data")
    with pipeline.locked(tmp_path / "data"):
        assert prepare(config, tmp_path / "data").hash == first.hash


@pytest.mark.parametrize("name", ["unigram.bin", "tokenizer/vocab.txt", "tokenizer/tokenizer.json"])
def test_verify_looks_outside_the_shards_too(tmp_path: Path, name: str) -> None:
    folder = prepare(small(tmp_path), tmp_path / "data").folder
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    (trouble,) = verify(folder)
    assert name in trouble
    (folder / name).unlink()
    with pytest.raises(DataError, match="is missing"):
        Corpus.open(folder)


def test_a_changed_manifest_is_found(tmp_path: Path) -> None:
    folder = prepare(small(tmp_path), tmp_path / "data").folder
    path = folder / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"rate": 0.15', '"rate": 0.25'), encoding="utf-8")
    with pytest.raises(DataError, match="checksum differs"):
        Corpus.open(folder)


@pytest.mark.parametrize("kept", ["tokenizer", "shards"])
def test_a_begun_preparation_is_refused_to_another_one(tmp_path: Path, kept: str) -> None:
    """As soon as a vocabulary or a shard is there, other settings or files are named and refused, and nothing goes."""
    config = small(tmp_path)
    folder = prepare(config, tmp_path / "data").folder
    (folder / "manifest.json").unlink()
    for name in {"tokenizer", "shards"} - {kept}:
        shutil.rmtree(folder / name)
    before = tree(folder)
    with pytest.raises(DataError, match=r"seed: 1337 -> 1\n"):
        prepare(config.model_copy(update={"seed": 1}), folder)
    text = (tmp_path / "b.txt").read_text(encoding="utf-8").replace("公园", "操场")
    (tmp_path / "b.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"b\.txt: written to since \(of the same size\)"):
        prepare(config, folder)
    (tmp_path / "b.txt").write_text(text + "\n又一篇。", encoding="utf-8")
    with pytest.raises(DataError, match=r"b\.txt: \d+ -> \d+ bytes"):
        prepare(config, folder)
    with pytest.raises(DataError, match=r"b\.txt: not among the sources any more"):
        prepare(config.model_copy(update={"sources": config.sources[:1]}), folder)
    assert tree(folder) == before
    (folder / "plan.json").unlink()
    with pytest.raises(DataError, match=r"no plan\.json that tells what they were made from"):
        prepare(config, folder)


def test_a_plan_that_nothing_was_made_of_gives_way(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("只有一篇文章在这里。", encoding="utf-8")
    config = sample_config(sources=[SourceConfig(path=str(tmp_path / "b.txt"))])
    with pytest.raises(DataError, match="1 usable"):
        prepare(config, tmp_path / "data")
    assert (tmp_path / "data" / "plan.json").exists()
    prepare(small(tmp_path), tmp_path / "data")


def test_another_segmenter_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(tmp_path)
    folder = prepare(config, tmp_path / "data").folder
    (folder / "manifest.json").unlink()
    other = {"name": "rjieba", "version": "0.0.1", "hash": ""}
    monkeypatch.setattr(plan, "describe_segmenter", lambda config: other)
    with pytest.raises(DataError, match=r"segmenter\.version: '.*' -> '0\.0\.1'"):
        prepare(config, folder)


def test_two_workers_on_one_block(tmp_path: Path) -> None:
    """The second shard is thrown away: files of the first may be mapped already."""
    job = begun(small(tmp_path), tmp_path / "data")
    task = job.tasks[0]
    facts = prepare_block(task)
    inodes = {p: p.stat().st_ino for p in job.shard(task).rglob("*")}
    assert prepare_block(task) == facts
    assert {p: p.stat().st_ino for p in job.shard(task).rglob("*")} == inodes
    assert [p.name for p in (tmp_path / "data" / "shards").iterdir()] == [task.name]


def test_many_workers_on_one_block(tmp_path: Path) -> None:
    job = begun(small(tmp_path), tmp_path / "data")
    with ThreadPoolExecutor(4) as pool:
        facts = list(pool.map(prepare_block, [job.tasks[1]] * 8))
    assert all(one == facts[0] for one in facts)
    assert shard_trouble(job.shard(job.tasks[1]), thorough=True) == []
    assert [p.name for p in (tmp_path / "data" / "shards").iterdir()] == [job.tasks[1].name]


def begun(config: DataConfig, folder: Path) -> Job:
    with pipeline.locked(folder):
        return pipeline.begin(config, folder)


def test_a_full_disk_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(manifest, "write_bytes", full)
    with pytest.raises(OutputError, match="disk is full"):
        prepare(small(tmp_path), tmp_path / "data")


def test_too_small_a_disk_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match="GB free"):
        prepare(small(tmp_path), tmp_path / "data")


def test_an_input_that_cannot_be_read_on_is_not_called_unwritable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, real, calls = small(tmp_path), TextReader.texts, []

    def failing(self, block, counts):  # type: ignore[no-untyped-def]
        calls.append(block)
        if len(calls) > 2:  # after the reading for the split and the vocabulary: while a shard is written
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, block, counts)

    monkeypatch.setattr(TextReader, "texts", failing)
    with pytest.raises(DataError, match=r"Cannot read .*b\.txt: Input/output error"):
        prepare(config, tmp_path / "data")


def test_without_sources_only_the_tokenizer_is_installed(tmp_path: Path) -> None:
    given = prepare(small(tmp_path), tmp_path / "given").tokenizer_folder
    config = DataConfig(tokenizer=TokenizerConfig(vocab=str(given)))
    folder = tmp_path / "data"
    corpus = prepare(config, folder)
    assert not corpus.has_text and corpus.vocab_size == 104 and list((folder / "shards").iterdir()) == []
    assert {p.name for p in given.iterdir()} - {"made-from.json"} == {p.name for p in corpus.tokenizer_folder.iterdir()}
    assert verify(folder) == [] and prepare(config, folder).hash == corpus.hash
    with pytest.raises(DataError, match="holds a tokenizer and no text"):
        corpus.split("train")
    with pytest.raises(DataError, match="sources"):  # what was prepared with text is not taken for it
        prepare(small(tmp_path), folder)
    with pytest.raises(ValueError, match="no text to train a vocabulary on"):
        DataConfig()

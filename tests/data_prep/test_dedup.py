from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path

import pytest
from rich.console import Console

import launcher.data
from configs.errors import DataError
from data_prep import inspect as drawing
from data_prep import phases
from data_prep.block import Task
from data_prep.config import DataConfig, SourceConfig, TokenizerConfig
from data_prep.config_quality import DedupConfig, NearConfig
from data_prep.drops import clusters_of
from data_prep.pipeline import prepare
from data_prep.readers import SAMPLE
from tests.data_prep.conftest import sample_config
from tests.data_prep.test_pipeline import stable, tree

LINES = [line for path in sorted(SAMPLE.glob("*.txt")) for line in path.read_text(encoding="utf-8").split("\n") if line]


def originals(count: int) -> list[str]:
    """Different documents of some lines."""
    rng = random.Random(0)
    lines = rng.sample(LINES, 5 * count)
    return ["\n".join(lines[5 * i : 5 * i + 5]) for i in range(count)]


def changed(text: str, rng: random.Random) -> str:
    """A near-duplicate: other spaces and punctuation, one character in 200 another one."""
    text = text.replace("，", ", ").replace("。", "！")
    return "".join(rng.choice("天地人你我他") if rng.random() < 1 / 200 else c for c in text)


def planted(tmp_path: Path, **dedup: object) -> DataConfig:
    """40 documents in three files; 8 of them stand twice and one five times, 8 have near-duplicates."""
    texts, rng = originals(40), random.Random(1)
    exact = [*texts[:8], *[texts[0]] * 3]
    near = [changed(text, rng) for text in texts[8:16]]
    files = {"a.jsonl.gz": texts[:25], "b.txt": [*exact[:4], *texts[25:]], "c.txt": [*near, *exact[4:]]}
    for name, content in files.items():
        if name.endswith(".gz"):
            with gzip.open(tmp_path / name, "wt", encoding="utf-8") as file:
                file.writelines(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in ["短", *content])
        else:
            (tmp_path / name).write_text("\n\n".join(content) + "\n", encoding="utf-8")
    sources = [SourceConfig(path=str(tmp_path / name)) for name in files]
    rule = DedupConfig.model_validate({"exact": True, **dedup})
    return sample_config(sources=sources, tokenizer=TokenizerConfig(vocab_size=500), dedup=rule)


def test_planted_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    near = prepare(planted(tmp_path, near={}), tmp_path / "near").manifest
    assert near["dropped"] == {"duplicate": 11, "near_duplicate": 8, "too_short": 1}
    assert near["documents"] == 40
    assert near["duplicates"] == {"clusters": 16, "largest": 5}
    exact = prepare(planted(tmp_path), tmp_path / "exact").manifest
    assert exact["dropped"] == {"duplicate": 11, "too_short": 1} and exact["documents"] == 48
    assert exact["duplicates"] == {"clusters": 8, "largest": 5}
    none = prepare(planted(tmp_path, exact=False), tmp_path / "none").manifest
    assert none["dropped"] == {"too_short": 1} and none["documents"] == 59 and none["duplicates"] is None
    only_near = prepare(planted(tmp_path, exact=False, near={}), tmp_path / "only").manifest
    assert only_near["dropped"] == {"near_duplicate": 19, "too_short": 1} and only_near["documents"] == 40


def test_the_first_in_corpus_order_is_kept(tmp_path: Path) -> None:
    corpus = prepare(planted(tmp_path, near={}), tmp_path / "data")
    clusters = clusters_of(corpus.folder, [shard["name"] for shard in corpus.manifest["shards"]])
    assert len(clusters) == 16 and [members[0]["size"] for members in clusters] == [5] + [2] * 15
    for members in clusters:
        places = [(member["block"], member["document"]) for member in members]
        assert places == sorted(places)
        assert [member["reason"] == "kept" for member in members] == [True] + [False] * (len(members) - 1)
        assert members[0]["similarity"] == 1.0
        for member in members[1:]:
            if member["reason"] == "duplicate":
                assert member["text"] == members[0]["text"] and member["similarity"] == 1.0
            else:
                assert member["text"] != members[0]["text"] and 0.75 <= member["similarity"] <= 1


def test_the_same_bytes_for_any_number_of_workers_and_amount_of_memory(tmp_path: Path) -> None:
    config = planted(tmp_path, near={})
    little = config.dedup.model_copy(update={"memory_megabytes": 1})
    first = prepare(config, tmp_path / "one")
    second = prepare(config.model_copy(update={"workers": 2, "dedup": little}), tmp_path / "two")
    assert tree(first.folder) == tree(second.folder)
    assert stable(first.manifest) == stable(second.manifest)
    assert not (first.folder / "survey").exists()


def test_the_kept_documents_are_prepared_as_if_alone(tmp_path: Path) -> None:
    """The shards with duplicates dropped hold the same tokens as those of the files without them."""
    corpus = prepare(planted(tmp_path, near={}), tmp_path / "with")
    texts = originals(40)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "a.txt").write_text("\n\n".join(texts[:25]) + "\n", encoding="utf-8")
    (alone / "b.txt").write_text("\n\n".join(texts[25:]) + "\n", encoding="utf-8")
    vocabulary = TokenizerConfig(vocab=str(corpus.tokenizer_folder / "vocab.txt"))
    sources = [SourceConfig(path=str(alone / name)) for name in ("a.txt", "b.txt")]
    expected = prepare(sample_config(sources=sources, tokenizer=vocabulary), tmp_path / "without")
    ids = [
        sorted(b"".join(p.read_bytes() for p in sorted(folder.rglob("tokens.bin"))))
        for folder in (corpus.folder / "shards", expected.folder / "shards")
    ]
    assert ids[0] == ids[1]


def test_a_cluster_can_be_looked_at(tmp_path: Path) -> None:
    corpus = prepare(planted(tmp_path, near={}), tmp_path / "data")
    first, second = drawing.duplicates(corpus, 2)
    assert first.startswith("5 documents, 4 of them shown\n  kept, block 0, document 0, similarity 1.00\n    '")
    assert first.count("  duplicate, block ") == 3 and second.startswith("2 documents\n")
    assert drawing.totals(corpus)["clusters of duplicates"] == "16, the largest of 5 documents"
    shown = Console(record=True, width=200)
    launcher.data.duplicates(corpus.folder, 1, shown)
    assert first.split("\n")[0] in shown.export_text()
    without = prepare(planted(tmp_path, exact=False), tmp_path / "none")
    with pytest.raises(DataError, match="prepared without"):
        launcher.data.duplicates(without.folder, 1)


@pytest.mark.parametrize("stop", range(7))
def test_stopped_anywhere_the_result_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    """Stopped before the k-th folder of surveys, duplicates or shards is renamed into place; or in between."""
    config = planted(tmp_path, near={})
    expected = tree(prepare(config, tmp_path / "whole").folder)
    real, calls = os.rename, []

    def stopping(source: Path, target: Path) -> None:
        if "shards" in str(target) or "survey" in str(target) or target.name == "duplicates":
            calls.append(target)
            if len(calls) == stop + 1:
                raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", stopping)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, tmp_path / "data")
    assert not (tmp_path / "data" / "manifest.json").exists()
    left = tmp_path / "data" / ".tmp-left-behind"  # as by a kill
    left.mkdir()
    (left / "parents.bin").write_bytes(b"0")
    assert tree(prepare(config, tmp_path / "data").folder) == expected
    assert not left.exists()


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = planted(tmp_path, near={})
    prepare(config, tmp_path / "data")
    (tmp_path / "data" / "manifest.json").unlink()
    monkeypatch.setattr(phases, "survey_block", lambda task: pytest.fail("a block is surveyed again"))
    prepare(config, tmp_path / "data")


def test_an_input_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, real = planted(tmp_path), phases.merge

    def changing(tasks: list[Task]) -> None:
        real(tasks)
        text = (tmp_path / "b.txt").read_text(encoding="utf-8")
        (tmp_path / "b.txt").write_text(text[:300] + "\n\n-" + text[301:], encoding="utf-8")

    monkeypatch.setattr(phases, "merge", changing)
    with pytest.raises(DataError, match=r"b\.txt holds more documents than when its duplicates were found"):
        prepare(config, tmp_path / "data")


def test_data_without_deduplication_is_not_taken_for_deduplicated(tmp_path: Path) -> None:
    prepare(planted(tmp_path, exact=False), tmp_path / "data")
    with pytest.raises(DataError, match=r"dedup\.exact: False -> True"):
        prepare(planted(tmp_path), tmp_path / "data")


def test_near_config_is_checked() -> None:
    for wrong in ({"threshold": 0}, {"threshold": 1.1}, {"permutations": 3}, {"ngram": 0}, {"bands": 3}):
        with pytest.raises(ValueError):  # noqa: PT011
            NearConfig.model_validate(wrong)

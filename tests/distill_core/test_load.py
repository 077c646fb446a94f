from __future__ import annotations

from pathlib import Path

import pytest

from configs.errors import ConfigError, DataError
from configs.loader import validate
from data_prep.corpus import Corpus
from distill_core.config import RunConfig, trained
from distill_core.load import check_vocabulary, with_token_ids
from distill_core.models.config import EncoderConfig
from distill_core.objectives.logits import KdKlConfig


def shape(vocab_size: int) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=vocab_size, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )


def vocabulary(corpus: Corpus) -> list[str]:
    return (corpus.tokenizer_folder / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")


def teacher(folder: Path, entries: list[str], ending: str = "\n") -> str:
    (folder / "vocab.txt").write_bytes(ending.join([*entries, ""]).encode("utf-8"))
    return str(folder)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_the_same_vocabulary_passes(tiny_corpus: Corpus, tmp_path: Path, ending: str) -> None:
    source = teacher(tmp_path, vocabulary(tiny_corpus), ending)
    check_vocabulary(shape(tiny_corpus.vocab_size), source, tiny_corpus, "stage 's'")


def test_another_vocabulary_is_refused(tiny_corpus: Corpus, tmp_path: Path) -> None:
    entries = vocabulary(tiny_corpus)
    size = len(entries)
    with pytest.raises(DataError, match=rf"has {size + 1} tokens, the prepared corpus {size}"):
        check_vocabulary(shape(size + 1), str(tmp_path), tiny_corpus, "stage 's'")
    swapped = [*entries[:10], entries[11], entries[10], *entries[12:]]
    with pytest.raises(DataError, match=r"2 tokens differ; token 10 is"):
        check_vocabulary(shape(size), teacher(tmp_path, swapped), tiny_corpus, "stage 's'")
    padded = teacher(tmp_path, entries[:-3])  # a model with more rows than its vocabulary has lines
    with pytest.raises(DataError, match=rf"3 tokens differ; token {size - 3} is None there"):
        check_vocabulary(shape(size), padded, tiny_corpus, "stage 's'")


def test_losses_name_entries_of_the_vocabulary(tiny_corpus: Corpus) -> None:
    entries = vocabulary(tiny_corpus)
    pair = (entries[20], 21)
    stage = {
        "name": "s",
        "kind": "distill",
        "teacher": "t",
        "student": {"model": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}},
        "objective": [{"kind": "kd_kl", "fair_pairs": [pair]}],
        "training": {"steps": 1, "global_batch_size": 1},
    }
    tree = {"name": "run", "data": {**tiny_corpus.manifest["identity"]}, "stages": [stage]}
    config = validate(tree, RunConfig)
    found = with_token_ids(config, trained(config.stages)[0], tiny_corpus)
    assert isinstance(found[0], KdKlConfig) and found[0].fair_pairs == [(20, 21)]
    stage["objective"] = [{"kind": "kd_kl", "fair_pairs": [("不在", 21)]}]
    config = validate(tree, RunConfig)
    with pytest.raises(ConfigError, match=r"Stage 's': the vocabulary has no entry '不在'"):
        with_token_ids(config, trained(config.stages)[0], tiny_corpus)

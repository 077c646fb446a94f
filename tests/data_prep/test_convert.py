from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from configs.errors import ConfigError, OutputError
from data_prep.convert import FORMATS, convert
from data_prep.corpus import Corpus


def rows(path: Path) -> list[dict[str, list[int]]]:
    if path.suffix == ".parquet":
        found: list[dict[str, list[int]]] = pq.read_table(path).to_pylist()
        return found
    if path.suffix == ".arrow":
        read: list[dict[str, list[int]]] = Dataset.from_file(str(path)).to_list()
        return read
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", list(FORMATS))
def test_every_format_holds_the_sequences(sample_corpus: Corpus, tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"train.{kind}"
    n = len(sample_corpus.split("train"))
    assert convert(sample_corpus, "train", kind, out) == n
    found = rows(out)
    assert len(found) == n
    index = np.arange(n, dtype=np.int64)
    gathered = sample_corpus.split("train").gather(index)
    assert [row["sequence_id"] for row in found] == sample_corpus.split("train").sequence_ids(index).tolist()
    for i in (0, n // 2, n - 1):
        here = slice(gathered.offsets[i], gathered.offsets[i + 1])
        assert found[i]["input_ids"] == gathered.ids[here].tolist()
        words = np.array(found[i]["word_ids"])
        assert words[0] == 0
        assert (np.diff(words) == 0).tolist() == gathered.continues[here][1:].tolist()


def test_bad_targets(sample_corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="parquet"):
        convert(sample_corpus, "train", "parquett", tmp_path / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        convert(sample_corpus, "train", "jsonl", tmp_path / "file" / "x.jsonl")

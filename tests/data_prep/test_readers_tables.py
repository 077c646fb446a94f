"""Readers of Parquet files and of the library `datasets`."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import DataError
from data_prep.documents import Counts, Document
from tests.data_prep.reading import lines, only, read, sources, table

# ---------------------------------------------------------------- parquet


@pytest.mark.parametrize("block_bytes", [1, 100, 1 << 30])
def test_parquet_row_groups_are_blocks(tmp_path: Path, block_bytes: int) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(1000), path, row_group_size=300)
    (reader,) = sources(path)
    found, counts = read(reader, block_bytes)
    assert [(d.id, d.text) for d in found] == [(f"a.parquet:{i}", f"第{i}篇") for i in range(1000)]
    assert counts == {"documents": 1000}
    assert len(reader.blocks(1)) == 4
    assert len(reader.blocks(1 << 30)) == 1


def test_parquet_odd_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    invalid = pa.array([b"ok", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": invalid, "id": ["x", None]}), path)
    found, counts = only(path)
    assert [(d.id, d.text) for d in found] == [("x", "ok")]
    assert counts == {"documents": 1, "dropped_undecodable": 1}
    pq.write_table(pa.table({"text": pa.array(["好", None, ""]).dictionary_encode()}), path)
    assert only(path)[1] == {"documents": 1, "dropped_no_text": 1, "dropped_empty": 1}


def test_parquet_damaged_pages_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(1000), path, row_group_size=500, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    middle = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    content[middle + 40 : middle + 400] = b"\0" * 360
    path.write_bytes(content)
    found, counts = only(path)
    assert counts["documents"] == len(found) >= 500
    assert len(found) + sum(counts.dropped.values()) == 1000
    assert found[-1].id == "a.parquet:999"


def test_parquet_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(3), path)
    with pytest.raises(DataError, match=r"no column 'body'.*text, other"):
        only(path, text_column="body")
    with pytest.raises(DataError, match="holds int64, not text"):
        only(path, text_column="other")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="not a complete Parquet file"):
        only(path)


# ---------------------------------------------------------------- datasets


def test_datasets_saved_to_disk(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_dict({"text": [f"第{i}篇" for i in range(50)] + [""], "n": list(range(51))})
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "more"))
    for folder in (tmp_path / "one", tmp_path / "more"):
        (reader,) = sources(folder, kind="datasets")
        assert len(reader.blocks(100)) > 3
        found, counts = read(pickle.loads(pickle.dumps(reader)), 100)
        assert (found, counts) == read(reader)
        assert [(d.id, d.text) for d in found] == [(f"{folder.name}:{i}", f"第{i}篇") for i in range(50)]
        assert counts == {"documents": 50, "dropped_empty": 1}
    with pytest.raises(DataError, match="no split 'test'"):
        sources(tmp_path / "more", kind="datasets", split="test")
    with pytest.raises(DataError, match="no column 'body'"):
        sources(tmp_path / "one", kind="datasets", text_column="body")
    with pytest.raises(DataError, match="kind: datasets"):
        sources(tmp_path / "one")


def test_datasets_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(lines({"id": "a", "text": "一"}, {"id": "b", "text": "二"}))
    (reader,) = sources(folder, kind="datasets")
    assert [(d.id, d.text) for d in read(reader, 1)[0]] == [("a", "一"), ("b", "二")]
    with pytest.raises(DataError, match="split 'nothing'"):
        sources(folder, kind="datasets", split="nothing")


def test_datasets_of_the_hub_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(path: str, name: str | None, *, split: str, streaming: bool, revision: str | None) -> Any:
        asked.append((path, name, split, streaming, revision))

        def records() -> Any:
            yield {"text": "一"}
            yield {"text": None}
            raise ConnectionError("gone")

        return datasets.IterableDataset.from_generator(records)

    monkeypatch.setattr(datasets, "load_dataset", load)
    (reader,) = sources("someone/corpus", kind="datasets", name="zh", split="validation")
    assert asked == [("someone/corpus", "zh", "validation", True, None)]
    (block,) = reader.blocks(1)
    counts = Counts()
    documents = reader.documents(block, counts)
    assert next(documents) == Document("corpus:0", "一")
    with pytest.raises(DataError, match=r"broke off.*gone"):
        next(documents)
    assert counts == {"documents": 1, "dropped_no_text": 1}


def test_datasets_problems_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="There is no folder"):
        sources(tmp_path / "nothing", kind="datasets")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        sources("someone/corpus", kind="datasets")

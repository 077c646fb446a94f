"""Tables between processes: built once, never trusted when damaged, never needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.cache import cache_folder, cached_arrays


class Builder:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, Any]:
        self.calls += 1
        return {"a": np.arange(1000, dtype=np.uint64), "b": np.zeros((2, 3)), "none": np.zeros(0)}


@pytest.fixture
def build() -> Builder:
    return Builder()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZHENGLIU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def check(arrays: dict[str, Any]) -> None:
    expected = Builder()()
    assert list(arrays) == list(expected)
    for part, array in arrays.items():
        assert type(array) is np.ndarray and array.dtype == expected[part].dtype and not array.flags.writeable
        np.testing.assert_array_equal(array, expected[part])


def test_built_once(folder: Path, build: Builder) -> None:
    for _ in range(3):
        check(cached_arrays("t", "1", build))
    assert build.calls == 1
    check(cached_arrays("t", "2", build))
    assert build.calls == 2
    assert sorted(p.name for p in folder.iterdir()) == ["t-1", "t-2"]


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "remove", "hashes"])
def test_damage_costs_only_time(folder: Path, build: Builder, harm: str) -> None:
    cached_arrays("t", "1", build)
    file = folder / "t-1" / ("hashes.json" if harm == "hashes" else "a.npy")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    left = {"flip": bytes(content), "cut": bytes(content[:-9]), "empty": b"", "hashes": b"{", "remove": b""}[harm]
    file.unlink()
    if harm != "remove":
        file.write_bytes(left)
    check(cached_arrays("t", "1", build))
    assert build.calls == 2
    check(cached_arrays("t", "1", build))
    assert build.calls == 2, "it was written again"


def test_without_a_folder_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Builder) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZHENGLIU_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        check(cached_arrays("t", "1", build))
    assert build.calls == 2


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZHENGLIU_CACHE", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "zhengliu"

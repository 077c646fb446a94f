"""Readers: every record is yielded or counted, and blocks do not change what is read."""

from __future__ import annotations

import gzip
import lzma
import pickle
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError, DataError
from configs.loader import validate
from data_prep.config import DataConfig, SourceConfig
from data_prep.documents import Counts
from data_prep.readers import READERS, SAMPLE, streams, text
from tests.data_prep.reading import lines, only, read, sources, table

PACK = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress, "xz": lzma.compress}


# ---------------------------------------------------------------- text


def test_text_documents_stand_between_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff第一篇\r\n第二行\r\n\r\n\r\n  \t\r\n第二篇\r\n".encode())
    found, counts = only(path)
    assert [d.text for d in found] == ["第一篇\n第二行", "第二篇"]
    assert [d.id for d in found] == ["a.txt:0", f"a.txt:{path.read_bytes().index('第二篇'.encode())}"]
    removed = {"removed_invisible": 1, "removed_white_space": 3, "characters_read": 4}
    assert counts == {"documents": 2, **removed}


def test_text_line_that_cannot_be_decoded_is_counted_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("好\n".encode() + b"\xff\xfe bad\n" + "坏\n\n".encode() + b"\xff\n\nend")
    found, counts = only(path)
    assert [d.text for d in found] == ["好\n坏", "end"]
    assert counts == {"documents": 2, "dropped_undecodable": 2}


def test_text_in_gb18030(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("简体中文\n\n㐀㐁\n".encode("gb18030"))
    assert [d.text for d in only(path, encoding="gb18030")[0]] == ["简体中文", "㐀㐁"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-7", "no-such-encoding"])
def test_encoding_that_cannot_be_cut_at_lines_is_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x\n")
    with pytest.raises(DataError, match=f"{encoding}"):
        only(path, encoding=encoding)


def test_text_without_blank_lines_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_DOCUMENT", 10)
    path = tmp_path / "a.txt"
    path.write_bytes(b"aaaa\nbbbb\ncccc\n\ndddd\n")
    assert [(d.id, d.text) for d in only(path)[0]] == [
        ("a.txt:0", "aaaa\nbbbb"),
        ("a.txt:10", "cccc"),
        ("a.txt:16", "dddd"),
    ]


def test_text_of_ideographic_spaces_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\u3000\u3000\n\n好\n", encoding="utf-8")
    assert only(path)[1] == {"documents": 1, "dropped_empty": 1}


PIECES = [b"\n", b"\n\n", b"\r\n", b"\r\n\r\n", b" ", b"\0", b"\xef\xbb\xbf", b"\xff", b"ab", "好。".encode()]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join), st.integers(1, 40))
def test_text_blocks_do_not_change_documents(tmp_path_factory: pytest.TempPathFactory, content: bytes, n: int) -> None:
    path = tmp_path_factory.mktemp("law") / "a.txt"
    path.write_bytes(content)
    (reader,) = sources(path)
    assert read(reader, n) == read(reader)
    covered = [(b.start, b.stop) for b in reader.blocks(n)]
    assert [a for a, _ in covered[1:]] == [b for _, b in covered[:-1]]
    assert all(a < (b or 0) for a, b in covered)


# ---------------------------------------------------------------- jsonl


def test_jsonl_every_record_is_yielded_or_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = lines({"id": "x", "text": "一"}, {"text": "二", "id": 7})
    nan = b'{"text": "nan", "score": NaN}\n'
    bad = b'{"text": "\xff"}\n{"text": \n[1]\n{"other": "x"}\n{"text": 5}\n{"text": " \\n"}\n'
    content = b"\xef\xbb\xbf" + good + b"\r\n\n\0\0\n" + nan + bad + b'{"text": "end"}'
    path.write_bytes(content)
    found, counts = only(path)
    assert [d.text for d in found] == ["一", "二", "nan", "end"]
    assert found[0].id == "x"
    assert found[1].id == f"a.jsonl:{content.index(b'{', 4)}"
    assert counts == {
        "documents": 4,
        "dropped_undecodable": 1,
        "dropped_not_json": 1,
        "dropped_no_text": 3,
        "dropped_empty": 1,
    }
    assert counts.dropped == {"empty": 1, "no_text": 3, "not_json": 1, "undecodable": 1}


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"text": ' + b"9" * 5000 + b"}", b"\0{", b"NaN"])
def test_jsonl_hostile_lines_are_counted(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(line + b"\n" + lines({"text": "好"}))
    found, counts = only(path)
    assert [d.text for d in found] == ["好"]
    assert sum(counts.dropped.values()) == 1


@pytest.mark.parametrize("pack", ["", "gz", "zst", "xz"])
def test_jsonl_line_too_long_is_counted_without_being_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: str
) -> None:
    monkeypatch.setattr(streams, "MAX_LINE", 1000)
    content = lines({"text": "a"}) + lines({"text": "x" * 3_000_000}) + lines({"text": "b"}) + b"y" * 5000
    path = tmp_path / ("a.jsonl" + (f".{pack}" if pack else ""))
    path.write_bytes(PACK[pack](content) if pack else content)
    found, counts = only(path, 100)
    assert [d.text for d in found] == ["a", "b"]
    assert counts == {"documents": 2, "dropped_line_too_long": 2}


@pytest.mark.parametrize("pack", list(PACK))
def test_compressed_is_the_same_text_in_one_block(tmp_path: Path, pack: str) -> None:
    content = lines(*({"text": f"第{i}篇" * 50} for i in range(3000)))
    plain, packed = tmp_path / "a.jsonl", tmp_path / f"a.jsonl.{pack}"
    plain.write_bytes(content)
    half = content.index(b"\n", len(content) // 2) - 20  # members that part in the middle of a line
    packed.write_bytes(
        PACK[pack](content[:half]) + PACK[pack](content[half:]) + (b"" if pack == "zst" else b"\0" * 512)
    )
    (reader,) = sources(packed)
    assert len(reader.blocks(1)) == 1
    found, counts = read(reader)
    assert [d.text for d in found] == [d.text for d in only(plain)[0]]
    # offsets are those of the content, so that ids do not depend on the compression
    assert [d.id.split(":")[1] for d in found] == [d.id.split(":")[1] for d in only(plain)[0]]
    assert counts == {"documents": 3000}


@pytest.mark.parametrize("ending", ["jsonl", "txt"])
@pytest.mark.parametrize("pack", list(PACK))
def test_truncated_file_yields_what_is_readable(tmp_path: Path, pack: str, ending: str) -> None:
    import random

    words = random.Random(1)
    records = ["".join(chr(words.randrange(0x4E00, 0x9000)) for _ in range(100)) for _ in range(2000)]
    content = lines(*({"text": r} for r in records)) if ending == "jsonl" else "\n\n".join(records).encode()
    packed = PACK[pack](content)
    path = tmp_path / f"a.{ending}.{pack}"
    path.write_bytes(packed[: len(packed) * 2 // 3])
    found, counts = only(path)
    assert 500 < len(found) < 2000
    assert [d.text for d in found] == records[: len(found)]
    assert counts == {"documents": len(found), "dropped_truncated_file": 1}


@pytest.mark.parametrize("pack", list(PACK))
def test_damaged_and_empty_compressed_files_are_counted(tmp_path: Path, pack: str) -> None:
    packed = PACK[pack](lines({"text": "好"}))
    path = tmp_path / f"a.jsonl.{pack}"
    path.write_bytes(packed + b"garbage behind the end of the member")
    found, counts = only(path)
    assert [d.text for d in found] == ["好"]
    assert counts == {"documents": 1, "dropped_damaged_file": 1}
    path.write_bytes(b"")
    assert only(path) == ([], Counts(dropped_truncated_file=1))


def test_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(lines({"text": "好"}))
    with pytest.raises(DataError, match="does not hold gz data"):
        only(path)


def test_zstd_skippable_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + PACK["zst"](lines({"text": "好"})))
    found, counts = only(path)
    assert [d.text for d in found] == ["好"]
    assert counts == {"documents": 1}


LINES = [b'{"text":"\xe5\xa5\xbd"}', b'{"text":"b","id":"k"}', b"", b"{", b'{"text":"\xff"}', b"\r", b"7"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(LINES), max_size=20), st.booleans(), st.integers(1, 60))
def test_jsonl_blocks_do_not_change_documents(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], ends: bool, n: int
) -> None:
    path = tmp_path_factory.mktemp("law") / "a.jsonl"
    path.write_bytes(b"\n".join(parts) + (b"\n" if ends else b""))
    (reader,) = sources(path)
    found, counts = read(reader, n)
    assert (found, counts) == read(reader)
    assert sum(counts.values()) == sum(bool(part.strip()) for part in parts)


# ---------------------------------------------------------------- open_sources


def test_sample_is_packaged() -> None:
    readers = sources("builtin:sample")
    assert [r.name for r in readers] == sorted(path.name for path in SAMPLE.glob("*.txt"))
    assert [r.index for r in readers] == list(range(len(readers)))
    assert len(readers) >= 4
    counts = Counts()
    found = [d for r in readers for b in r.blocks(1000) for d in r.documents(b, counts)]
    assert len(found) == counts["documents"] > 100
    assert not counts.dropped
    assert len({d.id for d in found}) == len(found)
    with pytest.raises(DataError, match="builtin:sample"):
        sources("builtin:other")


def test_folders_and_globs_are_sorted(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b.txt", "sub/a.TXT", "a.jsonl", "README.md", ".c.txt", ".hidden/d.txt"):
        (tmp_path / name).write_bytes(lines({"text": name}))
    (tmp_path / "sub" / "round").symlink_to(tmp_path, target_is_directory=True)
    names = [str(Path(r.path).relative_to(tmp_path)) for r in sources(tmp_path)]
    assert names == ["a.jsonl", "b.txt", "sub/a.TXT"]
    assert [Path(r.path).name for r in sources(tmp_path, kind="jsonl")] == ["a.jsonl"]
    assert [Path(r.path).name for r in sources(tmp_path / "*.txt", tmp_path / "a.jsonl")] == ["b.txt", "a.jsonl"]
    assert [Path(r.path).name for r in sources(tmp_path / "**" / "a*")][:1] == ["a.jsonl"]
    assert sources(tmp_path / "README.md", kind="jsonl")[0].blocks(99)[0].source == 0


def test_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("好", encoding="utf-8")
    assert [d.text for d in only(tmp_path / "a[1].txt")[0]] == ["好"]


def test_sources_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.doc").write_bytes(b"x")
    for path, message in (
        (tmp_path / "nothing.txt", "There is no file or folder"),
        (tmp_path / "*.txt", "No file matches"),
        (tmp_path, "holds no file"),
        (tmp_path / "a.doc", "set `kind`"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            sources(path)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="There is no file"):
        READERS["text"](SourceConfig(path=str(tmp_path / "gone.txt"), kind="text"), 0)


def test_unknown_kind_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="kind"):
        validate({"sources": [{"path": "a", "kind": "parket"}]}, DataConfig)
    with pytest.raises(ConfigError, match="Did you mean 'parquet'"):
        READERS["parket"]


def test_readers_pickle(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "好"}))
    pq.write_table(table(3), tmp_path / "b.parquet")
    for reader in sources(tmp_path, "builtin:sample"):
        assert read(pickle.loads(pickle.dumps(reader))) == read(reader)


def test_empty_files_have_no_documents(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_bytes(b"")
        assert only(tmp_path / name) == ([], Counts())

"""Hostile and damaged input, for every kind of file: each record is yielded or counted, and nothing dies."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.clean import clean
from data_prep.config import CleanConfig
from data_prep.documents import Counts
from data_prep.readers import base, jsonl, streams
from data_prep.readers.streams import Decompressed, cut_at_members
from data_prep.stream import raw_stream
from tests.data_prep.reading import lines, only, sources

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstandard.ZstdCompressor().compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
}
TEXT = "\n\n".join(f"第{i}篇：{i * i * i}{i * 7919 % 1000003}。" for i in range(400)).encode()
RECORDS = lines(*({"text": f"第{i}篇：{i * i * i}{i * 7919 % 1000003}。"} for i in range(400)))
NAMES = ("a.txt", "a.jsonl", "a.wet", "a.xml")


def content(name: str) -> bytes:
    if name == "a.wet":
        head = "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: <{}>\r\nContent-Length: {}\r\n\r\n"
        return b"".join(head.format(i, len(t)).encode() + t + b"\r\n\r\n" for i, t in enumerate(TEXT.split(b"\n\n")))
    if name == "a.xml":
        page = "<page>\n<title>t</title>\n<ns>0</ns>\n<id>{}</id>\n<revision>\n<text>{}</text>\n</revision>\n</page>\n"
        return "".join(page.format(i, t) for i, t in enumerate(TEXT.decode().split("\n\n"))).encode()
    return TEXT if name == "a.txt" else RECORDS


PACKED = [(name, pack) for name in NAMES for pack in PACK if name != "a.wet" or pack == "gz"]


@pytest.mark.parametrize(("name", "pack"), PACKED)
def test_packed_files_hold_the_same(tmp_path: Path, name: str, pack: str) -> None:
    (tmp_path / name).write_bytes(content(name))
    (tmp_path / f"{name}.{pack}").write_bytes(PACK[pack](content(name)))
    plain, packed = only(tmp_path / name), only(tmp_path / f"{name}.{pack}", 10)
    assert [d.text for d in packed[0]] == [d.text for d in plain[0]]
    assert packed[1] == plain[1] == {"documents": 400}


@pytest.mark.parametrize(("name", "pack"), PACKED)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_files(tmp_path: Path, name: str, pack: str, share: float) -> None:
    packed = PACK[pack](content(name))
    path = tmp_path / f"{name}.{pack}"
    path.write_bytes(packed[: max(7, int(len(packed) * share))])
    found, counts = only(path)
    (tmp_path / name).write_bytes(content(name))
    expected = [d.text for d in only(tmp_path / name)[0]]
    # In plain text the end of the last document cannot be told from its middle.
    whole = [d.text for d in found][: -1 if name == "a.txt" else None]
    assert whole == expected[: len(whole)]
    assert counts["documents"] == len(found)
    assert counts["dropped_truncated_file"] + counts["dropped_damaged_file"] == 1


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(PACKED),
    place=st.floats(0.01, 0.99),
    damage=st.binary(min_size=1, max_size=40),
)
def test_flipped_bytes_never_end_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, kind: tuple[str, str], place: float, damage: bytes
) -> None:
    name, pack = kind
    packed = bytearray(PACK[pack](content(name)))
    at = max(10, int(len(packed) * place))
    packed[at : at + len(damage)] = damage
    path = tmp_path_factory.mktemp("flip") / f"{name}.{pack}"
    path.write_bytes(bytes(packed))
    found, counts = only(path)
    assert counts["documents"] == len(found) <= 401


ODD = {
    "gbk": "简体中文".encode("gbk"),
    "bom": b"\xef\xbb\xbf" + "文章".encode(),
    "separators": "文\u2028章\u2029完\x85了".encode(),
    "nul": b"\0\0" + "文章".encode() + b"\0",
    "crlf": "文章\r\n第二行".encode(),
    "emoji": "👩‍👩‍👧❤️🏳️‍🌈文章".encode(),
    "full width": "ＡＢＣ１２３，。".encode(),
    "overlong": b"\xc0\x80\xed\xa0\x80",
    "blank": " \u3000\t".encode(),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_text_in_every_kind(tmp_path: Path, name: str) -> None:
    """Between two sound ones, which stay; the odd one is there without loss of a letter, or counted."""
    odd = ODD[name]
    head = b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n"
    page = b"<page>\n<ns>0</ns>\n<id>1</id>\n<revision>\n<text>%s</text>\n</revision>\n</page>\n"
    kinds: dict[str, Callable[[bytes], bytes]] = {
        "a.txt": lambda text: text + b"\n\n",
        "a.jsonl": lambda text: b'{"text": "' + text.replace(b"\r\n", b"\\r\\n").replace(b"\t", b"\\t") + b'"}\n',
        "a.wet": lambda text: head % (len(text), text),
        "a.xml": lambda text: page % text,
    }
    for file, form in kinds.items():
        (tmp_path / file).write_bytes(form("前一篇".encode()) + form(odd) + form("后一篇".encode()))
        found, counts = only(tmp_path / file)
        assert [found[0].text.strip(), found[-1].text.strip()] == ["前一篇", "后一篇"]
        assert len(found) + sum(counts.dropped.values()) == 3, (file, counts)
        stream, _ = clean(raw_stream([d.text for d in found]), CleanConfig(min_characters=0))
        assert all(text.isprintable() or "\n" in text or "\u200d" in text for text in stream.texts())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "\\ud800\\u6587"}', "documents"),
        (b'{"text": null}', "no_text"),
        (b'{"text": ["a"]}', "no_text"),
        (b'{"txt": "a"}', "no_text"),
        (b'"text"', "no_text"),
        (b'{"text": ""}', "empty"),
        (b'{"text": "a"', "not_json"),
        (b'{"text": "a"} {"text": "b"}', "not_json"),
        (b"\xff\xfe", "undecodable"),
    ],
)
@pytest.mark.parametrize("column", ["text", ["text", "title"]])
def test_json_records(tmp_path: Path, line: bytes, reason: str, column: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(line + b"\r\n" + b'{"text": "end"}')
    found, counts = only(path, text_column=column)
    assert found[-1].text == "end"
    expected = {"documents": 2} if reason == "documents" else {"documents": 1, f"dropped_{reason}": 1}
    assert counts == expected


def test_several_columns_are_one_text(tmp_path: Path) -> None:
    rows = [{"title": "题", "text": "文"}, {"title": "", "text": "文"}, {"title": "题"}, {"text": 5, "title": "题"}, {}]
    (tmp_path / "a.jsonl").write_bytes(lines(*rows))
    found, counts = only(tmp_path / "a.jsonl", text_column=["title", "text"])
    assert [d.text for d in found] == ["题\n文", "文", "题", "题"]
    assert counts == {"documents": 4, "dropped_no_text": 1}
    columns = {"title": ["题", None, ""], "text": ["文", "文", None], "id": ["x", "y", "z"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found, counts = only(tmp_path / "a.parquet", text_column=["title", "text"])
    assert [(d.id, d.text) for d in found] == [("x", "题\n文"), ("y", "文")]
    assert counts == {"documents": 2, "dropped_empty": 1}


def test_a_document_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_CHARACTERS", 10)
    monkeypatch.setattr(jsonl, "MAX_CHARACTERS", 10)
    rows = [{"text": "长" * 10}, {"text": "长" * 11}]
    (tmp_path / "a.jsonl").write_bytes(lines(*rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        assert only(tmp_path / name)[1] == {"documents": 1, "dropped_document_too_long": 1}


@pytest.mark.parametrize("pack", ["", ".gz", ".zst", ".xz", ".bz2"])
def test_a_line_of_100_megabytes_is_not_held(tmp_path: Path, pack: str) -> None:
    path = tmp_path / f"a.jsonl{pack}"
    line = b'{"text": "' + b"a" * (100 << 20) + b'"}\n'
    good = lines({"text": "好"})
    path.write_bytes(PACK[pack[1:]](good + line + good) if pack else good + line + good)
    del line
    (reader,) = sources(path)
    counts = Counts()
    tracemalloc.start()
    try:
        found = [t for block in reader.blocks(1 << 26) for some in reader.texts(block, counts) for t in some]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == ["好", "好"]
    assert counts == {"documents": 2, "dropped_line_too_long": 1}
    assert peak < 3 * streams.MAX_LINE


def test_members_are_told_from_their_bytes_inside_of_others(tmp_path: Path) -> None:
    """The magic bytes of gzip inside of stored data begin no member."""
    inner = gzip.compress(b"no member of the file")
    members = [gzip.compress(b"HEAD " + inner * 3, compresslevel=0) for _ in range(5)]
    path = tmp_path / "a.gz"
    path.write_bytes(b"".join(members))
    starts = [sum(map(len, members[:i])) for i in range(5)]
    cuts = cut_at_members(str(path), path.stat().st_size, 1, lambda head: head.startswith(b"HEAD"))
    assert [a for a, _ in cuts] == starts
    for (start, stop), member in zip(cuts, members, strict=True):
        with Decompressed(str(path), start, stop) as stream:
            assert stream.read() == gzip.decompress(member)
            assert stream.damage == ""


def test_json_is_read_as_the_standard_library_reads_it(tmp_path: Path) -> None:
    texts = [chr(c) for c in range(0x3000) if not chr(c).isspace()] + ["\\u0000", "\ud83d\ude00"]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="ascii")
    assert [d.text for d in only(path)[0]] == [json.loads(json.dumps(t)) for t in texts]

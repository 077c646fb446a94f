"""Web archives: records are framed in whatever is damaged, and pages become text."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from data_prep.readers import warc
from tests.data_prep.reading import only, read, records, sources


def record(body: bytes, kind: str = "conversion", length: int | None = None, name: str = "1") -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{name}>\r\nContent-Length: "
    type_ = "application/http; msgtype=response" if kind == "response" else "text/plain"
    size = len(body) if length is None else length
    return f"{head}{size}\r\nContent-Type: {type_}\r\n\r\n".encode() + body + b"\r\n\r\n"


def page(html: bytes, *fields: str, status: str = "200 OK") -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", *fields])
    return record(head.encode() + b"\r\n\r\n" + html, "response")


TEXTS = ["第一篇\n第二行", "第二篇", "第三篇"]
RECORDS = [record(b"software: x", "warcinfo"), *(record(t.encode(), name=str(i)) for i, t in enumerate(TEXTS))]
GOOD = {"documents": 3, "dropped_record_warcinfo": 1}


@pytest.mark.parametrize("ending", ["wet", "wet.gz", "warc", "warc.gz"])
@pytest.mark.parametrize("block_bytes", [1, 300, 1 << 30])
def test_wet_text_is_taken_as_it_is(tmp_path: Path, ending: str, block_bytes: int) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"".join(map(gzip.compress, RECORDS)) if ending.endswith("gz") else b"".join(RECORDS))
    found, counts = only(path, block_bytes)
    assert [(d.id, d.text) for d in found] == [(f"urn:uuid:{i}", t) for i, t in enumerate(TEXTS)]
    assert counts == GOOD
    (reader,) = sources(path)
    assert len(reader.blocks(1)) == 4
    assert read(pickle.loads(pickle.dumps(reader))) == (found, counts)


def test_a_file_that_is_one_gzip_member(tmp_path: Path) -> None:
    path = tmp_path / "a.wet.gz"
    path.write_bytes(gzip.compress(b"".join(RECORDS)))
    assert len(sources(path)[0].blocks(1)) == 1
    assert only(path)[1] == GOOD


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (record("第二篇".encode(), length=5), "wrong_length"),
        (record("第二篇".encode(), length=40), "wrong_length"),
        (record("第二篇".encode(), length=9000), "wrong_length"),
        (record("第二篇".encode(), length=-3), "bad_header"),
        (record(b"", length=99).replace(b"Content-Length: 99\r\n", b""), "bad_header"),
        (record(b"x" * 5000), "record_too_long"),
        (record("第二篇".encode(), length=10**12), "record_too_long"),
        (record("二".encode("gbk")), "undecodable"),
        (b"what is this\r\nhere\r\n", "not_a_record"),
        (b"WARC/1.0\r\n" + b"x: y\r\n" * 2000 + b"\r\n", "bad_header"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_bad_record_costs_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bytes, reason: str, packed: bool
) -> None:
    monkeypatch.setattr(warc, "MAX_RECORD", 4000 if "too_long" in reason else 1 << 20)
    monkeypatch.setattr(warc, "MAX_HEADER", 9000)
    records = [RECORDS[0], RECORDS[1], damaged, RECORDS[2], RECORDS[3]]
    path = tmp_path / ("a.wet.gz" if packed else "a.wet")
    path.write_bytes(b"".join(map(gzip.compress, records)) if packed else b"".join(records))
    found, counts = only(path)
    assert [d.text for d in found] == TEXTS
    assert counts == {**GOOD, f"dropped_{reason}": 1}


@pytest.mark.parametrize("packed", [False, True])
def test_a_torn_file(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("a.wet.gz" if packed else "a.wet")
    content = b"".join(map(gzip.compress, RECORDS)) if packed else b"".join(RECORDS)
    path.write_bytes(content[: -15 if packed else -9])
    found, counts = only(path)
    assert [d.text for d in found] == TEXTS[:2]
    assert counts["documents"] == 2
    assert sum(counts.dropped.values()) >= 2
    path.write_bytes(b"")
    assert only(path)[0] == []


def test_reading_goes_on_after_a_damaged_member(tmp_path: Path) -> None:
    members = [gzip.compress(r) for r in RECORDS]
    members[2] = members[2][:30] + b"\xff" * 20 + members[2][50:]
    path = tmp_path / "a.wet.gz"
    path.write_bytes(b"".join(members))
    for block_bytes in (1, 1 << 30):
        found, counts = only(path, block_bytes)
        assert [d.text for d in found] == [TEXTS[0], TEXTS[2]]
        assert counts["dropped_damaged_file"] == 1


PIECES = [
    *RECORDS,
    b"WARC/1.0\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"junk\n",
    b"Content-Length: 3\r\n",
    b"\xff\0",
    record(b"x", length=3),
]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join), st.integers(0, 40))
def test_any_bytes_are_read_to_the_end(tmp_path_factory: pytest.TempPathFactory, content: bytes, cut: int) -> None:
    path = tmp_path_factory.mktemp("law") / "a.wet"
    path.write_bytes(content[: len(content) - cut])
    found, counts = only(path)
    assert counts["documents"] == len(found)
    if content[: len(content) - cut].strip():
        assert sum(counts.values()) > 0


HTML = "<html><head><title>t</title><script>x()</script></head><body><article><p>%s</p></article></body></html>"
LONG = "这是一篇关于春天的文章，讲的是公园里的花和树。" * 8


@pytest.mark.parametrize(
    ("stated", "meta", "codec"),
    [
        ("; charset=utf-8", "", "utf-8"),
        ("; charset=GBK", "", "gb18030"),
        ("; charset=gb2312", "", "gb18030"),
        ("", '<meta charset="gbk">', "gbk"),
        ("; charset=no-such-thing", '<meta charset="big5">', "big5"),
    ],
)
def test_pages_become_text(tmp_path: Path, stated: str, meta: str, codec: str) -> None:
    text = LONG if codec != "big5" else "這是一篇文章，講的是花和樹。" * 8
    html = (HTML % text).replace("<head>", "<head>" + meta).encode(codec)
    path = tmp_path / "a.warc.gz"
    plain = page(html, f"Content-Type: text/html{stated}")
    packed = page(gzip.compress(html), f"Content-Type: text/html{stated}", "Content-Encoding: gzip")
    chunked = f"{len(html):x}\r\n".encode() + html + b"\r\n0\r\n\r\n"
    pieces = page(chunked, f"Content-Type: text/html{stated}", "Transfer-Encoding: chunked")
    path.write_bytes(b"".join(map(gzip.compress, (plain, packed, pieces))))
    found, counts = only(path)
    assert [d.text for d in found] == [text] * 3
    assert records(counts) == {"documents": 3}
    assert counts["removed_markup"] == counts["characters_read"] > 100


def test_what_is_no_page_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warc, "MAX_RECORD", 1 << 18)
    html = "Content-Type: text/html"
    records = [
        record(b"GET / HTTP/1.1\r\n\r\n", "request"),
        record(b"", "%%odd%%"),
        page(b"gone", html, status="404 Not Found"),
        page(b"\x89PNG", "Content-Type: image/png"),
        page(b"?", "Content-Type: <b>"),
        page(b"", html),
        page(gzip.compress(b"<p>" + b"a" * (1 << 20)), html, "Content-Encoding: gzip"),
        page(b"not gzip", html, "Content-Encoding: gzip"),
        record(b"", "response"),
        page((HTML % LONG).encode(), html),
    ]
    path = tmp_path / "a.warc"
    path.write_bytes(b"".join(records))
    found, counts = only(path)
    assert [d.text for d in found] == [LONG]
    assert counts["documents"] + sum(counts.dropped.values()) == len(records)
    assert {"record_request", "record_odd", "status", "type_image/png", "type_odd", "empty"} <= set(counts.dropped)
    assert counts["dropped_record_too_long"] == 1


def test_pages_need_the_extractor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warc, "has_extractor", lambda: False)
    for name in ("a.warc", "a.wet", "a.warc.wet.gz"):
        content = b"".join(RECORDS)
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(DataError, match=r"zhengliu\[web\]"):
        only(tmp_path / "a.warc")
    assert only(tmp_path / "a.wet")[1] == only(tmp_path / "a.warc.wet.gz")[1] == GOOD

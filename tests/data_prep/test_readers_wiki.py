"""MediaWiki dumps: pages are framed in whatever is damaged, and wikitext becomes running text."""

from __future__ import annotations

import bz2
import gzip
import re
import time
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.readers import mediawiki
from data_prep.readers.mediawiki import nesting, plain_text
from tests.data_prep.reading import only, records, sources

HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="zh">\n  <siteinfo>\n  </siteinfo>\n'
END = "</mediawiki>\n"


def page(number: int, text: str, title: str = "标题", namespace: int = 0, more: str = "") -> str:
    return (
        f"  <page>\n    <title>{title}</title>\n    <ns>{namespace}</ns>\n    <id>{number}</id>\n{more}"
        f"    <revision>\n      <id>7</id>\n      <model>wikitext</model>\n"
        f'      <text bytes="1" xml:space="preserve">{escape(text)}</text>\n    </revision>\n  </page>\n'
    )


PAGES = [page(i, f"第{i}篇'''文章'''。\n\n<page>\n</page>") for i in range(1, 8)]


def multistream(pages: list[str]) -> bytes:
    """A stream for the head, one for every two pages, one for the end: as Wikipedia's dumps are made."""
    pairs = ["".join(pages[i : i + 2]) for i in range(0, len(pages), 2)]
    return b"".join(bz2.compress(part.encode()) for part in [HEAD, *pairs, END])


@pytest.mark.parametrize("ending", ["xml", "xml.gz", "xml.bz2", "multistream.xml.bz2"])
@pytest.mark.parametrize("block_bytes", [1, 500, 1 << 30])
def test_articles_of_every_kind_of_dump(tmp_path: Path, ending: str, block_bytes: int) -> None:
    whole = (HEAD + "".join(PAGES) + END).encode()
    content = {"xml": whole, "xml.gz": gzip.compress(whole), "xml.bz2": bz2.compress(whole)}
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content.get(ending) or multistream(PAGES))
    found, counts = only(path, block_bytes)
    assert [(d.id, d.text) for d in found] == [(f"{path.name}:{i}", f"标题\n第{i}篇文章。") for i in range(1, 8)]
    assert records(counts) == {"documents": 7}
    assert counts["removed_markup"] == counts["characters_read"] > 50
    if ending in ("xml", "multistream.xml.bz2"):
        assert len(sources(path)[0].blocks(1)) > 3


def test_what_is_no_article_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mediawiki, "MAX_PAGE", 50_000)
    pages = [
        page(1, "好"),
        page(2, "#REDIRECT [[好]]", more='    <redirect title="好" />\n'),
        page(3, "模板", namespace=10),
        page(4, ""),
        page(5, "{{只有模板}}"),
        page(6, "x").replace("wikitext", "javascript"),
        page(7, "x").replace("</text>", ""),
        page(8, "x").replace("<ns>0", "<ns>zero"),
        page(9, "长" * 60_000),
        page(10, "&#0; \ud800".replace("\ud800", "")).replace("&amp;#0;", "&#0;"),
        page(11, "{{" * 200),
        "  <page>\n  <title>没有修订</title>\n  <ns>0</ns>\n  <id>12</id>\n  </page>\n",
        "  <page>\n  <title>撕裂",
        page(14, "尾"),
    ]
    path = tmp_path / "a.xml"
    path.write_bytes((HEAD + "".join(p if p.endswith("\n") else p + "\n" for p in pages)).encode())
    found, counts = only(path)
    assert [d.id for d in found] == ["a.xml:1", "a.xml:14"]
    assert records(counts) == {
        "documents": 2,
        "dropped_redirect": 1,
        "dropped_other_namespace": 1,
        "dropped_empty": 2,
        "dropped_not_wikitext": 1,
        "dropped_bad_page": 3,
        "dropped_page_too_long": 1,
        "dropped_too_nested": 1,
        "dropped_no_text": 1,
        "dropped_torn_page": 1,
    }


def test_a_dump_cut_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "a.xml.bz2"
    content = multistream(PAGES)
    path.write_bytes(content[: len(content) // 2])
    found, counts = only(path)
    assert 0 < len(found) < 7
    assert counts["dropped_truncated_file"] == 1
    torn = bytearray(content)
    second = [match.start() for match in re.finditer(rb"BZh91AY&SY", content)][2]
    torn[second + 30 : second + 60] = b"\xff" * 30
    path.write_bytes(bytes(torn))
    for block_bytes in (1, 1 << 30):
        found, counts = only(path, block_bytes)
        assert [d.id.split(":")[1] for d in found] == ["1", "2", "5", "6", "7"]
        assert records(counts) == {"documents": 5, "dropped_damaged_file": 1}


WIKI = [
    ("'''数学'''是[[科学|学科]]，''斜体''。", "数学是学科，斜体。"),
    ("{{Infobox|a={{b|c}}}}前<ref name=x>脚注{{cite|a}}</ref>后<ref name=x />。", "前后。"),
    ("== 历史 ==\n* 一\n# 二\n__NOTOC__", "历史\n一\n二"),
    ("甲[[File:a.jpg|thumb|[[乙|丙]]图]]丁[[Category:数学]][[分类:数学]][[en:Math]][[zh-yue:數]]", "甲丁"),
    ("前\n{| class=wikitable\n|-\n| 甲 || 乙\n|}\n后", "前\n后"),
    ("[http://a.b 链接]和[https://c.d]。<!-- 注 --><math>x^2</math>", "链接和。"),
    ("-{zh-hans:信息;zh-hant:資訊}-、-{zh-cn:软件; zh-tw:軟體;}-、-{A|zh-cn:甲;zh-hk:乙}-", "信息、软件、甲"),
    ("-{H|zh:x;zh-tw:y}--{T|zh:标题}--{原样}-、-{R|原样}-、-{zh-tw:只有}-", "原样、原样、只有"),
    ("-{zh-hans:外-{zh-hans:内;zh-hant:內}-;zh-hant:x}-", "外内"),
    ("一<br/>二<small>三</small><span style='a'>四</span>&nbsp;五 &lt;六", "一\n二三四\xa0五 <六"),
    ("<ref>没有结尾", "没有结尾"),
]


@pytest.mark.parametrize(("wikitext", "text"), WIKI)
def test_wikitext(wikitext: str, text: str) -> None:
    assert plain_text(wikitext) == text


@pytest.mark.parametrize(
    "piece", ["<ref>", "<ref ", "<!--", "-{", "[http://", "''", "{|\n|", "<b>", "-{}-", "__", "&lt;"]
)
def test_hostile_wikitext_takes_no_long(piece: str) -> None:
    began = time.process_time()
    plain_text(piece * 5000)
    assert time.process_time() - began < 5


def test_nesting() -> None:
    assert nesting("[[a]]{{b|{{c}}}}}}}}[[d") == 2


SCRAPS = [
    "  <page>\n",
    "  </page>\n",
    *PAGES[:2],
    "<mediawiki>\n",
    "&",
    "<text>",
    "\n",
    "\x00",
    "<![CDATA[",
    page(3, "]]>"),
]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(SCRAPS), max_size=12).map("".join), st.integers(0, 60), st.integers(1, 400))
def test_blocks_do_not_change_pages(tmp_path_factory: pytest.TempPathFactory, text: str, cut: int, n: int) -> None:
    path = tmp_path_factory.mktemp("law") / "a.xml"
    content = text.encode()
    path.write_bytes(content[: len(content) - cut])
    found, counts = only(path)
    assert counts["documents"] == len(found)
    assert only(path, n) == (found, counts)

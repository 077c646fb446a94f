"""Dumps of MediaWiki (Wikipedia): the articles as plain text.

Pages are framed by the lines ``<page>`` and ``</page>``, which an export has around each page and nowhere else (in text
``<`` is written ``&lt;``), and parsed one by one: memory is bounded by a page, and a damaged one costs itself only.
Wikitext is parsed by ``mwparserfromhell`` (``zhengliu[wiki]``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, BinaryIO
from xml.etree import ElementTree

from configs.errors import DataError
from data_prep.config import SourceConfig
from data_prep.documents import Block, Counts, Document
from data_prep.readers.base import READERS, Reader
from data_prep.readers.streams import PACKED, Lines, check_file, compression, cut_at_lines, cut_at_members

MAX_PAGE = 8 << 20
"""Bytes of XML; longer pages are dropped (and counted). MediaWiki's own limit is 2 MiB of wikitext."""
MAX_NESTING = 100
"""Open templates, links and tables at one place; the parser needs very long for what opens and never ends."""
_FIRST_PAGE = re.compile(rb"\s*<page>\s")
_VARIANT = re.compile(r"-\{((?:(?!-\{|\}-).)*)\}-", re.DOTALL)
_RULE = re.compile(r"(?:^|;)\s*(zh(?:-[a-z]+)*)\s*:", re.IGNORECASE)
_PREFERRED = ("zh-cn", "zh-hans", "zh-sg", "zh-my", "zh")
_GONE = frozenset(
    {"ref", "references", "table", "gallery", "math", "chem", "ce", "timeline", "score", "graph", "templatedata"}
    | {"imagemap", "syntaxhighlight", "source", "pre", "hiero", "mapframe", "maplink", "categorytree", "inputbox"}
    | {"style", "templatestyles"}
)
# [[File:...]], [[分类:...]] and links to other languages; what stands before the colon names no article.
_NAMESPACE = re.compile(
    r"\s*(?:file|image|media|category|文件|檔案|档案|图像|圖像|图片|圖片|媒体|媒體|分类|分類|[a-z]{2,3}(?:-[a-z-]+)?)\s*:",
    re.IGNORECASE,
)
_TAG = re.compile(r"<(/?)([A-Za-z]+)(?:\s[^<>]*?)?(/?)>")
_HALF_TAG = re.compile(r"<(?=[/A-Za-z!])")
_COMMENT = re.compile(r"<!--(?:(?!-->|<!--).)*-->", re.DOTALL)
_LINK = re.compile(r"\[(?:https?:)?//[^\s\[\]]*[^\S\n]*([^\[\]\n]*)\]")
_BRACKETS = re.compile(r"\{\{|\[\[|\{\||\}\}|\]\]|\|\}")
_MAGIC_WORD = re.compile(r"__[A-Z]+__|__[\u4e00-\u9fff]+__")


@READERS.add("mediawiki")
class MediaWikiReader(Reader):
    """``.xml``, plain or compressed: an export of MediaWiki. Ids are the numbers of the pages.

    Articles (namespace 0) are read; redirects, other namespaces and empty pages are counted. A text begins with its
    title. Blocks of compressed files begin at members that begin with a page, as in the multistream dumps.
    """

    endings = tuple(".xml" + ending for ending in PACKED)

    def __init__(self, source: SourceConfig, index: int) -> None:
        super().__init__(source, index)
        self._size = check_file(self.path)
        if find_spec("mwparserfromhell") is None:
            raise DataError(f"Reading {self.path} needs `mwparserfromhell`: `pip install zhengliu[wiki]`.")

    def blocks(self, block_bytes: int) -> list[Block]:
        if compression(self.path):
            cuts = cut_at_members(self.path, self._size, block_bytes, begins_page)
        else:
            cuts = cut_at_lines(self.path, self._size, block_bytes, _next_page)
        return [Block(self.index, self.path, start, stop) for start, stop in cuts]

    def documents(self, block: Block, counts: Counts) -> Iterator[Document]:
        for page in self._pages(block, counts):
            found = _article(page, counts)
            if found is None:
                continue
            number, title, wikitext = found
            if nesting(wikitext) > MAX_NESTING:
                counts.drop("too_nested")
                continue
            text = plain_text(wikitext)
            counts.remove("markup", len(wikitext) - len(text))
            if text:
                text = f"{title}\n{text}"
            document = self._document({"text": text}, number, counts, "text")
            if document is not None:
                yield document

    def _pages(self, block: Block, counts: Counts) -> Iterator[bytes]:
        lines = Lines(self.path, block.start, block.stop, begins_page)
        held: list[bytes] | None = None
        size = 0
        for _, line in lines:
            mark = line.strip() if line is not None and len(line) < 100 else b""
            if mark == b"<page>":
                if held is not None:
                    counts.drop("torn_page")
                held, size = [], 0
            if held is None:
                continue
            size += MAX_PAGE if line is None else len(line) + 1
            if size <= MAX_PAGE and line is not None:
                held.append(line)
            if mark == b"</page>":
                if size > MAX_PAGE:
                    counts.drop("page_too_long")
                else:
                    yield b"\n".join(held)
                held = None
            elif size > MAX_PAGE:
                held.clear()
        if held is not None:
            counts.drop("torn_page")
        for damage in lines.damages or (["truncated_file"] if compression(self.path) and not self._size else []):
            counts.drop(damage)


def begins_page(content: bytes) -> bool:
    return _FIRST_PAGE.match(content) is not None


def _article(page: bytes, counts: Counts) -> tuple[int, str, str] | None:
    """(number, title, wikitext of the newest revision) of an article, or None with the reason counted."""
    try:
        # From <page> to </page>: there is no room for a document type, and so none for entities of its own.
        root = ElementTree.fromstring(page)  # noqa: S314
        namespace, number = int(root.findtext("ns") or 0), int(root.findtext("id") or 0)
    except (ElementTree.ParseError, ValueError):  # also of bytes that are not UTF-8
        counts.drop("bad_page")
        return None
    revisions = root.findall("revision")
    if namespace != 0:
        counts.drop("other_namespace")
    elif root.find("redirect") is not None:
        counts.drop("redirect")
    elif not revisions:
        counts.drop("no_text")
    elif (revisions[-1].findtext("model") or "wikitext") != "wikitext":
        counts.drop("not_wikitext")
    else:
        return number, root.findtext("title") or "", revisions[-1].findtext("text") or ""
    return None


def plain_text(wikitext: str) -> str:
    """Running text of wikitext: without templates, tables, references, files, categories and markup.

    Of conversions between variants of Chinese (``-{zh-hans:..;zh-hant:..}-``) the simplified one is taken.
    """
    import mwparserfromhell

    marked = in_one_variant(_LINK.sub(r"\1", without_tags(_COMMENT.sub("", wikitext))).replace("[http", "http"))
    code = mwparserfromhell.parse(_MAGIC_WORD.sub("", marked), skip_style_tags=True)
    _prune(code)
    text = str(code.strip_code(normalize=True, collapse=False)).replace("'''", "").replace("''", "")
    return "\n".join(line for found in text.split("\n") if (line := found.strip()))


def nesting(wikitext: str) -> int:
    """How many templates, links and tables are open at once, at most."""
    depth = most = 0
    for match in _BRACKETS.finditer(wikitext):
        depth = depth + 1 if match[0][0] in "{[" else max(0, depth - 1)
        most = max(most, depth)
    return most


def without_tags(text: str) -> str:
    """``text`` without tags, and without what stands between those of :data:`_GONE`.

    Done here in one pass, because the parser needs time that is quadratic in the number of tags without an end.
    """
    kept, at = list[str](), 0
    without_end: set[str] = set()
    lower = text.lower() if len(text.lower()) == len(text) else text
    for match in _TAG.finditer(text):
        if match.start() < at:
            continue  # inside of what is gone
        kept.append(text[at : match.start()])
        at = match.end()
        name = match[2].lower()
        if name == "br":
            kept.append("\n")
        if name not in _GONE or match[1] or match[3] or name in without_end:
            continue
        end = lower.find(f"</{name}", at)
        close = text.find(">", end) if end >= 0 else -1
        if close < 0:
            without_end.add(name)
        else:
            at = close + 1
    return _HALF_TAG.sub("&lt;", "".join([*kept, text[at:]]))


def _prune(code: Any) -> None:
    """Remove what is not running text, also inside of what stays."""
    from mwparserfromhell.nodes import Tag, Template, Wikilink

    for node in list(code.nodes):
        if isinstance(node, Template) or (isinstance(node, Tag) and str(node.tag).strip().lower() in _GONE):
            code.nodes.remove(node)
        elif isinstance(node, Wikilink):
            if _NAMESPACE.match(str(node.title)):
                code.nodes.remove(node)
            elif node.text is not None:
                _prune(node.text)
        elif isinstance(node, Tag) and node.contents is not None:
            _prune(node.contents)


def in_one_variant(text: str) -> str:
    """``text`` with each ``-{...}-`` replaced by what a reader of simplified Chinese sees; innermost first."""
    for _ in range(8):
        text, found = _VARIANT.subn(lambda match: _variant(match[1]), text)
        if not found:
            break
    return text


def _variant(content: str) -> str:
    """What one conversion shows. Flags stand before a ``|``: A shows and H does not, T is the page's title."""
    flags, bar, rest = content.partition("|")
    if bar and re.fullmatch(r"[\sA-Za-z;+-]*", flags):
        if {flag.strip().upper() for flag in flags.split(";")} & {"H", "T", "-", "+", "D", "N"}:
            return ""
        content = rest
    choices = list(_RULE.finditer(content))
    if not choices:
        return content.strip() if bar else content
    ends = [*(match.start() for match in choices[1:]), len(content)]
    values = {
        match[1].lower(): content[match.end() : end].strip().rstrip(";").strip()
        for match, end in zip(choices, ends, strict=True)
    }
    return next((values[name] for name in _PREFERRED if name in values), next(iter(values.values())))


def _next_page(file: BinaryIO) -> int:
    """Offset of the first line ``<page>`` after the position of ``file``, or the end."""
    whole = False
    while True:
        at = file.tell()
        line = file.readline(1 << 20)
        if not line or (whole and line.strip() == b"<page>"):
            return at
        whole = line.endswith(b"\n")

"""DATA/report.html and DATA/tensorboard: what a corpus is made of, from what its shards have noted.

Both depend on the data alone, not on the time or the machine, and are on disk before the manifest is.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import Any

from data_prep import inspect
from data_prep.atomic import aside_of, discard, put_into_place, sync_all, write_bytes
from data_prep.corpus import Corpus, SplitName
from data_prep.documents import Counts
from data_prep.histogram import histogram
from data_prep.page import Code, Plot, Section, Table, render
from data_prep.statistics import EDGES, merged
from data_prep.tokenizer_base import Tokenizer

MOST_SOURCES = 40
MOST_WORDS = 100
SAMPLES = 5
LENGTHS = {
    "documents": "tokens of a document",
    "units": "tokens of a sentence or line",
    "sequences": "tokens of a training sequence",
}


def write_report(corpus: Corpus, tokenizer: Tokenizer, shards: list[dict[str, Any]]) -> None:
    """Write the page and the TensorBoard events of a corpus.

    Args:
        corpus: its manifest need not be on disk yet.
        shards: the manifests of all its shards, in their order.

    Raises:
        OSError: the folder cannot be written.
    """
    from data_prep.events import write_events

    facts = merged([shard["statistics"] for shard in shards if "statistics" in shard])
    tables = [drops(corpus.manifest), characters(corpus.manifest), sources(shards)]
    page = {
        "name": "Corpus",
        "headline": headline(corpus.manifest),
        "missing": [],
        "sections": [
            Section("Sources", tables=tables),
            lengths(facts),
            words(facts, tokenizer),
            masks(corpus),
            Section("Settings", tables=[settings(corpus)]),
        ],
    }
    write_bytes(corpus.folder / "report.html", render("report.html.j2", page).encode("utf-8"))
    final = corpus.folder / "tensorboard"
    aside = aside_of(final)
    write_events(aside, facts["lengths"], {table.title: table for table in tables})
    sync_all(aside)
    discard(final)
    put_into_place(aside, final, lambda there: False)


def headline(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    train, held_out = manifest["splits"]["train"], manifest["splits"]["held_out"]
    dropped = sum(manifest["dropped"].values())
    seen = manifest["documents"] + dropped
    tokens, missing = (train[k] + held_out[k] for k in ("tokens", "unknown"))
    return [
        (f"{manifest['documents']:,}", "documents"),
        (f"{manifest['characters']:,}", "characters"),
        (f"{tokens:,}", "tokens"),
        (f"{train['sequences']:,}", "training sequences"),
        (f"{dropped / max(seen, 1):.1%}", "of the documents dropped"),
        (f"{missing / max(tokens, 1):.2%}", "of the tokens unknown"),
    ]


def drops(manifest: dict[str, Any]) -> Table:
    """Documents by what became of them."""
    dropped = manifest["dropped"]
    seen = max(manifest["documents"] + sum(dropped.values()), 1)
    rows = [["kept", f"{manifest['documents']:,}", f"{manifest['documents'] / seen:.2%}"]]
    ordered = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    rows += [[reason.replace("_", " "), f"{n:,}", f"{n / seen:.2%}"] for reason, n in ordered]
    return Table("Documents, kept and dropped by reason", ["", "documents", "share"], rows)


def characters(manifest: dict[str, Any]) -> Table:
    """Characters by what became of them: those read, and what others were made of them, are kept, or counted here."""
    read = max(manifest["characters_read"], 1)
    rows = [
        ("read", manifest["characters_read"]),
        ("more by entities, Unicode form and OpenCC", manifest["characters_rewritten"]),
        *((f"removed: {reason.replace('_', ' ')}", n) for reason, n in manifest["removed"].items()),
        ("in dropped documents", manifest["characters_dropped"]),
        ("kept", manifest["characters"]),
    ]
    cells = [[name, f"{n:,}", f"{n / read:.2%}"] for name, n in rows]
    return Table("Characters, kept, removed and dropped", ["", "characters", "share"], cells)


def sources(shards: list[dict[str, Any]], most: int | None = MOST_SOURCES) -> Table:
    """One row a file, the largest first; those beyond ``most`` together."""
    files: dict[str, Counter[str]] = {}
    for shard in shards:
        total = files.setdefault(shard["block"]["path"], Counter())
        counts = Counts(shard["counts"])
        total.update({k: counts[k] for k in ("documents", "characters", "bytes")})
        total["dropped"] += sum(counts.dropped.values())
        total["tokens"] += sum(split["tokens"] for split in shard["splits"].values())
    ordered = sorted(files.items(), key=lambda item: (-item[1]["tokens"], item[0]))
    shown = ordered[:most]
    rest: Counter[str] = Counter()
    for _, total in ordered[len(shown) :]:
        rest.update(total)
    if rest:
        shown = [*shown, (f"{len(ordered) - len(shown):,} more files", rest)]
    columns = ["file", "documents", "dropped", "characters", "MB", "tokens"]
    rows = [
        [
            path,
            *(f"{t[k]:,}" for k in ("documents", "dropped", "characters")),
            f"{t['bytes'] / 1e6:,.1f}",
            f"{t['tokens']:,}",
        ]
        for path, t in shown
    ]
    return Table("Files", columns, rows)


def lengths(facts: dict[str, Any]) -> Section:
    plots = [
        histogram(name, [*EDGES, EDGES[-1] * 2], facts["lengths"].get(name, []), what) for name, what in LENGTHS.items()
    ]
    notes = ["Of the training split. Classes of length widen by half an octave: 1, 2, 3, 4, 6, 8, 12, ... tokens."]
    return Section("Lengths", notes, plots=[Plot(plot) for plot in plots if plot is not None])


def words(facts: dict[str, Any], tokenizer: Tokenizer) -> Section:
    """The most frequent words and the most frequent pieces without an entry in the vocabulary."""
    counted = facts["counted_tokens"]
    ordered = sorted(facts["words"].items(), key=lambda item: (-item[1], item[0]))
    long = [(tokenizer.decode(ids), n) for ids, n in ordered if len(ids) > 1]
    short = [(tokenizer.decode(ids), n) for ids, n in ordered if len(ids) == 1]
    unknown = sorted(facts["unknown"].items(), key=lambda item: (-item[1], item[0]))[:MOST_WORDS]
    notes = [f"Words as the segmenter cut them, counted in {counted:,} tokens of the training split."]
    tables = [
        Table("Words of several tokens", ["word", "times"], [[w, f"{n:,}"] for w, n in long[:MOST_WORDS]]),
        Table("Words of one token", ["word", "times"], [[w, f"{n:,}"] for w, n in short[:MOST_WORDS]]),
    ]
    if unknown:
        rows = [[text, describe(text), f"{n:,}"] for text, n in unknown]
        tables.append(Table("Not in the vocabulary", ["text", "", "times"], rows, 2))
    return Section("Words", notes, codes=[listing(table) for table in tables[:2]], tables=tables[2:])


def listing(table: Table) -> Code:
    """A long table of two columns as lines of a folded listing."""
    return Code(table.title, "text", "\n".join(f"{count:>12}  {word}" for word, count in table.rows))


def describe(text: str) -> str:
    """Code point and name of a single character."""
    return f"U+{ord(text):04X} {unicodedata.name(text, '').lower()}".strip() if len(text) == 1 else ""


def masks(corpus: Corpus) -> Section:
    """Some sequences with their words and masks drawn; the held-out split's where training masks nothing."""
    drawn = "\n\n".join(samples(corpus))
    return Section("Masked samples", [inspect.LEGEND], codes=[Code("", "text", drawn, folded=False)])


def samples(corpus: Corpus) -> list[str]:
    name: SplitName = "train" if corpus.manifest["masking"]["rate"] > 0 else "held_out"
    total = len(corpus.split(name))
    return inspect.samples_at(corpus, name, sorted({total * k // SAMPLES for k in range(SAMPLES)}), 0)


def settings(corpus: Corpus) -> Table:
    """As ``distill data inspect`` shows them, without what depends on place and time."""
    left_out = ("folder", "prepared in")
    rows = [[key, str(value)] for key, value in inspect.totals(corpus).items() if key not in left_out]
    return Table("", ["", ""], rows, 2)

"""``distill data``: look at prepared data, check it, write it out. Runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs.errors import ConfigError, DataError, OutputError
from data_prep import inspect as drawing
from data_prep.corpus import Corpus, SplitName
from data_prep.shards import read_manifest

MASKED = "bold red"


def check_split(name: str) -> SplitName:
    if name not in ("train", "held_out"):
        raise ConfigError(f"There is no split {name!r}; take train or held_out.")
    return cast(SplitName, name)


def inspect(folder: Path, split: str, count: int, first: int, view: int, console: Console | None = None) -> None:
    """Print what preparation counted, and ``count`` sequences from ``first`` on with words and masks drawn."""
    name = check_split(split)
    corpus = Corpus.open(folder)
    total = len(corpus.split(name))
    if first >= total:
        raise ConfigError(f"--first {first}: the {split} split of {folder} has {total:,} sequences, counted from 0.")
    console = console or Console(highlight=False, soft_wrap=True)
    for key, value in drawing.totals(corpus).items():
        console.print(Text.assemble((f"{key}: ", "bold"), str(value)))
    console.print(Text(f"\n{drawing.LEGEND}", "dim"))
    for number, drawn in enumerate(drawing.samples(corpus, name, count, view, first), start=first):
        text = Text(drawn)
        text.highlight_regex("【[^】]*】", MASKED)
        text.highlight_regex("│", "dim")
        console.print(Text(f"\n{split} {number}, view {view}", "bold"))
        console.print(text)


def duplicates(folder: Path, count: int, console: Console | None = None) -> None:
    """Print ``count`` of the clusters of duplicates that preparation kept as examples."""
    corpus = Corpus.open(folder)
    drawn = drawing.duplicates(corpus, count)
    if not drawn:
        asked = corpus.manifest.get("duplicates") is not None
        why = "there are none" if asked else "it was prepared without data.dedup"
        raise DataError(f"{folder} has no clusters of duplicates to show: {why}.")
    console = console or Console(highlight=False, soft_wrap=True)
    for text in drawn:
        console.print(Text(f"{text}\n"))


def verify(folder: Path) -> None:
    """Raise DataError naming every file that is not what its manifest says."""
    from data_prep.manifest import verify as verified

    problems = verified(folder)
    if problems:
        head = f"{folder} is damaged. Remove it (or the shards named here and manifest.json) and run `distill prep`."
        raise DataError("\n  - ".join([head, *problems]))
    print(f"{folder}: every file is as it was written.")


def count(folder: Path, console: Console | None = None) -> None:
    """Print the tables of what was read and dropped, every file with a row of its own."""
    from data_prep import report

    manifest = read_manifest(folder)
    shards = [read_manifest(folder / "shards" / shard["name"]) for shard in manifest["shards"]]
    console = console or Console(highlight=False)
    for table in (report.drops(manifest), report.sources(shards, most=None)):
        drawn = Table(title=table.title, title_justify="left", show_edge=False, pad_edge=False)
        for number, column in enumerate(table.columns):
            words = number < table.text_columns
            drawn.add_column(column, justify="left" if words else "right", overflow="fold", no_wrap=not words)
        for row in table.rows:
            drawn.add_row(*map(Text, row))
        console.print(drawn)


def convert(folder: Path, split: str, to: str | None, out: Path) -> None:
    """Write a split's sequences to ``out``; the format is taken from the name unless ``to`` says it."""
    from data_prep import convert as conversion

    name = check_split(split)
    if out.exists():
        raise OutputError(f"{out} exists already. Remove it, or name a file that does not exist yet.")
    count = conversion.convert(Corpus.open(folder), name, to or out.suffix.removeprefix(".") or "jsonl", out)
    print(f"{out}: {count:,} sequences of the {split} split.")

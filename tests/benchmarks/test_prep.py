"""The benchmark of preparation: every part runs, on a small text, and gives the rows of its bars. Nothing is timed."""

from __future__ import annotations

import importlib
import inspect
import math
from pathlib import Path

import numpy as np
import pytest

import data_prep
from benchmarks.prep import __main__ as table
from benchmarks.prep import bars, dedup, end_to_end, processes, reads, segment, tokenize
from benchmarks.prep.timing import Row, interleaved, texts_of
from data_prep.config import TokenizerConfig
from data_prep.tokenizer_training import train_wordpiece

SAMPLE = sorted((Path(data_prep.__file__).parent / "sample_corpus").glob("*.txt"))
ROWS = {
    "end_to_end": [
        *("1 end to end (dynamic) / Megatron-like preprocess", "2 end to end (dynamic) / MiniRBT's path"),
        *("3 end to end (dynamic) / bytes.decode", "3 end to end (no words) / bytes.decode"),
        *("MB/s a core, dynamic", "  stored: words"),
    ],
    "readers": [
        "reading bytes.decode",
        "reading a.jsonl.zst",
        "reading a.parquet",
        "reading a.wet.gz",
        "reading a.xml",
    ],
    "segment": [
        *("precision of boundaries with HMM", "recall of boundaries with HMM"),
        *("kernel against jieba without HMM", "rjieba with HMM"),
    ],
    "tokenize": ["WordPiece / tokenizers.encode_batch_fast", "WordPiece: lines that differ", "byte-level BPE"],
    "reads": [
        "6 gather + stored mask / two int64 copies, used memory",
        "6 gather + dynamic mask / two int64 copies, used memory",
        "6 gather + dynamic mask / two int64 copies, new memory",
        "7 batched random reads (ids) / Arrow's (ids)",
        "7 batched random reads (ids and word bits) / Arrow's (ids and word bits)",
        *("12 packed / whole preparation", "12 pairs", "masks, four stored views", "masks, n-grams"),
    ],
    "dedup": ["near-duplicate signatures", "planted near-duplicates found", "all filters of web text"],
    "processes": ["8 two processes / one", "8 the same", "9 peak memory of a worker"],
}
"""Some of what each part measures, as its rows begin."""


@pytest.fixture(scope="module")
def texts() -> list[str]:
    found = "\n".join(texts_of([str(path) for path in SAMPLE], 1.0))
    return [found[begin : begin + 1500] for begin in range(0, len(found), 1500)]


@pytest.fixture(scope="module")
def vocabulary(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    train_wordpiece(iter(texts), TokenizerConfig(vocab_size=900)).save(folder)
    return folder / "vocab.txt"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few rounds and as little text as there can be."""
    for module in (reads, segment, dedup):
        monkeypatch.setattr(module, "ROUNDS", 1)
    for module in (end_to_end, tokenize, importlib.import_module("benchmarks.prep.readers")):
        monkeypatch.setattr(module, "interleaved", lambda steps: interleaved(steps, repeats=1))
    monkeypatch.setattr(reads, "TOKENS", 4 * 300 * reads.LENGTH)
    monkeypatch.setattr(tokenize, "PEER_CHARACTERS", 20_000)
    monkeypatch.setattr(processes, "PAIR_MEGABYTES", 0.3)
    monkeypatch.setattr(processes, "MEMORY_MEGABYTES", 0.4)


def of_part(name: str, texts: list[str], vocabulary: Path) -> list[Row]:
    run = importlib.import_module(f"benchmarks.prep.{name}").run
    rows: list[Row] = run(texts, vocabulary) if "vocabulary" in inspect.signature(run).parameters else run(texts)
    return rows


@pytest.mark.parametrize("name", table.PARTS)
def test_a_part_gives_its_rows(name: str, texts: list[str], vocabulary: Path) -> None:
    rows = of_part(name, texts, vocabulary)
    bars = [bar for bar, _, _ in rows]
    for expected in ROWS[name]:
        assert any(bar.startswith(expected) for bar in bars), (expected, bars)
    assert len(set(bars)) == len(bars)
    assert all(math.isfinite(value) and value >= 0 for _, value, _ in rows), rows
    values = {bar: value for bar, value, _ in rows}
    assert values.get("WordPiece: lines that differ", 0) == 0
    assert values.get("precision of boundaries with HMM", 1) == values.get("recall of boundaries with HMM", 1) == 1
    assert values.get("planted near-duplicates found", 100) == 100
    assert values.get("9 peak memory of a worker, 64 MB blocks", 200) > 50


def test_each_file_with_bars_is_a_part() -> None:
    folder = Path(table.__file__).parent
    parts = {path.stem for path in folder.glob("*.py") if "\ndef run(" in path.read_text(encoding="utf-8")}
    assert parts == set(table.PARTS) == set(ROWS)


def test_a_part_that_fails_is_named_and_the_others_go_on(
    vocabulary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(texts: list[str]) -> list[Row]:
        raise ValueError("not today")

    monkeypatch.setattr(reads, "run", broken)
    monkeypatch.setattr(dedup, "run", lambda texts: [("rows", float(len(texts)), "texts")])
    monkeypatch.setattr(table, "PARTS", ("reads", "dedup"))
    assert table.main(vocabulary, [str(SAMPLE[0])]) == 1
    out = capsys.readouterr().out
    assert "-- reads failed: ValueError: not today" in out
    assert any(line.startswith("rows") and line.endswith("texts") for line in out.splitlines())
    monkeypatch.setenv("BENCH_SECONDS", "-1")
    assert table.main(vocabulary, [str(SAMPLE[0])]) == 0
    assert "-- dedup: left out" in capsys.readouterr().out


def test_each_bar_is_measured_by_rows_of_a_part_and_judged() -> None:
    """By the names that the parts' own test asserts; the rows of datatrove need an environment of its own."""
    names = [name for part in ROWS.values() for name in part]
    for bar in bars.BARS:
        assert bar.number == 11 or any(name.startswith(bar.row) and name.endswith(bar.ending) for name in names), bar
        good, bad = (bar.aim, bar.floor + 1) if bar.least else (bar.aim, bar.floor - 1)
        assert bar.reached(good) == "aim" and bar.reached(bad) == "missed"
    rows = [("12 a / whole preparation", 0.5, "%"), ("12 b / whole preparation", 2.0, "%"), ("12 b", 9.0, "ns/token")]
    rows += [("8 two processes / one (9 MB)", 1.85, "x"), ("WordPiece / tokenizers.encode_batch_fast", 100.0, "x")]
    shown = {line[:49].strip(): line[49:].split() for line in bars.table(rows).splitlines()}
    assert shown["12 dearest variant, % of the preparation"] == ["2", "5", "1", "floor"]
    assert shown["8 two processes, times one, by the clock"] == ["1.85", "1.9", "1.97", "missed"]
    assert shown["4 WordPiece, times tokenizers"] == ["100", "80", "120", "floor"]
    assert shown["9 peak memory of a worker, MiB"] == ["-", "300", "200", "not", "measured"]


def test_both_sides_of_the_random_reads_give_the_same(tmp_path: Path) -> None:
    split = reads.synthetic(tmp_path / "ours", reads.TOKENS)
    arrow = reads.as_arrow(split, tmp_path / "arrow")
    index = np.random.default_rng(0).integers(0, len(split), 50)
    ours, theirs = split.gather(index), arrow[index.tolist()]
    assert np.array_equal(theirs["ids"].ravel(), ours.ids)
    assert np.array_equal(theirs["bits"].ravel(), ours.bits)
    bits = np.unpackbits(theirs["bits"].astype(np.uint8), axis=1, bitorder="little")
    assert np.array_equal(bits.ravel(), ours.continues)

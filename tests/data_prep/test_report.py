"""What shards note of their text, and the report and TensorBoard page made of it."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import statistics
from data_prep.config import SegmentConfig, SourceConfig, TokenizerConfig
from data_prep.corpus import Corpus
from data_prep.encode import Encoded
from data_prep.pipeline import prepare
from data_prep.plan import Job
from data_prep.shards import read_manifest
from data_prep.statistics import EDGES, classes, frequent_words, merged, note_unknown
from data_prep.stream import code_points
from tests.data_prep.conftest import sample_config
from tests.data_prep.test_pipeline import small

ROOT = Path(__file__).resolve().parents[2]


def words_slowly(tokens: list[int], continues: list[bool]) -> Counter[tuple[int, ...]]:
    words: list[list[int]] = []
    for token, goes_on in zip(tokens, continues, strict=True):
        if goes_on and words:
            words[-1].append(token)
        elif not goes_on:
            words.append([token])
    return Counter(map(tuple, words))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=300))
def test_words_are_counted_as_a_person_would(stream: list[tuple[int, bool]]) -> None:
    stream = [(token, goes_on and i > 0) for i, (token, goes_on) in enumerate(stream)]
    tokens, continues = [t for t, _ in stream], [c for _, c in stream]
    found, counted = frequent_words(
        np.array(tokens, np.uint16), np.packbits(np.array(continues, np.bool_), bitorder="little")
    )
    assert counted == len(tokens)
    expected = words_slowly(tokens, continues)
    assert all(expected[tuple(ids)] == count for ids, count in found)
    for long in (False, True):
        sizes = sum((len(word) > 1) == long for word in expected)
        kept = [count for ids, count in found if (len(ids) > 1) == long]
        assert len(kept) == min(sizes, statistics.TOP) and kept == sorted(kept, reverse=True)


def test_words_over_borders_of_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A word that a border cuts is left out, and no part of it is counted; large shards are sampled evenly."""
    monkeypatch.setattr(statistics, "STRETCH", 8)
    tokens, continues = np.tile(np.array([1, 2, 3], np.uint32), 40), np.tile([False, True, True], 40)
    bits = np.packbits(continues, bitorder="little")
    found, counted = frequent_words(tokens, bits)
    assert [ids for ids, _ in found] == [[1, 2, 3]] and 0 < found[0][1] < 40 and counted == 120
    monkeypatch.setattr(statistics, "SAMPLE", 60)
    found, counted = frequent_words(tokens, bits)
    assert [ids for ids, _ in found] == [[1, 2, 3]] and counted == 64


@given(st.lists(st.integers(0, 1 << 26), max_size=50))
def test_length_classes(lengths: list[int]) -> None:
    counts = classes(np.array(lengths, np.int64))
    assert sum(counts) == len(lengths)
    assert counts == [
        sum(EDGES[k] <= n and (k + 1 == len(EDGES) or n < EDGES[k + 1]) for n in lengths) for k in range(len(counts))
    ]


def test_unknown_pieces_are_noted_with_their_text() -> None:
    """Three units, whose last tokens end with them; white space around a piece is not part of it."""
    chars = code_points("我𠀀 qwxz好𠀀𠀀x")
    ids, places, units = np.array([5, 1, 1, 6, 1, 1]), np.array([0, 1, 3, 7, 8, 9]), np.array([0, 9, 9, 11])
    encoded = Encoded(ids, places, np.array([5, 0, 1]), np.array([0, 3]), np.ones(11, np.bool_), chars, units, 0)
    assert [piece.strip() for piece in encoded.texts_of(1, 32)] == ["𠀀", "qwxz", "𠀀", "𠀀x"]
    assert encoded.texts_of(1, 2)[1] == "qw" and encoded.texts_of(2, 32) == []
    counts: Counter[str] = Counter()
    note_unknown(counts, encoded.texts_of(1, 32))
    assert counts == {"𠀀": 2, "qwxz": 1, "𠀀x": 1}


def test_statistics_add_up(tmp_path: Path) -> None:
    """Lengths and words of all shards, against the corpus as it reads itself."""
    corpus = prepare(small(tmp_path), tmp_path / "data")
    facts = merged([m["statistics"] for m in manifests(corpus)])
    split = corpus.manifest["splits"]["train"]
    for name, of in (("documents", "documents"), ("units", "sentences"), ("sequences", "sequences")):
        assert sum(facts["lengths"][name]) == split[of]
    part = corpus.split("train")
    gathered = part.gather(np.arange(len(part)))
    lengths = np.diff(gathered.offsets) - 2
    inner = np.ones(len(gathered.ids), np.bool_)  # without [CLS] and [SEP]
    inner[gathered.offsets[:-1]] = inner[gathered.offsets[1:] - 1] = False
    held = [int(np.sum((lengths >= a) & (lengths < b))) for a, b in zip(EDGES, [*EDGES[1:], 1 << 62], strict=True)]
    assert facts["lengths"]["sequences"] == held
    assert facts["words"] == words_slowly(gathered.ids[inner].tolist(), gathered.continues[inner].tolist())
    assert sum(facts["unknown"].values()) == sum(s["unknown"] for s in corpus.manifest["splits"].values())


def manifests(corpus: Corpus) -> list[dict[str, object]]:
    return [read_manifest(corpus.folder / "shards" / shard["name"]) for shard in corpus.manifest["shards"]]


def test_the_page(tmp_path: Path) -> None:
    rare = "𠀀𠀁" * 3 + "<b>&"
    (tmp_path / "c.txt").write_text(f"{rare}这是一篇有生僻字的文章，看一看报告。\n", encoding="utf-8")
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"天地春夏秋冬的是"]) + "\n", "utf-8"
    )
    config = small(tmp_path)
    sources = [*config.sources, SourceConfig(path=str(tmp_path / "c.txt"))]
    tokenizer = TokenizerConfig(vocab=str(vocabulary))
    config = config.model_copy(update={"sources": sources, "tokenizer": tokenizer, "held_out": 0.02})
    corpus = prepare(config, tmp_path / "data")
    page = (corpus.folder / "report.html").read_text(encoding="utf-8")
    text = html.unescape(re.sub(r"<[^>]*>", " ", page))
    assert "<b>" not in page  # no markup of the corpus
    assert "http" not in re.sub(r"http://www\.w3\.org/\S*", "", page)  # nothing is fetched from elsewhere
    for reason, count in corpus.manifest["dropped"].items():
        assert re.search(rf"{reason.replace('_', ' ')}\s+{count}\s", text)
    for name in ("a.jsonl.gz", "b.txt", "c.txt"):
        assert f"{tmp_path / name}" in text
    assert page.count("<svg") == 3
    assert "→" in text and "│" in text  # samples with words and masks
    assert "U+20000" in text
    assert str(corpus.folder) not in page  # the same bytes wherever the data lies


def test_the_page_of_many_files(tmp_path: Path) -> None:
    for number in range(43):
        (tmp_path / f"{number}.txt").write_text(
            f"第{number}篇文章说的是不同的事情。\n" * (number + 1), encoding="utf-8"
        )
    everything = [SourceConfig(path=str(tmp_path / "*.txt"))]
    corpus = prepare(sample_config(sources=everything, segment=SegmentConfig(kind="none")), tmp_path / "data")
    page = (corpus.folder / "report.html").read_text(encoding="utf-8")
    assert "3 more files" in page


def test_the_events_are_read_by_tensorboard(sample_corpus: Corpus) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(sample_corpus.folder / "tensorboard"))
    events.Reload()
    assert {f"lengths/{name}" for name in ("documents", "units", "sequences")} < set(events.Tags()["tensors"])
    buckets = make_ndarray(events.Tensors("lengths/sequences")[0].tensor_proto)
    assert buckets[:, 2].sum() == sample_corpus.manifest["splits"]["train"]["sequences"]
    assert (buckets[1:, 0] == buckets[:-1, 1]).all()
    text = make_ndarray(events.Tensors("corpus/files")[0].tensor_proto).item().decode()
    assert "news.txt" in text and text.startswith("| file |")


def test_preparation_with_its_report_runs_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys\nsys.modules['torch'] = None\nfrom pathlib import Path\n"
        "from data_prep.pipeline import prepare\nfrom tests.data_prep.conftest import sample_config\n"
        "prepare(sample_config(), Path(sys.argv[1]))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "data")], cwd=ROOT, check=True, timeout=120)
    assert (tmp_path / "data" / "report.html").exists()


def test_data_of_an_older_version_has_a_report(tmp_path: Path) -> None:
    """Shards without statistics are passed over."""
    assert merged([])["lengths"] == {}
    corpus = prepare(small(tmp_path), tmp_path / "data")
    job = Job.open(corpus.folder)
    from data_prep.report import write_report

    bare = [{k: v for k, v in m.items() if k != "statistics"} for m in manifests(corpus)]
    write_report(corpus, job.tokenizer, bare)
    assert "Masked samples" in (corpus.folder / "report.html").read_text(encoding="utf-8")

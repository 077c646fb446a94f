"""Signatures of near-duplicates against datatrove's, what both find of planted ones, and the speed of the filters.

``python -m benchmarks.prep.dedup FILES.jsonl.gz... [--datatrove PYTHON]``: datatrove cannot live beside this project's
xxhash, so it runs under the interpreter of an environment of its own (``datatrove[processing]`` with spacy and jieba);
without it only our own figures are shown. Both take turns, process time is measured, and ratios are of medians.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.clusters import Clusters
from data_prep.config_quality import DedupConfig, FilterConfig, NearConfig
from data_prep.dedup import Surveys, find_near
from data_prep.filters import judge
from data_prep.minhash import band_keys, bands, signatures
from data_prep.stream import raw_stream

Bar = tuple[str, float, str]
ROUNDS, PLANTED, DOCUMENTS = 5, 100, 1700
PEER = Path(__file__).with_name("datatrove_peer.py")
WEB = FilterConfig(
    max_characters=1_000_000,
    min_mean_line_length=10,
    min_cjk_share=0.3,
    max_punctuation_share=0.3,
    max_symbol_share=0.1,
    max_digit_share=0.25,
    max_duplicate_line_share=0.3,
    max_duplicate_line_character_share=0.2,
    max_top_ngram_share={1: 0.3, 2: 0.2, 4: 0.16},
    max_duplicate_ngram_share={10: 0.3, 20: 0.2},
)
"""What the comments in ``FilterConfig`` recommend."""


def run(texts: list[str], datatrove: str | None = None) -> list[Bar]:
    """The bars of deduplication and filters over ``texts``.

    Args:
        datatrove: a Python that has it; None leaves its rows out.
    """
    texts = texts[:DOCUMENTS]
    megabytes = len("".join(texts).encode()) / 1e6
    chars, documents = arrays(texts)
    near = NearConfig()
    ours = [seconds(lambda: signatures(chars, documents, near)) for _ in range(ROUNDS + 1)][1:]
    filters = [seconds(lambda: judge(chars, documents, WEB)) for _ in range(ROUNDS + 1)][1:]
    decode = [seconds(lambda: "".join(texts).encode("utf-32-le")) for _ in range(ROUNDS)]
    rows = [
        ("near-duplicate signatures", megabytes / statistics.median(ours), "MB/s"),
        ("all filters of web text", megabytes / statistics.median(filters), "MB/s"),
        ("joining texts to code points, for comparison", megabytes / statistics.median(decode), "MB/s"),
        ("dropped by these filters", 100 * float((judge(chars, documents, WEB) > 0).mean()), "% of documents"),
    ]
    mixed, copies = planted(texts)
    dropped = near_duplicates(mixed, near)
    rows.append(("planted near-duplicates found", 100 * len(dropped & copies) / len(copies), "%"))
    rows.append(("others called near-duplicates", len(dropped - copies), "documents"))
    return rows + (against(datatrove, texts, mixed, copies, near) if datatrove else [])


def arrays(texts: list[str]) -> tuple[Any, Any]:
    stream = raw_stream(texts)
    return stream.chars, stream.documents


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def planted(texts: list[str]) -> tuple[list[str], set[int]]:
    """The texts with copies at the end, in each of which one character in 400 is another one; their places."""
    rng = random.Random(0)
    long = [text for text in texts if len(text) >= 500]
    pool = "".join(long[:50])
    copies = [
        "".join(rng.choice(pool) if rng.random() < 1 / 400 else c for c in text)
        for text in rng.sample(long, min(PLANTED, len(long)))
    ]
    return [*texts, *copies], set(range(len(texts), len(texts) + len(copies)))


def near_duplicates(texts: list[str], near: NearConfig) -> set[int]:
    """Places of the texts that are dropped; the same functions as in preparation, with one block."""
    values = signatures(*arrays(texts), near)
    count, size = bands(near)
    keys = np.stack([band_keys(values, band, size) for band in range(count)])
    surveys = Surveys(np.array([0, len(texts)], np.int64), [], [values], [keys])
    with tempfile.TemporaryDirectory() as name:
        clusters = Clusters(Path(name), len(texts))
        find_near(surveys, clusters, Path(name), DedupConfig(), near)
        clusters.drop(2)
        return set(np.flatnonzero(clusters.dropped).tolist())


def against(python: str, texts: list[str], mixed: list[str], copies: set[int], near: NearConfig) -> list[Bar]:
    """datatrove's signatures in turns with ours, and what it finds of what was planted."""
    chars, documents = arrays(texts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "texts.jsonl", texts)
        write(folder / "mixed.jsonl", mixed)
        ratios = []
        for _ in range(3):
            own = statistics.median(seconds(lambda: signatures(chars, documents, near)) for _ in range(ROUNDS))
            peer = json.loads(subprocess.check_output([python, str(PEER), "time", str(folder / "texts.jsonl")]))
            ratios.append(peer["seconds"] / own)
        found = json.loads(subprocess.check_output([python, str(PEER), "find", str(folder / "mixed.jsonl")]))
    dropped = set(found["dropped"])
    return [
        ("signatures, against datatrove's", statistics.median(ratios), "x"),
        ("planted near-duplicates that datatrove finds", 100 * len(dropped & copies) / len(copies), "%"),
        ("others that datatrove drops", len(dropped - copies), "documents"),
    ]


def write(path: Path, texts: list[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"id": str(number), "text": text}, ensure_ascii=False) + "\n")


def read(paths: list[str]) -> list[str]:
    texts = []
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            texts += [json.loads(line)["text"] for line in file]
    return texts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--datatrove", metavar="PYTHON")
    given = parser.parse_args()
    for bar, value, unit in run(read(given.files), given.datatrove):
        print(f"{bar:48} {value:10.2f} {unit}")

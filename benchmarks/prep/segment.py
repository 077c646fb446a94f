"""Word segmentation against jieba: the share of equal boundaries, and the speed, with and without its model.

``python -m benchmarks.prep.segment FILES...`` (text, or ``.jsonl.gz`` with a ``text`` in each record). All take turns
in one process on one core; process time; medians. Figures are for the text given, so ratios are what to compare.
"""

from __future__ import annotations

import gzip
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jieba
import numpy as np

from data_prep.config import SegmentConfig
from data_prep.segment import open_segmenter
from data_prep.segment_base import code_points

ROUNDS = 7
SHARE_OF_JIEBA = 20
"""jieba cuts only one line in so many."""


def read(paths: list[str]) -> Iterator[str]:
    """Texts of files."""
    for path in map(Path, paths):
        if path.name.endswith(".jsonl.gz"):
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                yield from (json.loads(line)["text"] for line in lines)
        else:
            yield path.read_text(encoding="utf-8")


def boundaries(tokenizer: jieba.Tokenizer, line: str, hmm: bool) -> np.ndarray:
    """bool [len(line)]: where jieba's words start."""
    starts = np.zeros(len(line) + 1, bool)
    starts[np.cumsum([0, *map(len, tokenizer.cut(line, HMM=hmm))])] = True
    return starts[:-1]


def seconds(work: Callable[[], object]) -> float:
    """Process time of ``work``."""
    began = time.process_time()
    work()
    return time.process_time() - began


def run(texts: list[str]) -> list[tuple[str, float, str]]:
    """(bar, value, unit) of each figure."""
    lines = [line for text in texts for line in text.split("\n") if line]
    some = lines[::SHARE_OF_JIEBA]
    stream = code_points("".join(f"{line}\n" for line in lines))
    documents = np.array([0, len(stream)])
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    rjieba = open_segmenter(SegmentConfig(kind="rjieba"))
    cut = sum(map(len, some))
    out: list[tuple[str, float, str]] = [("characters", len(stream), "")]
    for hmm, what in ((True, "with HMM"), (False, "without HMM")):
        ours = open_segmenter(SegmentConfig(hmm=hmm))
        theirs = np.concatenate([boundaries(tokenizer, line, hmm) for line in some])
        found = np.concatenate([ours.word_starts(line) for line in some])
        both = float((theirs & found).sum())
        out.append((f"precision of boundaries {what}", both / found.sum(), ""))
        out.append((f"recall of boundaries {what}", both / theirs.sum(), ""))
        works: dict[str, tuple[Callable[[], object], int]] = {
            "jieba": (lambda hmm=hmm: [tokenizer.lcut(line, HMM=hmm) for line in some], cut),  # type: ignore[misc]
            "kernel": (lambda ours=ours: ours.starts(stream, documents), len(stream)),  # type: ignore[misc]
        }
        if hmm:
            works["rjieba"] = (lambda: rjieba.starts(stream, documents), len(stream))
        taken: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(ROUNDS):
            for name, (work, characters) in works.items():
                taken[name].append(seconds(work) / characters * 1e9)
        each = {name: statistics.median(times) for name, times in taken.items()}
        out += [(f"{name} {what}", value, "ns a character") for name, value in each.items()]
        out.append((f"kernel against jieba {what}", each["jieba"] / each["kernel"], "x"))
    return out


if __name__ == "__main__":
    for bar, value, unit in run(list(read(sys.argv[1:]))):
        print(f"{bar:42s} {value:14,.4f} {unit}")

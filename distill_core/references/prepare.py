"""At the start of a stage with references: index, matches and store, made once and kept in the stage's folder.

    STAGE/references/index/      the inverted index (retrieve.py)
    STAGE/references/matches/    train.bin, held_out.bin: int32 [n], the reference of each sequence, -1: none
    STAGE/references/store/      the teacher's vectors (store.py)

Each has a key: a hash of all that it depends on (texts, settings, the teacher's weights). What is there for the same
key, whole by its hashes, is used again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.corpus import Corpus
from data_prep.shards import checksum, map_array
from distill_core.config import DistillStage
from distill_core.data import Source
from distill_core.engine import Rank
from distill_core.references.config import ReferencesConfig
from distill_core.references.files import Parts, is_made, make_once, put_together, unseal
from distill_core.references.retrieve import Bm25Index
from distill_core.references.source import ReferencedSource
from distill_core.references.store import Reader, ReferenceStore, StorePlan, make_store
from distill_core.references.texts import CorpusTexts, TaskTexts, TextSource
from distill_core.tasks.load import Task

Ints = NDArray[np.int64]
Part = Literal["train", "held_out"]
PARTS: tuple[Part, ...] = ("train", "held_out")
MATCHED = 4096
"""Texts whose references are one file until all are found."""


@dataclass(frozen=True)
class StageReferences:
    """``matches``: by part (held_out: of a task, its dev rows); see :class:`ReferencedSource`."""

    folder: Path
    settings: ReferencesConfig
    index: Bm25Index
    store: ReferenceStore
    matches: dict[Part, Ints]
    texts: dict[Part, TextSource]

    def seen(self, source: Source, part: Part) -> ReferencedSource:
        """``source``, whose batches now carry references."""
        return ReferencedSource(source, self.matches[part], self.store)

    @property
    def matched(self) -> dict[str, float]:
        """The share of texts that have a reference."""
        return {part: float((found >= 0).mean()) for part, found in self.matches.items()}


def text_sources(corpus: Corpus, task: Task | None) -> dict[Part, TextSource]:
    """Training texts become references; those kept from training only look for theirs among them."""
    if task is not None:
        return {"train": TaskTexts(task.train, documents=True), "held_out": TaskTexts(task.dev, documents=False)}
    return {
        "train": CorpusTexts(corpus.split("train"), documents=True),
        "held_out": CorpusTexts(corpus.split("held_out"), documents=False),
    }


def prepare_references(
    stage: DistillStage,
    folder: Path,
    corpus: Corpus,
    task: Task | None,
    reader: Reader,
    identity: dict[str, Any],
    rank: Rank,
) -> StageReferences:
    """Make or find the references of a stage. Collective.

    Args:
        folder: of the stage.
        reader: the (first) teacher.
        identity: of the stage, with the hashes of the corpus, of the task's files and of the teacher's weights.

    Raises:
        DataError, OutputError: see :func:`make_store`.
    """
    settings, here = stage.references, folder / "references"
    assert settings is not None
    texts = text_sources(corpus, task)
    sources = identity["sources"]
    said = {name: identity.get(name) for name in ("seed", "corpus", "task")}
    key = checksum({**said, "rows": sources.get(stage.rows or ""), "retrieval": settings.retrieval.model_dump()})
    make_once(here / "index", key, rank, lambda aside: _index(texts["train"], settings, corpus, identity, aside))
    index = Bm25Index.open(here / "index")
    matches = _matches(here, key, index, texts, rank)
    teacher = str(sources[stage.teacher[0].source])
    plan = StorePlan.of(texts["train"], index.numbers, index.hashes, settings.max_tokens, settings.store)
    kept = {"max_tokens": settings.max_tokens, "dtype": settings.store, "precision": stage.training.precision}
    if rank.is_first:
        size = plan.bytes(reader.width) / 1e6
        print(f"references: {len(index):,} texts indexed; the teacher's vectors take {size:,.1f} MB", flush=True)
    make_store(here / "store", checksum({"texts": key, "teacher": teacher, **kept}), plan, reader, teacher, rank)
    store = ReferenceStore.open(here / "store", teacher)
    return StageReferences(here, settings, index, store, matches, texts)


def _index(
    texts: TextSource, settings: ReferencesConfig, corpus: Corpus, identity: dict[str, Any], aside: Path
) -> dict[str, Any]:
    specials = sorted(corpus.special_ids.values())
    index = Bm25Index.build(texts, settings.retrieval, corpus.vocab_size, specials, identity["seed"])
    return index.save(aside)


def _matches(here: Path, key: str, index: Bm25Index, texts: dict[Part, TextSource], rank: Rank) -> dict[Part, Ints]:
    """The best text for each sequence, looked for by all ranks. Collective."""
    folder = here / "matches"
    if not is_made(folder, key, rank):
        work = {part: Parts(here / f"matching-{part}", key, len(texts[part]), MATCHED) for part in PARTS}
        for part, source in texts.items():
            work[part].write(rank, lambda first, last, source=source: _search(index, source, first, last))  # type: ignore[misc]
        if rank.is_first:
            put_together(folder, key, lambda aside: _joined(aside, work))
            for parts in work.values():
                parts.remove()
        rank.barrier()
    facts = unseal(folder)
    return {part: map_array(folder / f"{part}.bin", "<i4", (facts[part],)) for part in PARTS}


def _search(index: Bm25Index, source: TextSource, first: int, last: int) -> bytes:
    found, _ = index.search(source.texts(np.arange(first, last, dtype=np.int64)))
    return found.astype("<i4").tobytes()


def _joined(aside: Path, work: dict[Part, Parts]) -> dict[str, Any]:
    for part, parts in work.items():
        with (aside / f"{part}.bin").open("wb") as file:
            for number in range(parts.count):
                file.write(parts.read(number))
    return {part: parts.items for part, parts in work.items()}

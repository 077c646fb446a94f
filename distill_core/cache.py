"""The teacher-output cache: a distill stage on the corpus computes what its teachers say once, and reads it ever after.

What is kept of a (sequence, mask view) is the vector that the masked-LM head's transform puts out at each masked row,
and hidden states where the objective asks for them (at all rows: for small corpora). The decoder product is redone at
training time, so logits are exact at any temperature: the same bits as the live teacher's where the same sequences
meet in one matrix product, the same up to the rounding of that product elsewhere. That holds where the vectors are kept
in the precision that the teacher runs in; ``precision: bf16`` in an fp32 stage keeps 8 bits of them.

Only stored mask views come back: with dynamic masks every epoch is new. The held-out split is kept too, so that the
evaluations need no live teacher either; once all is there the encoder is dropped, but for its decoder.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor, nn

from configs.errors import OutputError, TrainingError
from configs.loader import Config
from data_prep.config import MaskConfig
from data_prep.corpus import Corpus, Ints, offsets_of, spread
from distill_core.batch import Batch
from distill_core.cache_store import Contents, Precision, StoredViews, ViewStore, hidden_file, to_numpy
from distill_core.data import CorpusSource, Loader, cut
from distill_core.decoder import LogitsOnDemand
from distill_core.engine import Rank
from distill_core.features import MASKED_LOGITS, FeatureRequest, Features
from distill_core.flops import Flops, at_logits, decoder_flops
from distill_core.models.attention import Kernel
from distill_core.models.encoder import Encoder
from distill_core.objective import Objective, Teacher

LINE_SECONDS = 10.0


class TeacherCacheConfig(Config):
    """Where the teachers' outputs are kept, and how."""

    folder: str | None = None
    """Default: ``teacher_cache/`` in the stage's folder. Stages and runs with the same corpus and teacher may share
    one."""
    precision: Precision | None = None
    """Default: the stage's. ``bf16`` in an fp32 stage halves the disk and rounds the outputs to 8 bits."""
    verify: Literal["all", "sizes"] = "all"
    """What is looked at when a stage finds its cache complete: every byte, or only the sizes of the files."""


def why_not(masks: MaskConfig, objectives: Sequence[Objective]) -> str | None:
    """Why a stage's teachers cannot be cached, and what to do; None when they can."""
    if distinct_views(masks) is None:
        return (
            "data.masks.mode: dynamic masks every epoch anew, so that no output of the teacher is met twice; take "
            "data.masks.mode: stored with some data.masks.views, or the live teacher"
        )
    for objective in objectives:
        for label, term in zip(objective.labels, objective.terms, strict=True):
            wanted: FeatureRequest = term.needs().teacher  # type: ignore[operator]
            rows = sorted(wanted.logits - {"masked"})
            what = None
            if wanted.heads:
                what = "queries, keys and values, which take more disk than the teacher takes time"
            elif rows:
                what = f"vocabulary logits at {rows[0]} rows, but only the masked ones are kept (positions: masked)"
            elif wanted.pooled or wanted.task:
                what = "the pooler's output" if wanted.pooled else "a task's answers"
            if what is not None:
                return f"{label} asks for the teacher's {what}. Change or drop that loss, or take the live teacher"
    return None


def distinct_views(masks: MaskConfig) -> int | None:
    """How many different maskings the training split is seen under; None: every epoch has its own."""
    if masks.rate == 0:
        return 1
    return masks.views if masks.mode == "stored" else None


# ---------------------------------------------------------------- reading


class CachedTeacher(nn.Module):
    """Called like :class:`Teacher`, on batches of a :class:`CachedSource`; of the encoder it has only the decoder.

    Args:
        teacher: its encoder loses the head's transform, and must not be used any more.
        place: which of ``Batch.stored`` is its own.
    """

    def __init__(self, teacher: Teacher, place: int) -> None:
        super().__init__()
        assert isinstance(teacher.encoder, Encoder)
        self.request = teacher.request
        self.config = teacher.config
        self.parameter_count = teacher.parameter_count
        self.place = place
        self.words = teacher.encoder.bert.embeddings.word_embeddings
        self.predictions = teacher.encoder.cls.predictions
        del self.predictions.transform

    def flops(self) -> Flops:
        """Of what is left of a forward pass: the decoder."""
        return at_logits(self.request, decoder_flops(self.config))

    def train(self, mode: bool = True) -> CachedTeacher:
        return self

    @torch.no_grad()
    def forward(self, batch: Batch, request: FeatureRequest | None = None) -> Features:
        """The features of ``request`` (default: what the objective asks for)."""
        wanted = request or self.request
        if not wanted:
            return Features()
        stored, dtype = batch.stored[self.place], self.words.weight.dtype
        features = Features({i: stored.hidden[i].to(dtype) for i in wanted.hidden})
        if wanted.logits:
            assert wanted.logits == {"masked"} and stored.vectors is not None
            decoder = partial(self.predictions, self.words)
            features.logits = LogitsOnDemand({"masked": stored.vectors.to(dtype)}, decoder)
        return features


AnyTeacher = Teacher | CachedTeacher


@dataclass(frozen=True)
class CachedSource:
    """The batches of ``source`` with the teachers' outputs, read where batches are made: ahead, in the loader."""

    source: CorpusSource
    stored: tuple[StoredViews, ...]

    def __len__(self) -> int:
        return len(self.source)

    def lengths(self, index: Ints) -> NDArray[np.int32]:
        return self.source.lengths(index)

    def batch(self, index: Ints, epochs: Ints, kernel: Kernel) -> Batch:
        batch = self.source.batch(index, epochs, kernel)
        return replace(batch, stored=tuple(views.read(index, epochs) for views in self.stored))


# ---------------------------------------------------------------- writing


@dataclass(frozen=True)
class Cached:
    """``held_out`` has the first teacher's outputs only: evaluations ask no other."""

    teachers: list[CachedTeacher]
    train: CachedSource
    held_out: CachedSource


class Writer:
    """Fills the stores of a stage. All methods are collective."""

    def __init__(self, loader: Loader, rank: Rank, say: Callable[[str], None], thorough: bool) -> None:
        self.loader, self.rank, self.say, self.thorough = loader, rank, say, thorough
        self.began = self.last_line = time.monotonic()

    def fill(self, jobs: Sequence[tuple[Teacher, ViewStore]], root: Path) -> None:
        """Compute what is missing of each (teacher, store).

        Raises:
            OutputError: the disk is too small, or cannot be written.
            DataError: a complete store is damaged beyond its blocks.
            TrainingError: a teacher's outputs are not finite.
        """
        jobs = list({store.folder: (teacher, store) for teacher, store in jobs}.values())
        if self.rank.is_first:
            for _, store in jobs:
                store.begin()
        self.rank.barrier()
        missing = [self._missing(store) for _, store in jobs]
        if self.rank.is_first:
            check_disk(root, [store for _, store in jobs], missing)
        self.rank.barrier()
        total, done = sum(map(len, missing)), 0
        if total:
            self.say(f"computing {total} blocks of teacher outputs, kept in {root}")
        for (teacher, store), blocks in zip(jobs, missing, strict=True):
            for place in range(0, len(blocks), self.rank.world_size):
                mine = place + self.rank.rank
                if mine < len(blocks):
                    store.write(blocks[mine], self._outputs(teacher, store, blocks[mine]))
                done = min(total, done + self.rank.world_size)
                self._progress(done, total)
            self.rank.barrier()  # also keeps the ranks within a block of each other
            if self.rank.is_first:
                store.finish()
        self.rank.barrier()
        if total:
            self.say("the teacher outputs are complete; the teacher's encoder is dropped")

    def _missing(self, store: ViewStore) -> list[int]:
        """Blocks that are not there, or whose content is not what was written; the same list on all ranks."""
        hashes = store.hashes()
        bad = torch.zeros(store.blocks, dtype=torch.int32, device=self.rank.device)
        for block in range(self.rank.rank, store.blocks, self.rank.world_size):
            known = hashes.get(block)
            damaged = known is not None and self.thorough and not store.sound(block, known)
            bad[block] = 1 if known is None else 2 * damaged
        found = self.rank.sum(bad).cpu()
        damages = int((found == 2).sum())
        if damages:
            self.say(f"{damages} blocks of {store.folder} are not what was written; they are computed again")
        return [int(block) for block in found.nonzero().flatten()]

    def _progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            left = (now - self.began) / done * (total - done)
            self.say(f"teacher outputs: block {done}/{total}, about {left / 60:.0f} minutes left")

    @torch.no_grad()
    def _outputs(self, teacher: Teacher, store: ViewStore, block: int) -> dict[str, NDArray[Any]]:
        """A block's stretches. How its sequences meet in matrix products depends on the block alone, not on ranks."""
        source, contents = CorpusSource(store.split), store.contents
        index = np.arange(*store.sequences(block), dtype=np.int64)
        out = {name: np.empty((_length(store, name, block), width), store.dtype) for name, width in _widths(store)}
        for micro in cut(source.lengths(index), 1, self.loader.micro_batch_tokens):
            part = index[micro[0]]
            batch = source.batch(part, np.full(len(part), store.view, np.int64), self.loader.kernel)
            for name, values in outputs(teacher, batch.to(self.rank.device), contents).items():
                offsets = store.offsets(name)
                counts = offsets[part + 1] - offsets[part]
                check_outputs(values, batch, counts, name.removesuffix(".bin"))
                base = store.stretch(name, block)[0]
                out[name][spread(offsets[part] - base, counts)] = to_numpy(values, contents.precision)
        return out


def _widths(store: ViewStore) -> Sequence[tuple[str, int]]:
    return list(store.contents.widths.items())


def _length(store: ViewStore, name: str, block: int) -> int:
    first, last = store.stretch(name, block)
    return last - first


def outputs(teacher: Teacher, batch: Batch, contents: Contents) -> dict[str, Tensor]:
    """What is kept of a batch, by file name."""
    masked = MASKED_LOGITS.logits if contents.vectors is not None else frozenset()
    features = teacher(batch, FeatureRequest(hidden=frozenset(contents.hidden), logits=masked))
    found = {hidden_file(i): features.hidden[i] for i in contents.hidden}
    if masked:
        found["vectors.bin"] = features.undecoded("masked").vectors
    return found


def check_outputs(values: Tensor, batch: Batch, counts: Ints, what: str) -> None:
    """Raise :class:`TrainingError` with the sequences whose rows are not finite; ``counts``: rows of each."""
    if bool(torch.isfinite(values).all()) or batch.sequence_ids is None:
        return
    rows = (~torch.isfinite(values).all(dim=1)).nonzero().flatten().cpu().numpy()
    places = np.unique(np.searchsorted(offsets_of(counts), rows, side="right") - 1)
    names = ", ".join(str(name) for name in batch.sequence_ids[places[:5]])
    raise TrainingError(
        f"The teacher's outputs ({what}) are not finite for {len(places)} sequences of a batch (ids {names}). Check "
        "the teacher's weights, or run the stage with training.precision: fp32."
    )


def check_disk(root: Path, stores: Sequence[ViewStore], missing: Sequence[Sequence[int]]) -> None:
    """Raise :class:`OutputError` unless the missing blocks fit on the disk."""
    needed = sum(store.bytes_of(blocks) for store, blocks in zip(stores, missing, strict=True))
    free = shutil.disk_usage(root).free
    if needed > free:
        raise OutputError(
            f"The teacher-output cache needs {needed / 1e9:.2f} GB more, but {root} has only {free / 1e9:.2f} GB free. "
            "Free some space, name another disk (teacher_cache.folder), keep less (losses on logits only, "
            "teacher_cache.precision: bf16, fewer data.masks.views), or take the live teacher (no teacher_cache)."
        )


def cache_teachers(
    settings: TeacherCacheConfig,
    root: Path,
    corpus: Corpus,
    masks: MaskConfig,
    teachers: Sequence[Teacher],
    loader: Loader,
    epochs: int,
    runs_in: str,
    rank: Rank,
    say: Callable[[str], None],
) -> Cached:
    """Make the stores of a stage complete and put them in the teachers' place. Collective.

    Args:
        root: where the stores live.
        teachers: live, on the rank's device, in the precision ``runs_in``; afterwards they must not be used any more.
        loader: of the training batches; its source is a CorpusSource.
        epochs: how many passes over the training split are begun: later views are not needed.
        say: writes a line to the log.

    Raises:
        OutputError, DataError, TrainingError: as :meth:`Writer.fill`.
    """
    distinct = distinct_views(masks)
    assert distinct is not None and isinstance(loader.source, CorpusSource)
    train, held_out = corpus.split("train"), corpus.split("held_out")
    kept = settings.precision or as_kept(runs_in)
    stores: list[tuple[Teacher, ViewStore]] = []
    by_teacher: list[tuple[ViewStore, ...]] = []
    for place, teacher in enumerate(teachers):
        facts = {"corpus": corpus.hash, "teacher": fingerprint(teacher), "runs_in": runs_in}
        contents = wanted_contents(teacher, kept)
        count = min(distinct, max(1, epochs)) if contents else 0
        views = tuple(ViewStore(root, train, view, contents, facts) for view in range(count))
        by_teacher.append(views)
        stores += [(teacher, view) for view in views]
        if place == 0:
            logits = Contents(teacher.config.prediction_size, (), teacher.config.hidden_size, kept)
            evaluation = ViewStore(root, held_out, 0, logits, facts)
            stores.append((teacher, evaluation))
    Writer(loader, rank, say, settings.verify == "all").fill(stores, root)
    return Cached(
        [CachedTeacher(teacher, place) for place, teacher in enumerate(teachers)],
        CachedSource(loader.source, tuple(StoredViews(views, distinct) for views in by_teacher)),
        CachedSource(CorpusSource(held_out), (StoredViews((evaluation,), 1),)),
    )


def as_kept(runs_in: str) -> Precision:
    """What the outputs of a teacher are kept in unless said otherwise (the config asks for it in other precisions)."""
    return "bf16" if runs_in == "bf16" else "fp32"


def wanted_contents(teacher: Teacher, precision: Precision) -> Contents:
    """What a teacher's objective asks for."""
    request, shape = teacher.request, teacher.config
    vectors = shape.prediction_size if request.logits else None
    return Contents(vectors, tuple(sorted(request.hidden)), shape.hidden_size, precision)


def fingerprint(teacher: Teacher) -> str:
    """xxh3-128 of a teacher's shape and weights as they run."""
    digest = xxhash.xxh3_128(json.dumps(teacher.config.model_dump(mode="json"), sort_keys=True).encode())
    for name, values in sorted(teacher.encoder.state_dict().items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()

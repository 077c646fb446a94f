"""One stage of training: the loop, read top to bottom, and what surrounds it."""

from __future__ import annotations

import hashlib
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.errors import DataError
from configs.loader import identity as identity_of
from data_prep.corpus import Corpus
from data_prep.shards import file_hash
from distill_core import checkpoint
from distill_core.batch import COUNTS, Batch, Count
from distill_core.build import Parts, Quality, build
from distill_core.config import AnyStage, AugmentStage, PretrainStage, RunConfig, sources
from distill_core.engine import Rank, check_finite
from distill_core.features import Features
from distill_core.meter import Meter
from distill_core.models import pretrained
from distill_core.record import BestModel, read_done, write_done, write_model
from distill_core.tasks.stage import run_augment
from distill_core.training import TrainingConfig

# ---------------------------------------------------------------- the loop


def train(parts: Parts) -> Quality:
    """The training loop: from the first step that is not done to the last; returns the final evaluation."""
    training, rank, engine, steps = parts.training, parts.rank, parts.engine, parts.steps
    meter, best = Meter(rank), BestModel(parts)
    quality: Quality | None = None
    engine.train()
    for step, wait in parts.loader.steps(parts.first_step, steps):
        done = step.number + 1
        last_step = done == steps
        seed_step(parts, step.number)
        batches = [batch.to(rank.device) for batch in step.batches]
        counts = global_counts(batches, rank)
        for batch in batches:
            targets = [teacher(batch) for teacher in parts.teachers] or [Features()]
            losses = engine(batch, targets, counts, step.number / steps)
            engine.backward(losses.total, last=batch is batches[-1])
            meter.add(losses)
        rate = learning_rate(training, step.number, steps)
        engine.step(rate, step.number)
        meter.end_step(counts, wait)

        if last_step or done % training.log_every == 0:
            row = meter.summary() | {
                "optim/learning_rate": rate,
                "optim/gradient_norm": engine.gradient_norm(),
                "data/epoch": step.epoch,
            }
            check_finite(row["loss/total"], "loss", parts.stage.name, done)
            report(parts, done, row)
        if last_step or done % training.evaluate_every == 0:
            quality = parts.measure()
            best.consider(quality, done)
            report_quality(parts, done, quality)
            meter.restart_clock()
        if last_step or done % training.checkpoint_every == 0:
            checkpoint.save(parts.folder / "checkpoints", done, engine, parts.identity, rank, training.keep_last)
            meter.restart_clock()
    return quality if quality is not None else parts.measure()


def seed_step(parts: Parts, step: int) -> None:
    """Dropout's generator as a function of (seed, stage, step, rank): nothing to save, nothing to restore."""
    key = f"{parts.config.seed}/{parts.stage.name}/{step}/{parts.rank.rank}"
    torch.manual_seed(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1)


def global_counts(batches: list[Batch], rank: Rank) -> dict[Count, Tensor]:
    """This step's counts over all ranks: what the loss sums are divided by."""
    mine = [batch.counts() for batch in batches]
    sums = torch.tensor([sum(counts[name] for counts in mine) for name in COUNTS], dtype=torch.float64)
    total = rank.sum(sums.to(rank.device)).clamp(min=1).float()
    return dict(zip(COUNTS, total.unbind(), strict=True))


def learning_rate(training: TrainingConfig, step: int, steps: int) -> float:
    """Linear warm-up over the first ``warmup`` share of the steps, then the decay (to 0 after the last step)."""
    optimizer = training.optimizer
    warm = math.ceil(optimizer.warmup * steps)
    left = (steps - step) / max(1, steps - warm)
    if step < warm:
        share = (step + 1) / warm
    elif optimizer.decay == "none":
        share = 1.0
    else:
        share = left if optimizer.decay == "linear" else 0.5 * (1 - math.cos(math.pi * left))
    return optimizer.learning_rate * share


def report(parts: Parts, done: int, row: dict[str, float]) -> None:
    if parts.monitor is not None:
        parts.monitor.scalars(done, row)
        parts.monitor.progress(done, row["loss/total"], row["speed/tokens_per_second"])


def report_quality(parts: Parts, done: int, quality: Quality) -> None:
    if parts.monitor is not None:
        parts.monitor.scalars(done, quality.scalars())
        parts.monitor.line(f"after step {done}: {quality.sentence()}")


# ---------------------------------------------------------------- the end of a stage


def stage_identity(config: RunConfig, index: int, corpus: Corpus) -> dict[str, Any]:
    """What makes this stage this stage; a change of any of it refuses to resume."""
    stage = config.stages[index]
    identity: dict[str, Any] = {"seed": config.seed, "stage": identity_of(stage), "corpus": corpus.hash}
    for name in sources(stage):
        identity.setdefault("sources", {})[name] = source_hash(config, name)
    if not isinstance(stage, PretrainStage) and stage.task is not None:
        task = config.tasks[stage.task]
        files = {part: rows_hash(path, stage.name) for part, path in (("train", task.train), ("dev", task.dev))}
        identity["task"] = {**identity_of(task), **files}
    return identity


def rows_hash(path: str, stage: str) -> str:
    """Of a task's file: what is trained on or chosen by is what it holds, wherever it lies."""
    try:
        return file_hash(Path(path))
    except OSError as error:
        raise DataError(
            f"Stage {stage!r}: {path} cannot be read ({error.strerror}); correct the task's data."
        ) from None


def source_hash(config: RunConfig, name: str) -> str:
    """Of the weights or rows that an earlier stage, a folder or a hub name stands for."""
    index = config.stage_index(name)
    folder = Path(config.model_source(name))
    files = [folder / weights for weights in pretrained.WEIGHTS]
    if index is not None:
        files.append(config.stage_folder(index) / "rows.jsonl")
    return next((file_hash(path) for path in files if path.is_file()), name)


def run_stage(config: RunConfig, index: int, corpus: Corpus, rank: Rank) -> None:
    """Carry a stage to its end (or find that it is done): a model as a Hugging Face folder, or rows of a task."""
    folder, stage = config.stage_folder(index), config.stages[index]
    identity = stage_identity(config, index, corpus)
    done = read_done(folder)
    if done is not None:
        what = f"The finished stage {stage.name!r} ({folder})"
        checkpoint.check_identity(done["identity"], identity, what)
        if not wants_more(stage, done):
            if rank.is_first:
                print(f"stage {stage.name} is finished; skipped", flush=True)
            return
        rank.barrier()  # everyone has read it
        if rank.is_first:  # it goes on from its last checkpoint
            (folder / "DONE.json").unlink()
    if isinstance(stage, AugmentStage):
        run_augment(config, index, identity, rank)
    else:
        train_stage(config, index, corpus, rank, identity)


def wants_more(stage: AnyStage, done: dict[str, Any]) -> bool:
    """Whether a finished stage is now asked for more steps than it has taken."""
    if isinstance(stage, AugmentStage):
        return False
    if stage.training.epochs is not None:
        return bool((done["epochs"] or 0) < stage.training.epochs)
    assert stage.training.steps is not None
    return bool(done["steps"] < stage.training.steps)


def train_stage(config: RunConfig, index: int, corpus: Corpus, rank: Rank, identity: dict[str, Any]) -> None:
    """From the first step that is not done to the last; then the model and DONE.json."""
    began = time.monotonic()
    parts = build(config, index, corpus, rank, identity)
    quality = train(parts)
    weights = parts.engine.full_weights()
    if rank.is_first:
        write_model(parts, weights)
        write_done(parts, quality, time.monotonic() - began)
    if parts.monitor is not None:
        parts.monitor.close()
    parts.engine.close()
    rank.barrier()

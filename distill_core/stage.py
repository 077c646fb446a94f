"""One stage: builds its objects, then the training loop, top to bottom."""

from __future__ import annotations

import hashlib
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.loader import identity as identity_of
from data_prep.corpus import Corpus
from data_prep.shards import file_hash
from distill_core import checkpoint
from distill_core.batch import COUNTS, Batch, Count
from distill_core.build import Parts, build, teacher_source
from distill_core.config import DistillStage, RunConfig, TrainingConfig
from distill_core.data import held_out_batches
from distill_core.engine import Rank, check_finite
from distill_core.evaluate.masked_lm import HeldOut, evaluate
from distill_core.features import Features
from distill_core.meter import Meter
from distill_core.models import pretrained
from distill_core.record import read_done, write_done, write_model

# ---------------------------------------------------------------- the loop


def train(parts: Parts) -> HeldOut:
    """The training loop: from the first step that is not done to the last; returns the final evaluation."""
    training, rank, engine, teacher = parts.training, parts.rank, parts.engine, parts.teacher
    meter = Meter(rank)
    quality: HeldOut | None = None
    engine.train()
    for step, wait in parts.loader.steps(parts.first_step, training.steps):
        done = step.number + 1
        last_step = done == training.steps
        seed_step(parts, step.number)
        batches = [batch.to(rank.device) for batch in step.batches]
        counts = global_counts(batches, rank)
        for batch in batches:
            targets = teacher(batch) if teacher is not None else Features()
            losses = engine(batch, targets, counts, step.number / training.steps)
            engine.backward(losses.total, last=batch is batches[-1])
            meter.add(losses)
        rate = learning_rate(training, step.number)
        engine.step(rate)
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
            quality = measure(parts)
            report_quality(parts, done, quality)
            meter.restart_clock()
        if last_step or done % training.checkpoint_every == 0:
            checkpoint.save(parts.folder / "checkpoints", done, engine, parts.identity, rank, training.keep_last)
            meter.restart_clock()
    return quality if quality is not None else measure(parts)


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


def learning_rate(training: TrainingConfig, step: int) -> float:
    """Linear warm-up over the first ``warmup`` share of the steps, then linear decay to 0 after the last."""
    warm = math.ceil(training.optimizer.warmup * training.steps)
    if step < warm:
        share = (step + 1) / warm
    else:
        share = (training.steps - step) / max(1, training.steps - warm)
    return training.optimizer.learning_rate * share


def measure(parts: Parts) -> HeldOut:
    loader = parts.loader
    batches = held_out_batches(
        parts.corpus.split("held_out"),
        parts.training.evaluate_sequences,
        parts.config.seed,
        loader.micro_batch_tokens,
        loader.rank,
        loader.world_size,
        loader.kernel,
    )
    return evaluate(parts.student, parts.teacher, batches, parts.rank)


def report(parts: Parts, done: int, row: dict[str, float]) -> None:
    if parts.monitor is not None:
        parts.monitor.scalars(done, row)
        parts.monitor.progress(done, row["loss/total"], row["speed/tokens_per_second"])


def report_quality(parts: Parts, done: int, quality: HeldOut) -> None:
    if parts.monitor is None:
        return
    row = {"eval/student_loss": quality.student.loss, "eval/student_accuracy": quality.student.accuracy}
    text = f"held-out after step {done}: loss {quality.student.loss:.4f}, accuracy {quality.student.accuracy:.1%}"
    if quality.teacher is not None and quality.agreement is not None:
        row |= {"eval/teacher_loss": quality.teacher.loss, "eval/teacher_accuracy": quality.teacher.accuracy}
        row["eval/agreement"] = quality.agreement
        text += (
            f" (teacher {quality.teacher.loss:.4f}, {quality.teacher.accuracy:.1%}; agreement {quality.agreement:.1%})"
        )
    parts.monitor.scalars(done, row)
    parts.monitor.line(text)


# ---------------------------------------------------------------- the end of a stage


def stage_identity(config: RunConfig, index: int, corpus: Corpus) -> dict[str, Any]:
    """What makes this stage this stage; a change of any of it refuses to resume."""
    stage = config.stages[index]
    identity = {"seed": config.seed, "stage": identity_of(stage), "corpus": corpus.hash}
    if isinstance(stage, DistillStage):
        source = teacher_source(config, stage)
        weights = [path for name in pretrained.WEIGHTS if (path := Path(source) / name).is_file()]
        identity["teacher"] = file_hash(weights[0]) if weights else source
    return identity


def run_stage(config: RunConfig, index: int, corpus: Corpus, rank: Rank) -> None:
    """Train a stage to its end (or find that it is done) and leave its model as a Hugging Face folder."""
    folder = config.stage_folder(index)
    identity = stage_identity(config, index, corpus)
    done = read_done(folder)
    if done is not None:
        what = f"The finished stage {config.stages[index].name!r} ({folder})"
        checkpoint.check_identity(done["identity"], identity, what)
        if done["steps"] >= config.stages[index].training.steps:
            if rank.is_first:
                print(f"stage {config.stages[index].name} is finished; skipped", flush=True)
            return
        rank.barrier()  # everyone has read it
        if rank.is_first:  # more steps are wanted now: it goes on from its last checkpoint
            (folder / "DONE.json").unlink()
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

"""One stage of training, or several side by side: the loop, read top to bottom, and what surrounds it."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs import hub
from configs.errors import DataError, Requeue
from configs.loader import identity as identity_of
from data_prep.corpus import Corpus
from data_prep.shards import file_hash
from data_prep.tokenizer import open_tokenizer
from distill_core import checkpoint
from distill_core.batch import COUNTS, Batch, Count
from distill_core.build import build
from distill_core.config import AnyStage, AugmentStage, DistillStage, PretrainStage, RunConfig, sources
from distill_core.data import Step
from distill_core.engine import Rank, check_finite, check_skipped
from distill_core.features import Features
from distill_core.memory import freed_memory_kept
from distill_core.models import pretrained
from distill_core.parts import Parts, StepParts, Trainee
from distill_core.pulse import pulse
from distill_core.record import Quality, read_done, write_done, write_model
from distill_core.stopping import Vote, stopping
from distill_core.tasks.own_tokens import own_tokenizers
from distill_core.tasks.stage import run_augment
from distill_core.teacher_check import check_teachers, finite
from distill_core.training import TrainingConfig

# ---------------------------------------------------------------- the loop


def train(parts: Parts) -> None:
    """The training loop: from the first step that is not done to the last.

    Its trainees are one stage, or several side by side, each as if alone: one that is further than the others (the
    run ended between two checkpoints) joins at its own next step.
    """
    begin(parts)
    for step, wait in parts.loader.steps(parts.first_step, parts.steps):
        trainees, vote = train_step(parts, step, wait)
        stop = vote.passed()
        if stop or any(is_due(trainee, step.number + 1, parts.steps) for trainee in trainees):
            check_answers(parts)
        for trainee in trainees:
            end_step(parts, trainee, step, stop)
        if stop:
            raise Requeue(f"Stopped after step {step.number + 1} of {parts.names}, with a checkpoint.")
        pulse.at("data", step.number + 2)
        parts.clock.mark("other")


def begin(parts: StepParts) -> None:
    for trainee in parts.trainees:
        trainee.engine.train()
    parts.clock.restart()


def train_step(parts: StepParts, step: Step, wait: float) -> tuple[list[Trainee], Vote]:
    """One optimiser step of those trainees that have not taken it before; returns them, and who wants to stop.

    ``wait``: seconds that this rank has waited for its batches.
    """
    rank, clock, done = parts.rank, parts.clock, step.number + 1
    trainees = [trainee for trainee in parts.trainees if trainee.first_step <= step.number]
    batches = [batch.to(rank.device) for batch in step.batches]
    clock.mark("data")
    counts, vote = global_counts(batches, rank)
    clock.mark("communication")
    sound: list[Tensor] = []
    for place, batch in enumerate(batches):
        pulse.at("teacher", done)
        taught = [teacher(batch) for teacher in parts.teachers]
        sound += [torch.stack([finite(features, batch) for features in taught])] if taught else []
        clock.mark("teacher")
        for trainee in trainees:
            pulse.at("student", done)
            seed_dropout(trainee, step.number, place, rank)
            losses = trainee.engine(batch, taught or [Features()], counts, step.number / parts.steps)
            trainee.meter.add(losses)
            clock.mark("forward")
            pulse.at("backward", done)
            trainee.engine.backward(losses.total, last=batch is batches[-1])
            clock.mark("backward")
    pulse.at("optimizer", done)
    for trainee in trainees:
        trainee.engine.step(learning_rate(trainee.training, step.number, parts.steps), step.number)
    clock.mark("optimizer")
    for trainee in trainees:
        trainee.meter.end_step(counts, wait, batches, parts.flops(trainees))
    if sound:
        parts.verdicts[step.number] = torch.stack(sound).all()
    return trainees, vote


def is_due(trainee: Trainee, done: int, steps: int) -> bool:
    """Whether the host looks at anything after step ``done``; it waits for the device at no other."""
    training = trainee.training
    rhythms = (training.log_every, training.evaluate_every, training.checkpoint_every)
    return done == steps or any(done % rhythm == 0 for rhythm in rhythms)


def end_step(parts: Parts, trainee: Trainee, step: Step, stop: bool = False) -> None:
    """What a finished step may call for: a line of the curves, an evaluation, a checkpoint.

    ``stop``: the run was asked to end, so there is a checkpoint and no evaluation.
    """
    training, rank, done = trainee.training, parts.rank, step.number + 1
    if not stop and not is_due(trainee, done, parts.steps):
        return
    last_step = done == parts.steps
    skipped, in_row = trainee.engine.skipped()
    check_skipped(in_row, training.max_skipped_steps, trainee.stage.name, done)
    trainee.engine.settle()
    if last_step or done % training.log_every == 0:
        row = trainee.meter.summary() | {
            "optim/learning_rate": learning_rate(training, step.number, parts.steps),
            "optim/gradient_norm": trainee.engine.gradient_norm(),
            "optim/skipped_steps": float(skipped),
            "data/epoch": step.epoch,
        }
        scale = trainee.engine.loss_scale()
        row |= {} if scale is None else {"optim/loss_scale": scale}
        check_finite(row["loss/total"], "loss", trainee.stage.name, done)
        report(trainee, done, row, live=trainee is parts.trainees[0])
    if not stop and (last_step or done % training.evaluate_every == 0):
        pulse.at("evaluate", done)
        trainee.quality = parts.measure(trainee)
        trainee.best.consider(trainee.quality, done)
        report_quality(trainee, done, trainee.quality)
        parts.clock.restart()
    if stop or last_step or done % training.checkpoint_every == 0:
        pulse.at("checkpoint", done)
        folder = trainee.folder / "checkpoints"
        checkpoint.save(folder, done, trainee.engine, trainee.identity, rank, training.keep_last)
        parts.clock.restart()


def seed_dropout(trainee: Trainee, step: int, micro_batch: int, rank: Rank) -> None:
    """Dropout's generator as a function of (seed, stage, step, micro-batch, rank): nothing to save or restore.

    Seeded for each micro-batch, since students that are trained side by side take turns within a step.
    """
    key = f"{trainee.config.seed}/{trainee.stage.name}/{step}/{micro_batch}/{rank.rank}"
    torch.manual_seed(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1)


def check_answers(parts: Parts) -> None:
    """Stop when a teacher's answers were not finite, before anything of these steps is kept.

    The verdicts of all steps since the last time are read together, in one wait; steps in between may have trained on
    such answers, but nothing of them was logged, evaluated or written. A step's batches are a function of its number,
    so the culprits are found by answering them again.
    """
    stage, verdicts = parts.trainees[0].stage, parts.verdicts
    if not verdicts or not isinstance(stage, DistillStage):
        return
    bad = (~torch.stack(list(verdicts.values()))).float()
    if stage.training.teacher_sharding != "none":  # all ranks have to answer again, for the one that asks
        bad = parts.rank.sum(bad)
    names = [teacher.source for teacher in stage.teacher]
    for number in [number for number, count in zip(verdicts, bad.tolist(), strict=True) if count]:
        for batch in parts.loader.step(number).batches:
            batch = batch.to(parts.rank.device)
            taught = [teacher(batch) for teacher in parts.teachers]
            check_teachers(batch, taught, names, f"Stage {parts.names}, step {number + 1}")
    verdicts.clear()


def global_counts(batches: list[Batch], rank: Rank) -> tuple[dict[Count, Tensor], Vote]:
    """This step's counts over all ranks, what the loss sums are divided by; and whether any was asked to stop."""
    mine = [batch.counts() for batch in batches]
    sums = [float(sum(counts[name] for counts in mine)) for name in COUNTS]
    total = rank.sum(rank.sent(torch.tensor([*sums, float(stopping.wanted)], dtype=torch.float64)))
    counts = total[:-1].clamp(min=1).float()
    return dict(zip(COUNTS, counts.unbind(), strict=True)), Vote(total[-1])


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


def report(trainee: Trainee, done: int, row: dict[str, float], live: bool) -> None:
    """``live``: whether the launcher's live line shows this stage."""
    if trainee.monitor is not None:
        trainee.monitor.scalars(done, row)
        trainee.monitor.progress(done, row, live)


def report_quality(trainee: Trainee, done: int, quality: Quality) -> None:
    if trainee.monitor is not None:
        trainee.monitor.scalars(done, quality.scalars())
        trainee.monitor.line(f"after step {done}: {quality.sentence()}")


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
    own = own_tokenizers(config, stage, open_tokenizer(corpus.tokenizer_folder, config.data.tokenizer))
    if own and isinstance(stage, DistillStage):
        identity["tokenizers"] = {stage.teacher[number].source: theirs.hash for number, theirs in own.items()}
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
    known = next((file_hash(path) for path in files if path.is_file()), None)
    if known is not None or index is not None or hub.is_local(name):
        return known or name
    return hub.pin(name, "model", "stages")


def run_stages(config: RunConfig, indices: Sequence[int], corpus: Corpus, rank: Rank) -> None:
    """Carry a stage, or stages side by side, to the end (or find that they are done).

    A model as a Hugging Face folder, or rows of a task.
    """
    identities = {index: stage_identity(config, index, corpus) for index in indices}
    wanted = {index: identity for index, identity in identities.items() if not finished(config, index, identity, rank)}
    if not wanted:
        return
    if isinstance(config.stages[indices[0]], AugmentStage):
        run_augment(config, indices[0], identities[indices[0]], rank)
    else:
        train_stages(config, wanted, corpus, rank)


def finished(config: RunConfig, index: int, identity: dict[str, Any], rank: Rank) -> bool:
    """Whether a stage is done; one that is asked for more steps is opened again. Collective."""
    folder, stage = config.stage_folder(index), config.stages[index]
    done = read_done(folder)
    if done is None:
        return False
    checkpoint.check_identity(done["identity"], identity, f"The finished stage {stage.name!r} ({folder})")
    if not wants_more(stage, done):
        if rank.is_first:
            print(f"stage {stage.name} is finished; skipped", flush=True)
        return True
    rank.barrier()  # everyone has read it
    if rank.is_first:  # it goes on from its last checkpoint
        (folder / "DONE.json").unlink()
    return False


def wants_more(stage: AnyStage, done: dict[str, Any]) -> bool:
    """Whether a finished stage is now asked for more steps than it has taken."""
    if isinstance(stage, AugmentStage):
        return False
    if stage.training.epochs is not None:
        return bool((done["epochs"] or 0) < stage.training.epochs)
    assert stage.training.steps is not None
    return bool(done["steps"] < stage.training.steps)


def train_stages(config: RunConfig, identities: dict[int, dict[str, Any]], corpus: Corpus, rank: Rank) -> None:
    """From the first step that is not done to the last; then the models and their DONE.json."""
    began = time.monotonic()
    parts = build(config, identities, corpus, rank)
    with stopping.in_steps(), freed_memory_kept(rank.device):
        train(parts)
    pulse.at("end")
    for trainee in parts.trainees:
        quality = trainee.quality if trainee.quality is not None else parts.measure(trainee)
        weights = trainee.engine.full_weights()
        if rank.is_first:
            write_model(parts, trainee, weights)
            write_done(parts, trainee, quality, time.monotonic() - began)
        if trainee.monitor is not None:
            trainee.monitor.close()
    for trainee in parts.trainees:
        trainee.engine.close()
    rank.barrier()

"""The program of one rank in test_two_ranks.py: trains a toy distillation in every ZeRO stage and precision.

Usage: python rank_program.py CORPUS OUT [STATES]: writes OUT/results.json and, for each case, its state after three
steps; with STATES (the OUT of another world size) it continues from those instead, after checking them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from data_prep.corpus import Corpus
from distill_core import checkpoint
from distill_core.data import CorpusSource, Loader
from distill_core.engine import Engine, Rank, start_ranks, stop_ranks
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.objective import Distillation, Objective, Teacher
from distill_core.objectives.hidden import HiddenMseConfig
from distill_core.objectives.logits import KdCeConfig, KdKlConfig, MlmConfig
from distill_core.stage import global_counts
from distill_core.training import TrainingConfig
from distill_core.zero import FullState
from tests.traffic import Traffic

CASES = ["fp32-0", "fp32-1", "fp32-2", "fp32-3", "bf16-1", "bf16-2", "bf16-3", "fp16-1", "fp16-2"]
CASES += ["bf16-1-optimizer", "bf16-3-parameters"]
"""PRECISION-STAGE[-OFFLOAD]"""
TOO_LARGE = {"fp16-2": 2.0**20}
"""Loss scales at which the first steps overflow."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IDENTITY = {"test": "two ranks"}


def build(vocab_size: int, precision: str) -> tuple[Teacher, Distillation]:
    torch.manual_seed(0)
    shape = {"vocab_size": vocab_size, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0}
    big = EncoderConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, **shape)
    # Odd widths, so that parameters do not divide evenly over two ranks.
    small = EncoderConfig(hidden_size=18, num_hidden_layers=2, num_attention_heads=2, intermediate_size=33, **shape)
    terms = [
        KdCeConfig(kind="kd_ce", temperature=2.0),
        KdKlConfig(kind="kd_kl", positions="all"),
        MlmConfig(kind="mlm"),
        HiddenMseConfig(kind="hidden_mse", layers=[(0, 0), (2, 1), (4, 2)]),
    ]
    objective = Objective(terms, small, big)
    return Teacher(Encoder(big).to(DTYPES[precision]), objective.needs().teacher), Distillation(
        Encoder(small), [objective]
    )


def steps(engine: Engine, teacher: Teacher, corpus: Corpus, rank: Rank, first: int, last: int) -> list[list[float]]:
    """[loss, gradient norm, micro-steps] of each step."""
    loader = Loader(CorpusSource(corpus.split("train")), 7, 12, 150, rank.rank, rank.world_size, "runs")
    rows = []
    for step, _ in loader.steps(first, last):
        counts, _ = global_counts(step.batches, rank)
        loss = torch.zeros(())
        for batch in step.batches:
            losses = engine(batch, [teacher(batch)], counts, 0.0)
            engine.backward(losses.total, last=batch is step.batches[-1])
            loss += losses.total.detach().float()
        engine.step(1e-2, step.number)
        rows.append([float(rank.sum(loss)), engine.gradient_norm(), float(len(step.batches))])
    return rows


def same(a: FullState, b: FullState) -> bool:
    weights = all(torch.equal(a.weights[k], b.weights[k]) for k in a.weights)
    moments = all(torch.equal(a.moments[k], b.moments[k]) for k in a.moments)
    counters = (a.optimizer_steps, a.skipped, a.scaler) == (b.optimizer_steps, b.skipped, b.scaler)
    return weights and moments and counters


def run_case(
    corpus: Corpus, rank: Rank, traffic: Traffic, case: str, out: Path, states: Path | None
) -> dict[str, object]:
    precision, stage, offload = (case + "-none").split("-")[:3]
    training = TrainingConfig(
        steps=6,
        global_batch_size=12,
        micro_batch_tokens=150,
        precision=precision,
        zero_stage=int(stage),
        offload=offload,
    )
    folder = out / case
    if states is not None:
        found, _ = checkpoint.newest(states / case)
        assert found is not None
        before = found.read()
        teacher, module = build(corpus.vocab_size, precision)
        engine = Engine(module, training, rank, before)
        after = engine.full_state(3)
        state_kept = same(before, after) if rank.is_first else True
        continued = steps(engine, teacher, corpus, rank, 3, 6)
        engine.close()
        return {"state_kept": state_kept, "continued": continued}
    teacher, module = build(corpus.vocab_size, precision)
    engine = Engine(module, training, rank)
    if case in TOO_LARGE:
        engine._engine.optimizer.loss_scaler.cur_scale = TOO_LARGE[case]
    rows = steps(engine, teacher, corpus, rank, 0, 3)
    checkpoint.save(folder, 3, engine, IDENTITY, rank, keep_last=1)
    before = traffic.sent
    rows += steps(engine, teacher, corpus, rank, 3, 6)
    sent = (traffic.sent - before) / 3
    straight = engine.full_state(6)
    engine.close()
    found, _ = checkpoint.newest(folder)
    assert found is not None
    teacher, module = build(corpus.vocab_size, precision)
    engine = Engine(module, training, rank, found.read())
    resumed_rows = steps(engine, teacher, corpus, rank, 3, 6)
    resumed = engine.full_state(6)
    engine.close()
    trained = sum(weight.numel() for weight in straight.weights.values())
    facts = {"trained": trained, "sent": sent, "skipped": straight.skipped, "scaler": straight.scaler}
    return {"rows": rows, "resumed_rows": resumed_rows, "bitwise": same(straight, resumed), **facts}


def main() -> None:
    torch.set_num_threads(1)
    corpus, out = Corpus.open(Path(sys.argv[1])), Path(sys.argv[2])
    states = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    traffic = Traffic(int(os.environ["WORLD_SIZE"]))
    rank = start_ranks()
    from deepspeed.accelerator import get_accelerator

    # A CPU has no fp16 units, and DeepSpeed refuses it there; its logic is the same.
    get_accelerator().is_fp16_supported = lambda: True
    results = {case: run_case(corpus, rank, traffic, case, out, states) for case in CASES}
    if rank.is_first:
        (out / "results.json").write_text(json.dumps(results))
    rank.barrier()
    stop_ranks()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # as distill_core.run does

"""A rank of ``distill plan --measure``: steps of a stage's real models on batches of its lengths.

``python -m launcher.probe_rank FOLDER`` reads FOLDER/config.yaml and FOLDER/probe.json, and writes FOLDER/probed.json.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from configs.errors import output_error
from configs.loader import load
from distill_core.batch import Batch
from distill_core.build import stage_kernel, wrapped
from distill_core.clock import Clock
from distill_core.config import DistillStage, RunConfig, TrainedStage
from distill_core.data import Step
from distill_core.engine import Engine, Rank, start_ranks, stop_ranks
from distill_core.frozen import check_device
from distill_core.load import LoadedTeacher
from distill_core.meter import Meter
from distill_core.parts import StepParts, Trainee
from distill_core.profile import wait_for_updates
from distill_core.progressive import ProgressiveDistillation
from distill_core.record import BestModel
from distill_core.run import current_stage, leave, rank_program
from distill_core.stage import begin, train_step
from distill_core.teachers import freeze
from launcher.plan import plan_stage
from launcher.plan_data import Data
from launcher.simulation import batch_of, model_of

MICRO_SECONDS = 1.5
"""A micro-step that would take longer is made smaller."""
FEW = 4
"""Sequences of the first, smallest steps."""
ROUNDS = 3


class Probe:
    """A stage that takes steps of any size; weights and tokens are random.

    What is left out: references, a second text for teachers that read tokens of their own, reading the batches.
    """

    def __init__(self, config: RunConfig, index: int, data: Data, ranks: int, rank: Rank) -> None:
        """``ranks``: of the run that is planned; a micro-step is as large as on each of them. Collective."""
        stage = config.stages[index]
        assert isinstance(stage, TrainedStage)
        self.rank, self.stage = rank, stage
        check_device(stage.training, rank, f"Stage {stage.name!r}")
        torch.manual_seed(0)
        plan = plan_stage(config, index, data, ranks, rank.device.type == "cuda")
        self.work, self.step_tokens, self.data = plan.work, plan.tokens_per_step / ranks, plan.data
        module = wrapped(stage, model_of(self.work.student, self.work), self.work.objectives(), plan.steps)
        given = stage.teacher if isinstance(stage, DistillStage) else []
        loaded = [
            LoadedTeacher(teacher, teacher.source, model_of(shape, self.work), missing_head=False)
            for teacher, shape in zip(given, self.work.teachers, strict=True)
        ]
        teachers, _ = freeze(stage, loaded, [module], None, rank)
        self.kernel = stage_kernel(stage.training, [self.work.student], rank.device)
        clock, flops = Clock(rank.device), module.flops()
        pace = module.schedule if isinstance(module, ProgressiveDistillation) else None
        engine = Engine(module, stage.training, rank, pace=pace)
        best = BestModel(config.stage_folder(index), stage.training, engine, rank, 0)
        trainee = Trainee(config, index, {}, module.student, engine, 0, None, Meter(rank, clock), best, flops)
        self.parts = StepParts(rank=rank, teachers=teachers, trainees=[trainee], steps=plan.steps, clock=clock)
        begin(self.parts)

    def batch(self, tokens: int) -> Batch:
        """About so many tokens."""
        batch = batch_of(self.work, self.data.spread(tokens), self.kernel)
        vocabulary = self.work.student.vocab_size
        assert batch.rows is not None
        batch.ids = torch.randint(vocabulary, batch.ids.shape)
        batch.labels = torch.randint(vocabulary, batch.rows.shape)
        return batch

    def take(self, tokens: int, micro_steps: int = 1) -> dict[str, float]:
        """Seconds of a step by part, with their sum as ``wall``, and ``cpu``: means over the ranks. Collective."""
        clock, step = (
            self.parts.clock,
            Step(self.parts.steps // 2, 0.0, [self.batch(tokens) for _ in range(micro_steps)]),
        )
        self.rank.barrier()
        clock.restart()
        before, cpu = clock.seconds(), time.process_time()
        train_step(self.parts, step, 0.0)
        clock.mark("other")
        wait_for_updates(self.parts)
        taken: dict[str, float] = {part: seconds - before[part] for part, seconds in clock.seconds().items()}
        found = {"wall": sum(taken.values()), "cpu": time.process_time() - cpu, **taken}
        means = self.rank.sum(torch.tensor(list(found.values()), dtype=torch.float64, device=self.rank.device))
        return dict(zip(found, (means / self.rank.world_size).tolist(), strict=True))

    def affordable(self) -> int:
        """Tokens of a micro-step that is as large as the plan's, but not much longer than ``MICRO_SECONDS``."""
        few = min(self.work.tokens, FEW * self.work.length)
        self.take(few)  # makes buffers and kernels
        taken = self.take(few)
        each = (taken["teacher"] + taken["forward"] + taken["backward"]) / few
        return max(few, min(self.work.tokens, int(MICRO_SECONDS / each)))

    def rounds(self, between: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """What :class:`launcher.plan_probe.Probed` is made of. Collective; ``between``: called after each round."""
        tokens = self.affordable()
        real = sum(self.data.spread(tokens))
        several = self.step_tokens > 1.05 * real
        self.take(tokens)
        found: dict[str, Any] = {"ranks": self.rank.world_size, "tokens": real, "one": [], "two": []}
        for _ in range(ROUNDS):
            for name, count in (("one", 1), ("two", 2)) if several else (("one", 1),):
                taken = self.take(tokens, count)
                found[name].append([taken[part] for part in ("wall", "cpu", "teacher")])
            between()
        return found

    def close(self) -> None:
        self.parts.trainees[0].engine.close()


def probe(config: RunConfig, asked: Mapping[str, Any], rank: Rank) -> dict[str, Any]:
    """By the stage's name. Collective."""
    data = Data(**{**asked["data"], "lengths": tuple(asked["data"]["lengths"])})
    found = {}
    for name in asked["stages"]:
        current_stage.name, index = name, config.stage_index(name)
        assert index is not None
        one = Probe(config, index, data, asked["ranks"], rank)
        found[name] = one.rounds()
        one.close()
    return found


def main() -> int:
    """The program of one rank; returns its exit status."""
    folder = Path(sys.argv[1])

    def work() -> None:
        config = load(folder / "config.yaml", [], RunConfig)
        rank = start_ranks()
        found = probe(config, json.loads((folder / "probe.json").read_text(encoding="utf-8")), rank)
        stop_ranks()
        if rank.is_first:
            try:
                (folder / "probed.json").write_text(json.dumps(found), encoding="utf-8")
            except OSError as error:
                raise output_error(folder, error) from error

    return rank_program(folder, work)


if __name__ == "__main__":
    leave(main())

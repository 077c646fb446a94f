"""Our own step: the loop of ``distill run`` with all that belongs to it, and the bare step without."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.step.settings import Setting
from benchmarks.step.turns import Gate, Loop
from configs.loader import validate
from data_prep.corpus import Corpus
from distill_core.batch import COUNTS, Batch
from distill_core.build import build, make_loader, splits, student_module
from distill_core.config import RunConfig
from distill_core.data import Loader, Step
from distill_core.engine import Rank, start_ranks
from distill_core.load import stage_teachers
from distill_core.memory import freed_memory_kept
from distill_core.objective import Teacher
from distill_core.parts import Parts
from distill_core.shapes import stage_shape
from distill_core.stage import train

Precision = Literal["bf16", "fp32"]
NEVER = 1_000_000


class alone:
    """What was found by :func:`start_alone`. ``engine``: why there is no real loop, None: there is one."""

    engine: str | None = None


def start_alone(folder: Path) -> Rank:
    """The one rank of this process, without a network port; without DeepSpeed only the bare step can be run."""
    os.environ.setdefault("ZHENGLIU_RENDEZVOUS", f"file://{folder}/rendezvous-{uuid.uuid4().hex}")
    try:
        return start_ranks()
    except ImportError as error:
        alone.engine = f"the real loop needs DeepSpeed: {error}"
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    return Rank(0, 0, 1, device)


def run_config(
    setting: Setting, corpus: Corpus, teacher: Path, folder: Path, precision: Precision, **training: Any
) -> RunConfig:
    """A run of one stage, as a user writes it down."""
    stage = {
        "name": "step",
        "kind": "distill",
        "teacher": {"source": str(teacher), "head_check": "off"},  # its weights are random
        "student": {"model": setting.student_fields},
        "objective": setting.objective,
        "training": {
            "steps": NEVER,
            "global_batch_size": setting.sequences,
            "micro_batch_tokens": setting.sequences * setting.length,
            "precision": precision,
            "log_every": 1,
            "checkpoint_every": NEVER,
            "evaluate_every": NEVER,
            **training,
        },
    }
    tree = {
        "name": f"{setting.name}-{precision}-{uuid.uuid4().hex[:8]}",
        "output": str(folder / "runs"),
        "data": {**corpus.manifest["identity"], "folder": str(corpus.folder)},
        "stages": [stage],
    }
    config = validate(tree, RunConfig)
    (config.folder / "logs").mkdir(parents=True)
    return config


class _Paced:
    """The loader, each of its steps behind a gate, at which the process is the others'."""

    def __init__(self, loader: Any, gate: Gate, device: torch.device) -> None:
        self._loader, self._gate, self._device = loader, gate, device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def steps(self, first: int, last: int) -> Iterator[tuple[Step, float]]:
        steps, end = self._gate.through(self._loader.steps(first, last)), None
        while True:
            with freed_memory_kept(self._device, kept=False):
                step = next(steps, end)
            if step is end:
                return
            yield step


def loader_of(config: RunConfig, corpus: Corpus, rank: Rank) -> Loader:
    """The loader of the run's one stage."""
    stage: Any = config.stages[0]
    student = stage_shape(config, 0, corpus.vocab_size)
    return make_loader(config, stage.training, splits(config, corpus, None)[0], rank, [student])


def build_parts(config: RunConfig, corpus: Corpus, rank: Rank) -> Parts:
    """All that the training loop of the run's one stage works with."""
    return build(config, {0: {"benchmark": config.name}}, corpus, rank)


def real_loop(parts: Parts) -> Loop:
    """``distill run``'s own loop: loader, DeepSpeed, checks, logging. Closing it releases what DeepSpeed holds."""

    def program(gate: Gate) -> None:
        parts.loader = _Paced(parts.loader, gate, parts.rank.device)  # type: ignore[assignment]
        with freed_memory_kept(parts.rank.device):
            train(parts)

    def release() -> None:
        for trainee in parts.trainees:
            trainee.engine.close()
            if trainee.monitor is not None:
                trainee.monitor.close()

    return Loop(program, release)


class Bare:
    """Forward, backward and AdamW of the same modules on ready batches, and nothing else."""

    def __init__(self, config: RunConfig, corpus: Corpus, rank: Rank) -> None:
        stage: Any = config.stages[0]
        dtype = torch.bfloat16 if stage.training.precision == "bf16" else torch.float32
        loaded = stage_teachers(config, 0, corpus, [])
        module = student_module(config, 0, corpus, [], loaded, NEVER)
        objective: Any = module.objectives[0]
        self.teacher = Teacher(loaded[0].model.to(rank.device, dtype), objective.needs().teacher)
        self.masters = [p.detach().to(rank.device, torch.float32).clone() for p in module.parameters()]
        self.module = module.to(rank.device, dtype).train()
        self.parameters = list(module.parameters())
        self.optimizer = torch.optim.AdamW(self.masters, lr=1e-6, fused=True)
        self.rank = rank

    def step(self, batches: list[Batch]) -> None:
        """One optimiser step over some micro-batches."""
        self.backward(batches)
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimizer.step()
        torch._foreach_copy_([p.data for p in self.parameters], self.masters)

    def backward(self, batches: list[Batch]) -> Tensor:
        """The step's loss; its gradient in fp32 is the masters' then."""
        batches = [batch.to(self.rank.device) for batch in batches]
        counts, losses = self._counts(batches), []
        for batch in batches:
            losses.append(self.module(batch, [self.teacher(batch)], counts, 0.0).total)
            losses[-1].backward()
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        return torch.stack([loss.detach() for loss in losses]).sum()

    def _counts(self, batches: list[Batch]) -> Any:
        found = [batch.counts() for batch in batches]
        sums = torch.tensor([sum(counts[name] for counts in found) for name in COUNTS], device=self.rank.device)
        return dict(zip(COUNTS, sums.clamp(min=1).float().unbind(), strict=True))


@dataclass
class FirstStep:
    """The step's micro-batches; by name the weights before it, in fp32, and the gradient; its loss."""

    batches: list[Batch]
    weights: dict[str, Tensor]
    gradient: dict[str, Tensor]
    loss: float


def first_step(config: RunConfig, corpus: Corpus, rank: Rank) -> FirstStep:
    """Of the real loop: the gradient that the optimiser got, from Adam's first moment, and the loss that was logged.

    The run must not clip gradients.
    """
    parts = build_parts(config, corpus, rank)
    trainee = parts.trainees[0]
    weights, batches = trainee.engine.full_weights(), parts.loader.step(0).batches
    loop = real_loop(parts)
    loop.step()
    state = trainee.engine.full_state(1)
    loop.close()
    rest = 1 - trainee.training.optimizer.betas[0]
    gradient = {name: state.moments[f"exp_avg/{name}"] / rest for name in weights}
    last = (config.stage_folder(0) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return FirstStep(batches, weights, gradient, float(json.loads(last)["loss/total"]))


def first_bare_step(config: RunConfig, corpus: Corpus, rank: Rank) -> FirstStep:
    """Of the bare step."""
    bare = Bare(config, corpus, rank)
    batches = loader_of(config, corpus, rank).step(0).batches
    names = [name for name, _ in bare.module.named_parameters()]
    weights = {name: master.cpu().clone() for name, master in zip(names, bare.masters, strict=True)}
    loss = float(bare.backward(batches))
    both = zip(names, bare.masters, strict=True)
    return FirstStep(
        batches,
        weights,
        {name: torch.zeros_like(m).cpu() if m.grad is None else m.grad.cpu() for name, m in both},
        loss,
    )

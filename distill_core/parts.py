"""What a stage's loop works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from data_prep.corpus import Corpus
from distill_core.cache import AnyTeacher
from distill_core.clock import Clock
from distill_core.config import RunConfig, TrainedStage
from distill_core.data import Loader, Source, held_out_batches
from distill_core.early_stopping import EarlyStopping
from distill_core.engine import Engine, Rank
from distill_core.evaluate import masked_lm
from distill_core.evaluate.pseudo_perplexity import PseudoPerplexity, pseudo_perplexity, texts
from distill_core.flops import Flops, total
from distill_core.meter import Meter
from distill_core.models.encoder import Encoder
from distill_core.monitor import Monitor
from distill_core.objective import Teacher
from distill_core.objectives import OBJECTIVES
from distill_core.record import BestModel, Quality
from distill_core.references.prepare import StageReferences
from distill_core.tasks import quality as task_quality
from distill_core.tasks.load import Task
from distill_core.tasks.model import StageModel, TaskModel
from distill_core.training import TrainingConfig


@dataclass
class Trainee:
    """A stage in training: what is its own. ``quality``: of the last evaluation."""

    config: RunConfig
    index: int
    identity: dict[str, Any]
    student: StageModel
    engine: Engine
    first_step: int
    monitor: Monitor | None
    meter: Meter
    best: BestModel
    flops: dict[str, Flops]
    """Useful ones of its forward and backward passes, by part."""
    quality: Quality | None = None
    evaluated: int = 0
    """The step of the last evaluation."""
    early_stopping: EarlyStopping | None = None

    @property
    def stage(self) -> TrainedStage:
        stage = self.config.stages[self.index]
        assert isinstance(stage, TrainedStage)
        return stage

    @property
    def training(self) -> TrainingConfig:
        return self.stage.training

    @property
    def folder(self) -> Path:
        return self.config.stage_folder(self.index)

    @property
    def stopped(self) -> int | None:
        """The step after which early stopping has ended it.

        With less patience than it has had before: the one that it has come to in the meantime.
        """
        found = None if self.early_stopping is None else self.early_stopping.standing.stopped
        return None if found is None else max(found, self.first_step)

    def state(self) -> dict[str, Any]:
        """What its checkpoints hold beside weights, moments and identity."""
        found = None if self.early_stopping is None else self.early_stopping.state()
        return {"evaluated": self.evaluated, "early_stopping": found}


@dataclass(kw_only=True)
class StepParts:
    """What a step works with: the trainees (one stage, or several side by side), and what they share.

    ``steps``: of the stage in all.
    """

    rank: Rank
    teachers: Sequence[AnyTeacher]
    trainees: list[Trainee]
    steps: int
    clock: Clock
    verdicts: dict[int, Tensor] = field(default_factory=dict)
    """By the step's number, bool on the device: whether this rank's teachers answered with finite numbers."""

    def flops(self, trainees: Sequence[Trainee]) -> Flops:
        """Useful ones of a step in which ``trainees`` are trained."""
        return total(part for trainee in trainees for part in trainee.flops.values()) + self.teacher_flops()

    def teacher_flops(self) -> Flops:
        return total(teacher.flops() for teacher in self.teachers)


@dataclass(kw_only=True)
class Parts(StepParts):
    """Everything the loop works with."""

    config: RunConfig
    corpus: Corpus
    task: Task | None
    loader: Loader
    held_out: Source
    references: StageReferences | None

    @property
    def first_step(self) -> int:
        """Of the trainee that is least far and has not ended; the others join at their own."""
        return min((trainee.first_step for trainee in self.trainees if trainee.stopped is None), default=self.steps)

    @property
    def names(self) -> str:
        return ", ".join(repr(trainee.stage.name) for trainee in self.trainees)

    def useful_flops(self, trainee: Trainee) -> dict[str, Flops]:
        """The useful ones of a trainee's step by part, with the teachers that it shares with those beside it."""
        return {"teachers": self.teacher_flops(), **trainee.flops}

    def pairs(self, trainee: Trainee) -> list[list[tuple[int, int]]]:
        """For each loss term its (teacher, student) layer pairs, with the first teacher."""
        if not self.teachers:
            return [[] for _ in trainee.stage.objective]
        depths = (self.teachers[0].config.num_hidden_layers, trainee.student.config.num_hidden_layers)
        return [term.pairs(*depths) for term in trainee.stage.objective]

    def measure(self, trainee: Trainee) -> Quality:
        """Its student (and the first teacher, where it can do the same) on what was kept from training. Collective."""
        teacher = self.teachers[0] if self.teachers else None
        if self.task is None:
            batches = self._batches(self._seen(self.held_out), trainee.training.evaluate_sequences)
            assert isinstance(trainee.student, Encoder)
            found = masked_lm.evaluate(trainee.student, teacher, batches, self.rank)
            return replace(found, pseudo_perplexity=self._pseudo_perplexity(trainee.student, trainee.training))
        if not isinstance(teacher, Teacher) or not isinstance(teacher.encoder, TaskModel):
            teacher = None
        dev = self.task.dev
        trained = any(OBJECTIVES[term.kind].count == "targets" for term in trainee.stage.objective)
        batches = self._batches(self._seen(dev), len(dev))
        return task_quality.evaluate(trainee.student, teacher, dev, batches, self.rank, trained)

    def _pseudo_perplexity(self, student: Encoder, training: TrainingConfig) -> PseudoPerplexity | None:
        """Where early stopping goes by it. Collective."""
        wanted = None if training.early_stopping is None else training.early_stopping.perplexity_sequences
        if wanted is None:
            return None
        chosen = texts(self.corpus, wanted, self.config.seed)
        budget = self.loader.micro_batch_tokens
        return pseudo_perplexity(student, chosen, self.corpus.special_ids, budget, self.rank)

    def _seen(self, source: Source) -> Source:
        """What was kept from training, with its references."""
        return source if self.references is None else self.references.seen(source, "held_out")

    def _batches(self, source: Source, limit: int) -> Any:
        loader = self.loader
        where = (loader.micro_batch_tokens, loader.rank, loader.world_size, loader.kernel)
        return held_out_batches(source, limit, self.config.seed, *where)

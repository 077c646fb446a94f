"""``distill plan``: what a run will cost before it starts. Pure functions over the run file; no network.

All sizes but the parameter counts are estimates, and shown as such. What FLOPs are: ``distill_core/flops.py``.
"""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass

import torch

from configs.errors import ConfigError, DataError
from distill_core import preflight
from distill_core.batch import Count
from distill_core.beside import group_of
from distill_core.config import (
    AugmentStage,
    DistillStage,
    PretrainStage,
    RunConfig,
    TeacherConfig,
    TrainedStage,
    parts_from,
)
from distill_core.flops import forward_flops, total
from distill_core.frozen import DTYPES
from distill_core.load import objectives
from distill_core.models.config import EncoderConfig
from distill_core.objective import Objective
from distill_core.shapes import source_shape, stage_shape
from distill_core.tasks.own_tokens import Own, alike, check_own_tokens, own_tokenizers
from distill_core.training import TrainingConfig
from launcher import devices
from launcher.plan_cache import CachePlan, TeacherCost, cache_plan, kept_bytes, teacher_cost
from launcher.plan_data import Data, measure, per_token, shard_bytes, task_data
from launcher.plan_losses import LossPlan, beginnings, loss_plans
from launcher.plan_memory import Memory, memory
from launcher.plan_teachers import TeacherPlan, described, teacher_plans
from launcher.simulation import Peak, Work, simulate


@dataclass(frozen=True)
class StagePlan:
    """One stage's costs. FLOPs are per real token, for the forward and backward passes of all models together.

    Of stages side by side only the first pays for the teachers.
    """

    name: str
    kind: str
    student: EncoderConfig
    teachers: list[TeacherPlan]
    projections: int
    """Parameters of the objective, trained with the student and not exported."""
    losses: list[LossPlan]
    begins: list[str]
    """How the embeddings and each layer begin."""
    steps: int
    sequences: int
    tokens: float
    epochs: float | None
    micro_steps: int
    flops_per_token: float
    teacher_flops_per_token: float
    """Of the teachers' forward passes, whoever pays for them."""
    training: TrainingConfig
    work: Work
    """One micro-step."""
    trained: int
    """Parameters of student and projections."""
    longest: int
    """Tokens of the longest sequence."""
    ranks: int
    gpu: bool
    data: Data
    """What it trains on: the corpus, or the rows of its task."""
    checkpoint_bytes: float
    cache: CachePlan | None = None
    """Of a distill stage on the corpus: live or cached teachers."""
    teacher_kept: float = 1.0
    """Of the time that live teachers take: less with a cache, none where another stage asks them."""
    own_tokens: tuple[str, ...] = ()
    """The teachers that read tokens of their own, with the kind and size of their vocabularies."""

    @property
    def teacher(self) -> EncoderConfig | None:
        """The first one's shape."""
        return self.teachers[0].shape if self.teachers else None

    @property
    def flops(self) -> float:
        return self.flops_per_token * self.tokens

    @property
    def tokens_per_step(self) -> float:
        return self.tokens / self.steps

    @property
    def flops_per_step(self) -> float:
        return self.flops / self.steps

    def micro_steps_on(self, ranks: int) -> int:
        """Of one step, with another number of ranks."""
        return micro_steps(self.training, self.tokens_per_step / ranks)

    @functools.cached_property
    def peak(self) -> Peak:
        """Of a micro-step; simulated when it is first asked for."""
        return simulate(self.work)

    @property
    def memory(self) -> Memory:
        """Of one rank, as the run file has it."""
        return self.memory_at(self.training.zero_stage)

    def memory_at(self, zero: int) -> Memory:
        """Of one rank with another ZeRO stage."""
        return memory(self.work, self.peak, self.trained, self.training, zero, self.ranks, self.gpu)

    def memory_on(self, ranks: int) -> Memory:
        """Of one rank among so many others."""
        found = memory(self.work, self.peak, self.trained, self.training, self.training.zero_stage, ranks, self.gpu)
        return found.at(self.tokens_per_step / ranks / self.micro_steps_on(ranks))


@dataclass(frozen=True)
class Plan:
    name: str
    ranks: int
    data: Data
    shard_bytes: float | None
    stages: list[StagePlan]


def make_plan(config: RunConfig, ranks: int, gpu: bool | None = None) -> Plan:
    """The costs of every stage.

    Args:
        ranks: of the whole run.
        gpu: whether each has a GPU; default: as on this machine.

    Raises:
        ConfigError: a teacher's shape is not at hand (there is no network here), or a stage cannot work.
        DataError: the prepared data is damaged.
    """
    data, gpu = measure(config), devices.gpus() > 0 if gpu is None else gpu
    indices = [i for i, stage in enumerate(config.stages) if not isinstance(stage, AugmentStage)]
    stages = [plan_stage(config, index, data, ranks, gpu) for index in indices]
    return Plan(config.name, ranks, data, shard_bytes(config.data, data), stages)


# ---------------------------------------------------------------- stages


def plan_stage(config: RunConfig, index: int, data: Data, ranks: int, gpu: bool) -> StagePlan:
    """One stage's costs."""
    stage = config.stages[index]
    assert isinstance(stage, TrainedStage)
    preflight.check_corpus_fits(config, stage, f"stage {stage.name!r}")
    training = stage.training
    student = stage_shape(config, index, data.vocab_size)
    teachers = []
    if isinstance(stage, DistillStage):
        teachers = [(t, source_shape(config, stage, t.source, data.vocab_size)) for t in stage.teacher]
    teacher = teachers[0][1] if teachers else None
    parts, size = parts_from(stage), data.vocab_size
    own = known_tokenizers(config, stage)
    losses = light_objectives(config, stage, student, teachers, own)
    projections = sum(p.numel() for objective in losses for p in objective.parameters())
    data = data if isinstance(stage, PretrainStage) or stage.task is None else task_data(config, stage, data)
    needs = [objective.needs() for objective in losses]
    counts = per_token(config, stage, data)
    steps = training.total_steps(data.sequences)
    sequences = steps * training.global_batch_size
    costs = stage_costs(config, index, losses, student, [shape for _, shape in teachers], counts, data)
    of_a_rank = training.global_batch_size * data.mean_length / ranks
    passes = micro_steps(training, of_a_rank)
    trained = student.parameters() + projections
    return StagePlan(
        name=stage.name,
        kind=stage.kind,
        student=student,
        teachers=teacher_plans(config, teachers, needs),
        projections=projections,
        losses=loss_plans(stage, losses[0], student, teacher),
        begins=beginnings(stage, student, teacher if parts is None else source_shape(config, stage, parts, size)),
        steps=steps,
        sequences=sequences,
        tokens=sequences * data.mean_length,
        epochs=sequences / data.sequences if data.sequences else None,
        micro_steps=passes,
        flops_per_token=costs.flops,
        teacher_flops_per_token=costs.teachers,
        training=training,
        work=micro_step(config, stage, student, teachers, of_a_rank / passes, data, gpu),
        trained=trained,
        longest=config.longest(stage),
        ranks=ranks,
        gpu=gpu,
        data=data,
        checkpoint_bytes=12.0 * trained * (training.keep_last + 1) + 4.0 * student.parameters(),
        cache=costs.cache,
        teacher_kept=costs.kept,
        own_tokens=described(teachers, own),
    )


@dataclass(frozen=True)
class Costs:
    """FLOPs for each real token. ``teachers``: of live ones; ``kept``: the share of them that this stage pays for."""

    flops: float
    teachers: float
    kept: float
    cache: CachePlan | None


def stage_costs(
    config: RunConfig,
    index: int,
    losses: list[Objective],
    student: EncoderConfig,
    teachers: list[EncoderConfig],
    counts: dict[Count, float],
    data: Data,
) -> Costs:
    """``losses``: one objective a teacher; ``counts``: what a step counts for each real token."""
    stage = config.stages[index]
    assert isinstance(stage, TrainedStage)
    needs = [objective.needs() for objective in losses]
    wanted = functools.reduce(operator.or_, (need.student for need in needs))
    own = (forward_flops(student, wanted) * 3 + total(objective.flops() for objective in losses)).of(counts)
    cost, cache, kept = TeacherCost(), None, 1.0
    for need, shape in zip(needs, teachers, strict=bool(teachers)):
        cost += teacher_cost(shape, need.teacher, counts, kept_bytes(stage))
    if isinstance(stage, DistillStage) and stage.task is None:
        sequences = stage.training.total_steps(data.sequences) * stage.training.global_batch_size
        epochs = sequences / data.sequences if data.sequences else None
        cache = cache_plan(stage, config.data.masks, losses, cost, own, data.tokens, epochs)
        kept = (cache.stage_flops - own) / cost.live if cache.chosen and cost.live else 1.0
    alone = not isinstance(stage, DistillStage) or stage.teacher_cache is not None
    if not alone and group_of(config.stages, index)[0] != index:
        kept = 0.0  # the teachers answer once, for the first of the group
    return Costs(own + kept * cost.live, cost.live, kept, cache)


def micro_steps(training: TrainingConfig, tokens: float) -> int:
    """Forward/backward passes of a rank with so many tokens in a step."""
    return max(1, math.ceil(tokens / training.micro_batch_tokens))


def micro_step(
    config: RunConfig,
    stage: TrainedStage,
    student: EncoderConfig,
    teachers: list[tuple[TeacherConfig, EncoderConfig]],
    tokens: float,
    data: Data,
    gpu: bool,
) -> Work:
    """What a rank works on at once. A teacher with tokens of its own counts as if they were the student's."""
    task = None if isinstance(stage, PretrainStage) or stage.task is None else config.tasks[stage.task].kind
    shapes = [shape.model_copy(update={"vocab_size": student.vocab_size}) for _, shape in teachers]
    named = [(teacher, shape) for (teacher, _), shape in zip(teachers, shapes, strict=True)]
    return Work(
        student=student,
        teachers=tuple(shapes),
        objectives=functools.partial(objectives, stage, student, named),
        dtype=DTYPES[stage.training.precision],
        tokens=max(1, round(tokens)),
        length=max(1, round(data.mean_length)),
        masked=config.data.masks.rate,
        sampled=stage.training.sampled_rows,
        task=task,
        checkpointing=stage.training.activation_checkpointing,
        gpu=gpu,
    )


def known_tokenizers(config: RunConfig, stage: TrainedStage) -> Own:
    """The tokenizers of teachers with another vocabulary than the run's, as far as both are at hand."""
    try:
        ours = preflight.run_tokenizer(config)
    except DataError:  # said among what is missing
        return {}
    return own_tokenizers(config, stage, ours, fetch=False)


def light_objectives(
    config: RunConfig,
    stage: TrainedStage,
    student: EncoderConfig,
    teachers: list[tuple[TeacherConfig, EncoderConfig]],
    own: Own,
) -> list[Objective]:
    """The stage's objectives without memory; building them also checks their layers, widths and vocabularies."""
    shapes = [shape for _, shape in teachers]
    named = [(teacher, shape) for (teacher, _), shape in zip(teachers, alike(shapes, own, student), strict=True)]
    try:
        with torch.device("meta"):
            built = objectives(stage, student, named)
    except ConfigError as error:
        raise ConfigError(f"stage {stage.name!r}: {error}") from None
    check_own_tokens(config, stage, own, shapes, built, f"stage {stage.name!r}")
    return built

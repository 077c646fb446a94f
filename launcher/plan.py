"""``distill plan``: what a run will cost before it starts. Pure functions over the run file; no network.

All sizes but the parameter counts are estimates, and shown as such. Conventions: a multiply-add is two FLOPs; the
backward pass costs twice the forward; embeddings look up and cost nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from configs.errors import ConfigError, DataError
from data_prep.config import DataConfig
from data_prep.corpus import Corpus
from data_prep.readers import open_sources
from distill_core import preflight
from distill_core.beside import group_of
from distill_core.config import (
    AugmentStage,
    DistillStage,
    FinetuneStage,
    PretrainStage,
    RunConfig,
    TeacherConfig,
    TrainedStage,
    made_from,
    model_sources,
    parts_from,
)
from distill_core.features import FeatureRequest
from distill_core.load import objectives
from distill_core.models import pretrained
from distill_core.models.config import EncoderConfig, ModelConfig, presets
from distill_core.objective import Objective
from distill_core.objectives.logits import MOST_ROWS
from distill_core.tasks.own_tokens import Own, alike, check_own_tokens, own_tokenizers
from distill_core.tasks.rows import RowCounts, read_rows
from distill_core.training import TrainingConfig
from launcher.flops import forward_flops
from launcher.plan_cache import CachePlan, TeacherCost, cache_plan, kept_bytes, teacher_cost
from launcher.plan_losses import LossPlan, beginnings, loss_plans
from launcher.plan_teachers import TeacherPlan, described, teacher_plans

BYTES_PER_TOKEN = 3.05
"""UTF-8 Chinese in WordPiece, JSON lines or text; 3.02 and 3.04 on two of our corpora."""
UNPACKED = {".gz": 2.8, ".zst": 3.0, ".parquet": 2.0}
"""Text bytes per byte of file."""
FILLED = 0.75
"""Of ``max_length``, by whole sentences of one document; 0.70 to 0.76 on two of our corpora at 64."""


@dataclass(frozen=True)
class Data:
    """The training split. ``exact``: counted from prepared data, else estimated from the sources' sizes."""

    tokens: int | None
    """With [CLS] and [SEP]; None where it cannot be known (a hub data set)."""
    sequences: int | None
    mean_length: float
    vocab_size: int
    exact: bool
    problems: tuple[str, ...] = ()
    """What is missing for a run; a plan is made all the same."""
    has_text: bool = True
    """False for a run on labelled rows alone."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank."""

    weights: float
    gradients: float
    optimizer: float
    """fp32 masters and Adam's moments."""
    teacher: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.teacher + self.activations + self.logits


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
    memory: Memory
    checkpoint_bytes: float
    cache: CachePlan | None = None
    """Of a distill stage on the corpus: live or cached teachers."""
    own_tokens: tuple[str, ...] = ()
    """The teachers that read tokens of their own, with the kind and size of their vocabularies."""

    @property
    def teacher(self) -> EncoderConfig | None:
        """The first one's shape."""
        return self.teachers[0].shape if self.teachers else None

    @property
    def flops(self) -> float:
        return self.flops_per_token * self.tokens


@dataclass(frozen=True)
class Plan:
    name: str
    ranks: int
    data: Data
    shard_bytes: float | None
    stages: list[StagePlan]


def make_plan(config: RunConfig, ranks: int) -> Plan:
    """The costs of every stage.

    Raises:
        ConfigError: a teacher's shape is not at hand (there is no network here), or a stage cannot work.
        DataError: the prepared data is damaged.
    """
    data = measure(config)
    indices = [i for i, stage in enumerate(config.stages) if not isinstance(stage, AugmentStage)]
    stages = [plan_stage(config, index, data, ranks) for index in indices]
    return Plan(config.name, ranks, data, shard_bytes(config.data, data), stages)


# ---------------------------------------------------------------- data


def measure(config: RunConfig) -> Data:
    """Counts from the prepared data when it is there, else an estimate from the sizes of the source files."""
    folder = config.data_folder
    if config.data.sources and (folder / "manifest.json").is_file():
        corpus = Corpus.open(folder)
        split = corpus.split("train")
        tokens = split.n_tokens + split.specials * len(split)
        return Data(tokens, len(split), tokens / len(split), corpus.vocab_size, True)
    problems = []
    try:
        vocab_size = preflight.given_vocabulary(config) or config.data.tokenizer.vocab_size
    except DataError as error:
        problems.append(str(error))
        vocab_size = published_vocabulary(config) or config.data.tokenizer.vocab_size
    if not config.data.sources:
        return Data(None, None, 0.0, vocab_size, False, tuple(problems), has_text=False)
    try:
        content = source_tokens(config.data)
    except DataError as error:
        problems.append(str(error))
        content = None
    length = max(3.0, FILLED * config.data.sequences.max_length)
    if content is None:
        return Data(None, None, length, vocab_size, False, tuple(problems))
    sequences = max(1, round(content * (1 - config.data.held_out) / (length - 2)))
    return Data(round(sequences * length), sequences, length, vocab_size, False, tuple(problems))


def published_vocabulary(config: RunConfig) -> int | None:
    """The vocabulary of the first model from outside whose shape is known by a preset."""
    for stage in config.stages:
        said = [teacher.shape for teacher in stage.teacher] if isinstance(stage, DistillStage) else []
        names = [shape.preset for shape in said if shape is not None]
        names += [preset_of(source) for source in model_sources(stage) if config.stage_index(source) is None]
        found = next((name for name in names if name is not None), None)
        if found is not None:
            return ModelConfig(preset=found).resolve().vocab_size
    return None


def preset_of(source: str) -> str | None:
    """The preset that a hub name ends in."""
    name = source.rsplit("/", 1)[-1].removeprefix("chinese-")
    return name if name in presets() else None


def source_tokens(data: DataConfig) -> float | None:
    """Content tokens of all sources by the sizes of their files; None with a source that is not a file."""
    total = 0.0
    for reader in open_sources(data):
        path = Path(reader.path)
        if not path.is_file():
            return None
        total += path.stat().st_size * UNPACKED.get(path.suffix, 1.0) / BYTES_PER_TOKEN
    return total


def shard_bytes(data: DataConfig, counted: Data) -> float | None:
    """Disk for the training split's shards: ids, word bits, indices, stored masks."""
    if counted.tokens is None or counted.sequences is None:
        return None
    width = 2 if counted.vocab_size <= 65536 else 4
    views = data.masks.views if data.masks.mode == "stored" else 0
    per_token = width + 1 / 8 + views * data.masks.rate * (2 + width)
    per_sequence = 8 + 16 + 8 * views + 2 * 12  # offsets, one piece, view offsets, about two sentences
    return counted.tokens * per_token + counted.sequences * per_sequence


# ---------------------------------------------------------------- models


def source_shape(config: RunConfig, stage: TrainedStage, source: str, vocab_size: int) -> EncoderConfig:
    """From `teacher.shape`, an earlier stage, a local config.json, or a preset of the same name."""
    teachers = stage.teacher if isinstance(stage, DistillStage) else []
    said = next((t.shape for t in teachers if t.source == source and t.shape is not None), None)
    if said is not None:
        return said.resolve(None if said.preset else vocab_size)
    earlier = config.stage_index(source)
    if earlier is not None:
        return stage_shape(config, earlier, vocab_size)
    local = Path(source) / "config.json"
    if local.is_file():
        return pretrained.read_config(source, f"stage {stage.name!r}", weights=False)
    preset = preset_of(source)
    if preset is not None:
        return ModelConfig(preset=preset).resolve()
    raise ConfigError(
        f"stage {stage.name!r}: the shape of the model {source!r} is not at hand, and `plan` uses no network. Say it "
        f"in the run file, as teacher: {{source: {source}, shape: {{preset: NAME}}}} (one of {', '.join(presets())})."
    )


def stage_shape(config: RunConfig, index: int, vocab_size: int) -> EncoderConfig:
    """Of the model that a stage makes."""
    stage = config.stages[index]
    assert isinstance(stage, TrainedStage)
    given, source = made_from(stage)
    if given is not None:
        return given.resolve(vocab_size)
    assert source is not None
    return source_shape(config, stage, source, vocab_size)


# ---------------------------------------------------------------- stages


def plan_stage(config: RunConfig, index: int, data: Data, ranks: int) -> StagePlan:
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
    rate = max(logit_share(config, stage, need.student) for need in needs)
    flops = 3 * forward_flops(student, data.mean_length, rate) + 3 * 2 * projections
    steps = training.total_steps(data.sequences)
    sequences = steps * training.global_batch_size
    epochs = sequences / data.sequences if data.sequences else None
    cost, cache = TeacherCost(), None
    for need, (_, shape) in zip(needs, teachers, strict=bool(teachers)):
        share = logit_share(config, stage, need.teacher)
        cost += teacher_cost(shape, need.teacher, data.mean_length, share, kept_bytes(stage))
    if isinstance(stage, DistillStage) and stage.task is None:
        cache = cache_plan(stage, config.data.masks, losses, cost, flops, data.tokens, epochs)
    flops = flops + cost.live if cache is None else cache.stage_flops
    alone = not isinstance(stage, DistillStage) or stage.teacher_cache is not None
    if not alone and group_of(config.stages, index)[0] != index:
        flops -= cost.live  # the teachers answer once, for the first of the group
    micro_steps = max(
        1, math.ceil(training.global_batch_size * data.mean_length / (ranks * training.micro_batch_tokens))
    )
    tokens_at_once = training.global_batch_size * data.mean_length / (ranks * micro_steps)
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
        epochs=epochs,
        micro_steps=micro_steps,
        flops_per_token=flops,
        teacher_flops_per_token=cost.live,
        memory=memory(student, [shape for _, shape in teachers], trained, training, tokens_at_once, rate, ranks),
        checkpoint_bytes=12.0 * trained * (training.keep_last + 1) + 4.0 * student.parameters(),
        cache=cache,
        own_tokens=described(teachers, own),
    )


def known_tokenizers(config: RunConfig, stage: TrainedStage) -> Own:
    """The tokenizers of teachers with another vocabulary than the run's, as far as both are at hand."""
    try:
        ours = preflight.run_tokenizer(config)
    except DataError:  # said among what is missing
        return {}
    return own_tokenizers(config, stage, ours, fetch=False)


def task_data(config: RunConfig, stage: DistillStage | FinetuneStage, data: Data) -> Data:
    """The rows of a task, their length estimated from their characters."""
    assert stage.task is not None
    task = config.tasks[stage.task]
    try:
        rows = read_rows(Path(task.train), task.kind, RowCounts(), task.columns)
    except DataError:  # preflight says so; a plan is made all the same
        return replace(data, tokens=None, sequences=None, mean_length=task.max_length / 2, exact=False)
    copies = 1
    if stage.rows is not None:
        made = config.stages[config.stage_index(stage.rows) or 0]
        assert isinstance(made, AugmentStage)
        copies += made.augment.copies
    sizes = [len(row.text_a) + len(row.text_b or "") + 3 for row in rows]
    length = sum(min(size, task.max_length) for size in sizes) / len(sizes)
    sequences = len(rows) * copies
    return replace(data, tokens=round(length * sequences), sequences=sequences, mean_length=length, exact=False)


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


def logit_share(config: RunConfig, stage: TrainedStage, request: FeatureRequest) -> float:
    """The share of tokens at which vocabulary logits are computed."""
    shares = {"all": 1.0, "sampled": stage.training.sampled_rows, "masked": config.data.masks.rate}
    return max((shares[rows] for rows in request.logits), default=0.0)


def memory(
    student: EncoderConfig,
    teachers: list[EncoderConfig],
    trained: int,
    training: TrainingConfig,
    tokens: float,
    masked: float,
    ranks: int,
) -> Memory:
    """Bytes on one rank at the peak of a micro-step of ``tokens`` tokens.

    ZeRO divides among the ranks: from stage 1 the optimizer state, from 2 the gradients, from 3 the weights.
    Activations that the backward pass needs, per token and layer: about 11 vectors of the hidden width and 2 of the
    intermediate one (no attention matrix: the kernels recompute it).
    """
    zero, word = training.zero_stage, 2 if training.precision == "bf16" else 4
    h, f = student.hidden_size, student.intermediate_size
    rows = min(tokens * masked, MOST_ROWS)
    teacher_logits = sum(t.vocab_size * rows * (word + 4) for t in teachers)
    passing = max((tokens * word * (6 * t.hidden_size + 2 * t.intermediate_size) for t in teachers), default=0.0)
    return Memory(
        weights=word * trained / (ranks if zero == 3 else 1),
        gradients=4.0 * trained / (ranks if zero >= 2 else 1),
        optimizer=8.0 * trained if zero == 0 else 12.0 * trained / ranks,
        teacher=float(sum(word * t.parameters() for t in teachers)),
        activations=tokens * word * student.num_hidden_layers * (11 * h + 2 * f) + passing,
        logits=student.vocab_size * rows * (word + 3 * 4) + teacher_logits,
    )

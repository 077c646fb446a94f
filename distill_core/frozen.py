"""How teachers stand beside the student: their precision and what it does to the losses, and their shards."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from configs.errors import ConfigError, output_error
from distill_core.batch import Batch
from distill_core.engine import Rank, fp16_is_supported
from distill_core.features import FeatureRequest, Features, Heads
from distill_core.models.attention import has_varlen
from distill_core.models.encoder import Encoder
from distill_core.models.quantised import quantise_layers
from distill_core.objective import Distillation, Teacher
from distill_core.tasks.model import StageModel, TaskModel
from distill_core.training import TrainingConfig

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FP8_CAPABILITY = (8, 9)
"""Of a GPU with fp8 matrix units: Ada and Hopper."""


def check_device(training: TrainingConfig, rank: Rank, who: str) -> None:
    """Raise :class:`ConfigError` where this device cannot do what the stage asks for."""
    cuda = rank.device.type == "cuda"
    if "fp16" in (training.precision, training.teacher_precision) and not fp16_is_supported():
        raise ConfigError(
            f"{who}: precision: fp16 is for GPUs, and this is a {rank.device.type}, which has no fp16 units; take "
            "bf16 or fp32."
        )
    if training.attention == "varlen" and not has_varlen(rank.device):
        raise ConfigError(
            f"{who}: attention: varlen needs a GPU of compute capability 8.0 or more (Ampere and later) and a torch "
            f"that has torch.nn.attention.varlen, and this is a {rank.device.type} with torch {torch.__version__}; "
            "take attention: auto."
        )
    if training.teacher_precision == "fp8":
        known = cuda and torch.cuda.get_device_capability(rank.device) >= FP8_CAPABILITY
        if not known:
            raise ConfigError(
                f"{who}: teacher_precision: fp8 needs a GPU with fp8 matrix units (compute capability 8.9 or more: "
                f"Ada, Hopper and later), and this is a {rank.device.type}; take int8 or bf16."
            )
    if training.teacher_sharding == "zero3" and rank.world_size == 1:
        raise ConfigError(
            f"{who}: teacher_sharding: zero3 spreads the teacher over ranks, but there is only one; start more "
            "(launch.processes), or take none."
        )


def encoder_of(model: StageModel) -> Encoder:
    return model.encoder if isinstance(model, TaskModel) else model


def lowered(model: StageModel, training: TrainingConfig, device: torch.device) -> StageModel:
    """The frozen ``model`` (fp32, on the CPU; used up) in the precision in which the stage's teachers run.

    With 8 bits everything but the layers' products is in the stage's precision. A model that is to be sharded stays on
    the CPU, as it need not fit the device.
    """
    bits = training.teacher_precision
    if bits == "int8" or bits == "fp8":
        quantise_layers(encoder_of(model).bert.encoder, bits)
    dtype = DTYPES.get(training.teacher_runs_in, DTYPES[training.precision])
    return model.to(device if training.teacher_sharding == "none" else torch.device("cpu"), dtype)


# ---------------------------------------------------------------- shards


def shard(model: StageModel, rank: Rank) -> None:
    """Spread the layers of ``model`` over the ranks, as ZeRO 3 does; a forward pass gathers one after the other.

    Embeddings and head stay whole on each rank: losses use them outside the model. By torch's ``fully_shard``, as
    DeepSpeed's partitions ask for a forward pass of the whole module and nothing else. From now on all ranks must call
    the model equally often.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(rank.device.type, (rank.world_size,))
    encoder = encoder_of(model.requires_grad_(False))
    layers = encoder.bert.encoder
    inner = set(layers.parameters())
    outer = {parameter for parameter in model.parameters() if parameter not in inner}
    for parameter in outer:
        parameter.data = parameter.data.to(rank.device)
    for name, buffer in list(model.named_buffers()):
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, buffer.to(rank.device))
    for layer in layers.layer:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(encoder, mesh=mesh, reshard_after_forward=True, ignored_params=outer)


# ---------------------------------------------------------------- what a lower precision does


@dataclass(frozen=True)
class Effect:
    """One loss term of one batch, with the teachers in the stage's precision and in the lower one."""

    name: str
    before: float
    after: float

    @property
    def relative(self) -> float:
        return (self.after - self.before) / abs(self.before) if self.before else 0.0


def reference_answers(
    model: StageModel, request: FeatureRequest, training: TrainingConfig, batch: Batch, place: int
) -> Features:
    """What the teacher at ``place`` (fp32, on the CPU; kept as it is) says in the stage's precision."""
    twin = copy.deepcopy(model).to(batch.ids.device, DTYPES[training.precision])
    return in_fp32(Teacher(twin, request, place)(batch))


def effects(module: Distillation, batch: Batch, before: Sequence[Features], after: Sequence[Features]) -> list[Effect]:
    """Each loss of the student as it begins, without dropout, in fp32, against both kinds of answers."""
    device = batch.ids.device
    counts = {name: torch.tensor(max(1.0, count), device=device) for name, count in batch.counts().items()}
    training = module.training
    module.to(device).eval()
    with torch.no_grad():
        parts = [module(batch, [in_fp32(a) for a in answers], counts, 0.0).parts for answers in (before, after)]
    module.train(training)
    return [Effect(name, float(share), float(parts[1][name][0])) for name, (share, _) in parts[0].items()]


def in_fp32(features: Features) -> Features:
    """Of the teacher's answers all that are tensors."""
    return replace(
        features,
        hidden={layer: values.float() for layer, values in features.hidden.items()},
        heads={layer: Heads(*(values.float() for values in heads)) for layer, heads in features.heads.items()},
        logits={rows: values.float() for rows, values in features.logits.items()},
        pooled=None if features.pooled is None else features.pooled.float(),
        task=None if features.task is None else features.task.float(),
    )


def record_effects(folder: Path, training: TrainingConfig, found: Sequence[Effect]) -> list[str]:
    """STAGE/teacher_precision.json; a sentence for each loss."""
    facts = {
        "precision": training.precision,
        "teacher_precision": training.teacher_precision,
        "losses": {e.name: {"before": e.before, "after": e.after, "relative": e.relative} for e in found},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "teacher_precision.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    except OSError as error:
        raise output_error(folder, error) from error
    return [
        f"teacher in {training.teacher_precision}: {e.name} {e.after:.6g} on a held-out batch, {e.before:.6g} in "
        f"{training.precision} ({e.relative:+.2%})"
        for e in found
    ]

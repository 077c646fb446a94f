"""The teachers of a stage as the loop asks them: frozen, in their precision, and looked at before they are trusted."""

from __future__ import annotations

from collections.abc import Sequence

from configs.errors import DataError
from data_prep.corpus import Corpus
from distill_core.batch import Batch
from distill_core.config import DistillStage, TrainedStage
from distill_core.data import CorpusSource, Loader, Source, held_out_batches
from distill_core.engine import Rank
from distill_core.evaluate.teacher_head import check_head
from distill_core.features import FeatureRequest
from distill_core.frozen import Effect, effects, lowered, reference_answers, shard
from distill_core.load import LoadedTeacher
from distill_core.models.attention import choose_kernel
from distill_core.models.encoder import Encoder
from distill_core.models.running import compile_parts
from distill_core.objective import Distillation, Objective, Teacher

HEAD_CHECK_SEQUENCES = 200
MEASURED_TOKENS = 16384
"""At most, of the batch on which precisions are compared: all of its logits are kept, and those of a GPU's micro-batch
would not fit."""


def freeze(
    stage: TrainedStage, loaded: list[LoadedTeacher], modules: list[Distillation], batch: Batch | None, rank: Rank
) -> tuple[list[Teacher], list[list[Effect]]]:
    """The teachers on the rank's device, asked for all that the students' objectives need.

    Args:
        batch: on the device; given where it is to be measured what the teachers' precision does to the losses.

    Returns:
        And, with ``batch``, for each student what was found.
    """
    training = stage.training
    asked = [wanted(modules, place) for place in range(len(loaded))]
    before = []
    if batch is not None:
        before = [reference_answers(t.model, asked[n], training, batch, n) for n, t in enumerate(loaded)]
    teachers = []
    for place, teacher in enumerate(loaded):
        model = lowered(teacher.model, training, rank.device)
        if training.teacher_sharding != "none":
            shard(model, rank)
        compile_parts(model, training.compile)
        teachers.append(Teacher(model, asked[place], place, training.teacher_sharding != "none"))
    if batch is None:
        return teachers, []
    return teachers, [effects(module, batch, before, [teacher(batch) for teacher in teachers]) for module in modules]


def wanted(modules: Sequence[Distillation], place: int) -> FeatureRequest:
    """What the students ask of the teacher at ``place``."""
    request = FeatureRequest()
    for module in modules:
        objective = module.objectives[place]
        assert isinstance(objective, Objective)
        request |= objective.needs().teacher
    return request


def batch_to_measure(stage: TrainedStage, held_out: Source, seed: int, rank: Rank) -> Batch | None:
    """A held-out batch on rank 0, where the teachers run in another precision than the stage.

    None with sharded teachers, which may not fit one device, and with references, which are not made yet.
    """
    training = stage.training
    measured = isinstance(stage, DistillStage) and stage.references is None and training.teacher_sharding == "none"
    if not (rank.is_first and measured and training.teacher_runs_in != training.precision):
        return None
    # The losses are compared with the student in fp32, for which there are no flash kernels.
    kernel = choose_kernel("auto" if training.attention == "varlen" else training.attention, rank.device)
    size = (training.global_batch_size, seed, min(training.micro_batch_tokens, MEASURED_TOKENS))
    return next(iter(held_out_batches(held_out, *size, 0, 1, kernel))).to(rank.device)


def check_teacher_heads(
    stage: TrainedStage,
    models: list[LoadedTeacher],
    teachers: list[Teacher],
    loader: Loader,
    corpus: Corpus,
    rank: Rank,
) -> None:
    """Measure each teacher whose vocabulary logits are asked for against token frequencies. Collective.

    Raises:
        DataError: one is no better, and its `head_check` says refuse.
    """
    for teacher, loaded in zip(teachers, models, strict=True):
        check = loaded.config.gate(own=loaded.source != loaded.config.source)
        if not teacher.request.logits or check == "off":
            continue
        assert isinstance(teacher.encoder, Encoder)
        held_out = CorpusSource(corpus.split("held_out"))
        where = (loader.micro_batch_tokens, loader.rank, loader.world_size, loader.kernel)
        batches = held_out_batches(held_out, HEAD_CHECK_SEQUENCES, loader.seed, *where)
        found = check_head(teacher.encoder, batches, corpus.unigram, corpus.special_ids, rank)
        if not found.ok:
            message = f"Stage {stage.name!r}: {found.message(loaded.config.source)}"
            if check == "refuse":
                raise DataError(message)
            if rank.is_first:
                print(f"warning: {message}", flush=True)

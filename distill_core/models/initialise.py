"""How a student begins: at random, with layers of its teacher, with its teacher made narrower, or from a model.

``InitConfig.kind``: ``random``; ``teacher_layers`` (:func:`copy_teacher_layers`); ``svd`` (``narrow.py``);
``model`` (:func:`load_into`). :func:`check_init` says beforehand what cannot be done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from configs.errors import ConfigError
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.models.layer_choice import LayerChoice, chosen_layers
from distill_core.models.narrow import check_narrow, narrow_teacher
from distill_core.models.tables import check_tables, teacher_tables

if TYPE_CHECKING:
    from distill_core.config import InitConfig
    from distill_core.models.pretrained import Pretrained


def check_init(init: InitConfig, student: EncoderConfig, teacher: EncoderConfig, who: str) -> None:
    """Raise :class:`ConfigError` when the student cannot begin from a teacher of this shape."""
    if init.kind not in ("teacher_layers", "svd"):
        return
    if init.kind == "teacher_layers":
        check_layers(init.layers, student, teacher, who)
    else:
        check_narrow(student, teacher, bool(init.layers), who)
        if init.layers:
            chosen_layers(init.layers, student.num_hidden_layers, teacher.num_hidden_layers, who)
    if init.embeddings:
        check_tables(student, teacher, who)


def initialise(student: Encoder, init: InitConfig, teacher: Encoder, who: str) -> list[int]:
    """Begin ``student`` (freshly drawn) as ``init`` says; ``kind: model`` is :func:`load_into`.

    Returns:
        The teacher layers (0-based) of the student's, empty if none were taken.
    """
    check_init(init, student.config, teacher.config, who)
    layers: list[int] = []
    if init.kind in ("teacher_layers", "svd") and init.layers:
        depths = (student.config.num_hidden_layers, teacher.config.num_hidden_layers)
        layers = chosen_layers(init.layers, *depths, who, teacher) or []
    if init.kind == "teacher_layers":
        copy_teacher_layers(student, teacher, layers, init.embeddings, init.head)
    elif init.kind == "svd":
        narrow_teacher(student, teacher, layers, init.head)
    return layers


# ---------------------------------------------------------------- layers of the teacher


def check_layers(layers: LayerChoice, student: EncoderConfig, teacher: EncoderConfig, who: str) -> None:
    """Raise :class:`ConfigError` when the teacher's layers cannot be copied."""
    chosen_layers(layers, student.num_hidden_layers, teacher.num_hidden_layers, who)
    if student.hidden_size != teacher.hidden_size or student.intermediate_size != teacher.intermediate_size:
        raise ConfigError(
            f"{who}: layers can only be copied between equal widths; the student has hidden_size "
            f"{student.hidden_size} and intermediate_size {student.intermediate_size}, the teacher "
            f"{teacher.hidden_size} and {teacher.intermediate_size}. Use init: {{kind: random}}, or {{kind: svd}} for "
            "a narrower student."
        )
    if student.num_attention_heads != teacher.num_attention_heads:
        raise ConfigError(
            f"{who}: copied layers would not compute the same: the student has {student.num_attention_heads} attention "
            f"heads, the teacher {teacher.num_attention_heads}. Give the student the teacher's number of heads."
        )
    if (student.bottleneck, student.norm) != (teacher.bottleneck, teacher.norm):
        raise ConfigError(
            f"{who}: layers can only be copied between layers of one kind; the student ({student.family}) and the "
            f"teacher ({teacher.family}) differ in `bottleneck` or `norm`. Use init: {{kind: random}}."
        )


def copy_teacher_layers(
    student: Encoder, teacher: Encoder, layers: LayerChoice, embeddings: bool, head: bool = False
) -> None:
    """Student layer i <- teacher layer ``layers[i]`` (0-based), and the embeddings with their LayerNorm.

    Args:
        head: copy the masked-LM head too. Without it (its decoder is tied to the embeddings all the same) this is
            MiniRBT's assistant, ``init_checkpoint_TA`` in the authors' code; with it, DistilBERT's student.
    """
    depths = (student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    chosen = chosen_layers(layers, *depths, "student", teacher)
    assert chosen is not None
    with torch.no_grad():
        for layer, number in zip(student.bert.encoder.layer, chosen, strict=True):
            layer.load_state_dict(teacher.bert.encoder.layer[number].state_dict())
        if embeddings:
            own = student.bert.embeddings.state_dict()
            theirs = {name: w for name, w in teacher.bert.embeddings.state_dict().items() if name in own}
            student.bert.embeddings.load_state_dict(theirs | teacher_tables(student.config, teacher))
            if student.bert.widened:
                student.bert.embeddings_project.load_state_dict(teacher.bert.embeddings_project.state_dict())
        if head:
            student.cls.load_state_dict(teacher.cls.state_dict())


# ---------------------------------------------------------------- another model

# What makes weights fit and mean the same.
SAME = (
    "family",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "embedding_size",
    "hidden_act",
    "norm",
    "bottleneck",
    "first_position",
)


def check_same_shape(student: EncoderConfig, source: EncoderConfig, who: str) -> None:
    """Raise :class:`ConfigError` when a model's weights are not those of the student's shape."""
    differing = [name for name in SAME if getattr(student, name) != getattr(source, name)]
    if differing:
        shapes = [", ".join(f"{name} {getattr(s, name)}" for name in differing) for s in (student, source)]
        raise ConfigError(
            f"{who}: student.init.source has another shape than the student: the student "
            f"({student.num_hidden_layers} x {student.hidden_size}) has {shapes[0]}; the model "
            f"({source.num_hidden_layers} x {source.hidden_size}) has {shapes[1]}. Give student.model the model's "
            "shape, or take init: {kind: teacher_layers} or {kind: svd} with the model as the teacher."
        )


def load_into(student: Encoder, source: Pretrained, who: str) -> list[str]:
    """Continue from a model of the same shape.

    Returns:
        What stays as it was drawn since the model has none: ``masked-LM head``, ``pooler``.
    """
    check_same_shape(student.config, source.encoder.config, who)
    weights = source.encoder.state_dict()
    own = student.state_dict()
    absent = {"masked-LM head": "cls."} if source.missing_head else {}
    if student.config.pooler and not source.encoder.config.pooler:
        absent["pooler"] = "bert.pooler."
    kept = tuple(absent.values())
    student.load_state_dict({name: own[name] if name.startswith(kept) else weights[name] for name in own})
    return list(absent)

"""How a student begins: at random, or with layers of its teacher."""

from __future__ import annotations

import torch

from configs.errors import ConfigError
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder


def check_layers(layers: list[int], student: EncoderConfig, teacher: EncoderConfig, who: str) -> None:
    """Raise :class:`ConfigError` when the teacher's layers cannot be copied."""
    if len(layers) != student.num_hidden_layers:
        raise ConfigError(
            f"{who}: student.init.layers names {len(layers)} teacher layers, but the student has "
            f"{student.num_hidden_layers}; give one teacher layer for each."
        )
    wrong = [layer for layer in layers if not 0 <= layer < teacher.num_hidden_layers]
    if wrong:
        raise ConfigError(
            f"{who}: student.init.layers names teacher layer {wrong[0]}, but the teacher's layers are 0 to "
            f"{teacher.num_hidden_layers - 1} (0-based)."
        )
    if student.hidden_size != teacher.hidden_size or student.intermediate_size != teacher.intermediate_size:
        raise ConfigError(
            f"{who}: layers can only be copied between equal widths; the student has hidden_size "
            f"{student.hidden_size} and intermediate_size {student.intermediate_size}, the teacher "
            f"{teacher.hidden_size} and {teacher.intermediate_size}. Use init: {{kind: random}}."
        )


def copy_teacher_layers(student: Encoder, teacher: Encoder, layers: list[int], embeddings: bool) -> None:
    """Student layer i <- teacher layer ``layers[i]`` (0-based), and the embeddings with their LayerNorm.

    The masked-LM head is not copied (its decoder is tied to the embeddings): MiniRBT's assistant,
    ``init_checkpoint_TA`` in the authors' code.
    """
    with torch.no_grad():
        for mine, theirs in zip(student.bert.encoder.layer, layers, strict=True):
            mine.load_state_dict(teacher.bert.encoder.layer[theirs].state_dict())
        if embeddings:
            ours, source = student.bert.embeddings.state_dict(), teacher.bert.embeddings.state_dict()
            rows = ours["position_embeddings.weight"].shape[0]
            source["position_embeddings.weight"] = source["position_embeddings.weight"][:rows]
            student.bert.embeddings.load_state_dict(source)

"""A teacher's embedding tables as a student of another family, or of fewer positions, has them."""

from __future__ import annotations

import torch
from torch import Tensor

from configs.errors import ConfigError
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder


def check_tables(student: EncoderConfig, teacher: EncoderConfig, who: str) -> None:
    """Raise :class:`ConfigError` when the teacher's embeddings are not a student's."""
    if student.vocab_size != teacher.vocab_size:
        raise ConfigError(
            f"{who}: the teacher's embeddings are of another vocabulary ({teacher.vocab_size} tokens, the student has "
            f"{student.vocab_size}). Set student.init.embeddings: false, or prepare the corpus with the teacher's "
            "tokenizer."
        )
    if student.max_length > teacher.max_length:
        raise ConfigError(
            f"{who}: the student has {student.max_length} positions, but the teacher has embeddings for "
            f"{teacher.max_length} only. Lower student.model.max_position_embeddings by "
            f"{student.max_length - teacher.max_length}, or set student.init.embeddings: false."
        )
    narrow = (student.word_size == student.hidden_size, teacher.word_size == teacher.hidden_size)
    if narrow[0] != narrow[1] or (not narrow[0] and student.word_size != teacher.word_size):
        raise ConfigError(
            f"{who}: the teacher's word embeddings are {teacher.word_size} wide, the student's {student.word_size}; "
            "with `embedding_size` the two must be equal. Set student.init.embeddings: false, or change the student."
        )


def teacher_tables(student: EncoderConfig, teacher: Encoder) -> dict[str, Tensor]:
    """Word, position and token-type tables [rows of the student, width of the teacher], as the student names them.

    Positions are taken from the first, wherever a family begins them. Without token types on one side, type 0 keeps
    its effect: it is added to the positions, or is 0. (DistilBERT's own code drops it.) More types than the teacher
    has are copies of its first.
    """
    theirs, embeddings = teacher.config, teacher.bert.embeddings
    source = embeddings.position_embeddings.weight.detach()
    # Rows before the first position are never used; they are the teacher's where it has such rows, else 0.
    positions = source.new_zeros(student.max_position_embeddings, source.shape[1])
    used = source[theirs.first_position :][: student.max_length]
    positions[student.first_position :][: len(used)] = used
    rest = min(student.first_position, theirs.first_position)
    positions[:rest] = source[:rest]
    found = {"word_embeddings.weight": embeddings.word_embeddings.weight.detach().clone()}
    if theirs.type_vocab_size:
        types = embeddings.token_type_embeddings.weight.detach()
    else:
        types = source.new_zeros(1, source.shape[1])
    if student.type_vocab_size:
        rows = torch.arange(student.type_vocab_size)
        found["token_type_embeddings.weight"] = types[rows.where(rows < len(types), torch.zeros_like(rows))]
    else:
        positions += types[0]
    return found | {"position_embeddings.weight": positions}

"""A small student, a small teacher, and batches with references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from distill_core.batch import Batch
from distill_core.models.attention import Kernel
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.references.config import ReferencesConfig
from distill_core.references.encoder import ReferencedEncoder
from distill_core.references.reference import References

VOCABULARY, TEACHER_WIDTH = 50, 20
VARIANTS = {
    "A": {"variant": "A"},
    "B": {"variant": "B"},
    "C": {"variant": "C"},
    "A gate": {"variant": "A", "gate": True},
    "C gate": {"variant": "C", "gate": True},
}


def shape(**changes: Any) -> EncoderConfig:
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 16,
        "max_position_embeddings": 24,
        "hidden_dropout_prob": 0.0,
    }
    return EncoderConfig(**(fields | changes))


def student(settings: dict[str, Any] | None = None, seed: int = 0, **changes: Any) -> tuple[Encoder, ReferencedEncoder]:
    """A plain encoder and one with references that has the same weights, all away from their defaults."""
    torch.manual_seed(seed)
    plain = Encoder(shape(**changes))
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)
    copy = Encoder(plain.config)
    copy.load_state_dict(plain.state_dict())
    found = ReferencedEncoder(copy, ReferencesConfig(**(settings or {})), TEACHER_WIDTH)
    for parameter in found.references.parameters():
        nn.init.normal_(parameter, std=0.5)
    return plain.eval(), found.eval()


def batch(lengths: Sequence[int], sizes: Sequence[int] | None, kernel: Kernel = "runs", seed: int = 0) -> Batch:
    """Sequences of random tokens with references of ``sizes``; a sequence's content depends on its number alone."""

    def drawn(number: int, what: int) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * seed + 10 * number + what)

    ids = [torch.randint(VOCABULARY, (n,), generator=drawn(i, 0)).tolist() for i, n in enumerate(lengths)]
    made = Batch.of(ids, kernel)
    if sizes is None:
        return made
    reference = [torch.randint(VOCABULARY, (n,), generator=drawn(i, 1)) for i, n in enumerate(sizes)]
    vectors = [torch.randn(n, TEACHER_WIDTH, generator=drawn(i, 2)) for i, n in enumerate(sizes)]
    return replace(
        made,
        references=References(
            ids=torch.cat(reference),
            positions=torch.cat([torch.arange(n) for n in sizes]),
            sizes=torch.tensor(list(sizes)),
            vectors=torch.cat(vectors),
            lengths=tuple(sizes),
        ),
    )

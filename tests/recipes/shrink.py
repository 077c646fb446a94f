"""A recipe made tiny, with random teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.recipes import small
from benchmarks.recipes.small import TINY, small_shape
from data_prep.corpus import Corpus
from distill_core.models import pretrained
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder


def save_teacher(preset: str, corpus: Corpus, folder: Path) -> Path:
    """A random model of the preset's kind with the corpus's tokenizer, as a Hugging Face folder."""
    fields = small_shape(preset, TINY) | {"vocab_size": corpus.vocab_size, "pad_token_id": corpus.special_ids["pad"]}
    if fields["family"] == "roberta":
        fields |= {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
    torch.manual_seed(7)
    shape = EncoderConfig.model_validate(fields)
    encoder = Encoder(shape)
    with torch.no_grad():  # tokens stay apart through all layers, and attention is not uniform
        for name, parameter in encoder.named_parameters():
            if parameter.dim() > 1:
                sharp = "embeddings" in name or "query" in name or "key" in name
                parameter.normal_(std=0.5 if sharp else 0.05)
    pretrained.save(encoder.state_dict(), shape, corpus.tokenizer_folder, folder)
    return folder


def shrunken(
    recipe: str, mode: str | None, corpus: Path, text: Path, rows: dict[str, Path], folder: Path
) -> dict[str, Any]:
    """The recipe's tree, made tiny; its teachers are written under ``folder``.

    Args:
        corpus: a prepared corpus whose tokenizer the recipe takes.
        text: the raw text to distil from.
        rows: the files ``train`` and ``dev`` of a task.
    """
    prepared = Corpus.open(corpus)
    return small.shrunken(
        recipe,
        mode,
        TINY,
        lambda preset: save_teacher(preset, prepared, folder / f"teacher-{preset}"),
        prepared.tokenizer_folder,
        [{"path": str(text)}],
        rows,
    )

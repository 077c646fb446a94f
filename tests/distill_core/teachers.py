"""Teachers as Hugging Face folders, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from data_prep.corpus import Corpus
from distill_core.models import pretrained
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder


def save_teacher(corpus: Corpus, folder: Path, seed: int = 0, width: int = 32, broken: bool = False) -> None:
    """Two layers of ``width``; ``broken``: one weight of the second is NaN."""
    torch.manual_seed(seed)
    shape = EncoderConfig(
        vocab_size=corpus.vocab_size,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
    )
    state = Encoder(shape).state_dict()
    if broken:
        state["bert.encoder.layer.1.output.dense.bias"][3] = float("nan")
    pretrained.save(state, shape, corpus.tokenizer_folder, folder)

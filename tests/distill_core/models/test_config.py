"""Presets, parameter counts (Hugging Face's models and the published numbers), and shapes that cannot be."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
import transformers
from pydantic import ValidationError
from transformers import AutoConfig

from distill_core.models.config import Activation, EncoderConfig, ModelConfig, presets
from distill_core.models.encoder import Encoder
from distill_core.models.parts import ACTIVATIONS

# (reported, computed with pooler where there is one and without masked-LM head), in millions.
PUBLISHED = {
    "roberta-wwm-ext": (102.3, 102.27),
    "bert-base-chinese": (102.3, 102.27),
    "rbt6": (59.76, 59.74),
    "rbt3": (38.5, 38.48),
    "rbt4-h312": (11.4, 11.42),
    "minirbt-h256": (10.4, 10.35),
    "minirbt-h288": (12.3, 12.31),
    "bert-base-uncased": (109.5, 109.48),
    "tinybert-4": (14.35, 14.35),
    "tinybert-6": (67.0, 66.96),
    "distilbert-base": (67.0, 66.36),
    "distilroberta": (82.1, 82.12),
    "robbert-v2": (116.8, 116.75),
}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", list(presets()))
def test_counts_are_those_of_hugging_face_and_of_the_cards(name: str) -> None:
    shape = ModelConfig(preset=name).resolve()
    family = shape.kin
    theirs = AutoConfig.for_model(shape.family, **family.settings(shape))
    with torch.device("meta"):
        base = getattr(transformers, family.base)(theirs)
        masked_lm = getattr(transformers, family.masked_lm)(theirs)
        masked_lm.tie_weights()
        ours = Encoder(shape)
        with_pooler = Encoder(shape.model_copy(update={"pooler": family.pooler}))
    assert shape.published_parameters() == count(base)
    assert shape.parameters() == count(masked_lm) == count(ours)
    assert with_pooler.config.parameters() == count(with_pooler)
    if name in PUBLISHED:
        reported, computed = PUBLISHED[name]
        assert round(shape.published_parameters() / 1e6, 2) == computed
        # Some cards count the pooler, some the masked-LM head.
        counts = (shape.published_parameters() / 1e6, shape.parameters() / 1e6)
        assert min(abs(count - reported) for count in counts) <= 0.05


@pytest.mark.parametrize(("preset", "vocab_size", "computed"), [("rbt6", None, 59.76), ("robbertje", 40000, 74.28)])
def test_some_cards_count_the_head(preset: str, vocab_size: int | None, computed: float) -> None:
    assert round(ModelConfig(preset=preset).resolve(vocab_size).parameters() / 1e6, 2) == computed


def test_robbertje_bort_is_46_million_only_with_these_widths() -> None:
    counts = {
        (h, f): ModelConfig(preset="robbertje-bort", hidden_size=h, intermediate_size=f).resolve(40000).parameters()
        for h, f in ((768, 768), (768, 3072), (1024, 768))
    }
    assert {k: round(v / 1e6, 1) for k, v in counts.items()} == {(768, 768): 45.9, (768, 3072): 60.1, (1024, 768): 65.7}


def test_every_published_size_has_its_preset() -> None:
    assert PUBLISHED.keys() <= presets().keys()


def test_any_size() -> None:
    shape = ModelConfig(hidden_size=40, num_hidden_layers=3, num_attention_heads=5).resolve(vocab_size=100)
    assert (shape.family, shape.intermediate_size, shape.pooler, shape.max_length) == ("bert", 160, False, 512)


def test_a_family_brings_its_defaults_and_the_corpus_its_padding() -> None:
    sizes: dict[str, Any] = {"hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 5}
    shape = ModelConfig(family="roberta", **sizes).resolve(vocab_size=100)
    assert (shape.type_vocab_size, shape.layer_norm_eps, shape.max_position_embeddings) == (1, 1e-5, 514)
    assert (shape.first_position, shape.max_length) == (2, 512)
    shape = ModelConfig(family="roberta", **sizes).resolve(vocab_size=100, pad_token_id=0)
    assert (shape.first_position, shape.max_length) == (1, 513)
    assert ModelConfig(family="distilbert", **sizes).resolve(100).type_vocab_size == 0
    narrow = ModelConfig(family="mobilebert", **(sizes | {"hidden_size": 130, "num_attention_heads": 4})).resolve(100)
    assert narrow.bottleneck is not None and narrow.bottleneck.intra_size == 128
    assert (narrow.norm, narrow.hidden_act, narrow.intermediate_size) == ("no_norm", "relu", 512)
    assert (narrow.attention_size, narrow.head_size) == (128, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "swish"}, r"Input should be 'gelu', 'gelu_new' or 'relu'"),
        ({"family": "rbert"}, r"no model family 'rbert'\. Did you mean 'bert'\?"),
        ({"family": "distilbert"}, r"type_vocab_size 2; it must be 0"),
        ({"type_vocab_size": 0}, r"type_vocab_size 0; it must be at least 1"),
        ({"family": "distilbert", "type_vocab_size": 0, "pooler": True}, r"'distilbert' has pooler: true"),
        ({"family": "distilbert", "type_vocab_size": 0, "layer_norm_eps": 1e-5}, r"1e-12 is built into"),
        ({"embedding_size": 4}, r"embedding_size 4; only electra and mobilebert"),
        ({"norm": "no_norm"}, r"no_norm, which only mobilebert has"),
        ({"bottleneck": {}}, r"intra_size 128 is not divisible by num_attention_heads 3"),
        ({"bottleneck": {"intra_size": 6}}, r"bottleneck`, which only mobilebert has"),
        ({"family": "mobilebert"}, r"no `bottleneck`"),
        ({"family": "mobilebert", "bottleneck": {"intra_size": 6, "trigram": False}}, r"neither trigram"),
        ({"family": "mobilebert", "bottleneck": {"intra_size": 6}, "embedding_size": 13}, r"13 above hidden_size 12"),
        ({"family": "roberta", "max_position_embeddings": 2, "pad_token_id": 1}, r"all before the first position"),
        ({"num_attention_heads": 5}, r"hidden_size 12 is not divisible by num_attention_heads 5"),
    ],
)
def test_shapes_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"vocab_size": 30, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
    with pytest.raises(ValidationError, match=message):
        EncoderConfig(**(fields | {"intermediate_size": 20} | changes))


def test_every_activation_is_there() -> None:
    assert set(ACTIVATIONS) == set(get_args(Activation))


def test_a_run_file_hears_of_an_unknown_preset() -> None:
    with pytest.raises(ValidationError, match=r"there is no preset 'bart'\. Did you mean 'bort'\? Known: bert-base-c"):
        ModelConfig(preset="bart")
    with pytest.raises(ValidationError, match="give a preset, or also num_hidden_layers, num_attention_heads"):
        ModelConfig(hidden_size=12)

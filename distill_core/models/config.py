"""The shape of an encoder: presets, the ``model:`` part of a stage, and parameter counts. No torch here."""

from __future__ import annotations

import functools
from typing import Any

import yaml
from pydantic import Field, model_validator

from configs.errors import ConfigError
from configs.loader import PACKAGED, Config


@functools.cache
def presets() -> dict[str, dict[str, Any]]:
    """Named shapes from ``configs/models/presets.yaml``."""
    loaded: dict[str, dict[str, Any]] = yaml.safe_load((PACKAGED / "models" / "presets.yaml").read_text("utf-8"))
    return loaded


class EncoderConfig(Config):
    """The full shape of one BERT-architecture encoder; fields carry Hugging Face's names."""

    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = Field(default=0.1, ge=0, lt=1)
    attention_probs_dropout_prob: float = Field(default=0.0, ge=0, lt=1)
    max_position_embeddings: int = Field(default=512, ge=1)
    type_vocab_size: int = Field(default=2, ge=1)
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02

    @model_validator(mode="after")
    def _heads_divide(self) -> EncoderConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                f"{self.num_attention_heads}; take a divisor of it"
            )
        return self

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def encoder_parameters(self) -> int:
        """Embeddings and layers, without pooler and masked-LM head."""
        h, f = self.hidden_size, self.intermediate_size
        embeddings = (self.vocab_size + self.max_position_embeddings + self.type_vocab_size + 2) * h
        layer = 4 * (h * h + h) + 2 * h + h * f + f + f * h + h + 2 * h
        return embeddings + self.num_hidden_layers * layer

    def head_parameters(self) -> int:
        """Masked-LM head with its decoder tied to the word embeddings."""
        h = self.hidden_size
        return h * h + h + 2 * h + self.vocab_size

    def pooler_parameters(self) -> int:
        return self.hidden_size**2 + self.hidden_size

    def parameters(self) -> int:
        """What a masked-LM model trains: encoder and head, no pooler."""
        return self.encoder_parameters() + self.head_parameters()

    def published_parameters(self) -> int:
        """As model cards count: encoder and pooler, no masked-LM head (methods.md, section 1)."""
        return self.encoder_parameters() + self.pooler_parameters()


class ModelConfig(Config):
    """``model:`` in a run file: a preset, single fields over it, or all fields."""

    preset: str | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    intermediate_size: int | None = None
    hidden_dropout_prob: float | None = None
    attention_probs_dropout_prob: float | None = None
    max_position_embeddings: int | None = None

    @model_validator(mode="after")
    def _complete(self) -> ModelConfig:
        try:
            self.resolve(vocab_size=1000)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    def resolve(self, vocab_size: int | None = None) -> EncoderConfig:
        """The full shape; ``vocab_size`` (the corpus's) wins over the preset's."""
        fields: dict[str, Any] = {}
        if self.preset is not None:
            if self.preset not in presets():
                raise ConfigError(f"there is no preset {self.preset!r}; known: {', '.join(presets())}")
            fields.update(presets()[self.preset])
        given = {k: v for k, v in self.model_dump(exclude={"preset"}).items() if v is not None}
        fields.update(given)
        if vocab_size is not None:
            fields["vocab_size"] = vocab_size
        if "hidden_size" in fields:
            fields.setdefault("intermediate_size", 4 * fields["hidden_size"])
        needed = ("hidden_size", "num_hidden_layers", "num_attention_heads")
        missing = [name for name in needed if name not in fields]
        if missing:
            raise ConfigError(f"give a preset, or also {', '.join(missing)}")
        return EncoderConfig.model_validate(fields)

"""The shape of an encoder: presets, the ``model:`` part of a stage, and parameter counts. No torch here."""

from __future__ import annotations

import difflib
import functools
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from configs.errors import ConfigError
from configs.loader import PACKAGED, Config
from distill_core.models.families import FAMILIES, Family

Norm = Literal["layer_norm", "no_norm"]
Activation = Literal["gelu", "gelu_new", "relu"]
"""``gelu_new``: by tanh."""


@functools.cache
def presets() -> dict[str, dict[str, Any]]:
    """Named shapes from ``configs/models/presets.yaml``."""
    loaded: dict[str, dict[str, Any]] = yaml.safe_load((PACKAGED / "models" / "presets.yaml").read_text("utf-8"))
    return loaded


class BottleneckConfig(Config):
    """MobileBERT's layers (arXiv 2004.02984): attention and feed-forward networks narrower than what layers pass on.

    An ``intra_size`` above ``hidden_size`` is the inverted bottleneck of its teacher, IB-BERT.
    """

    intra_size: int = Field(default=128, ge=1)
    feed_forwards: int = Field(default=4, ge=1)
    """Feed-forward networks one after another in each layer."""
    shared_query_key: bool = True
    """Queries and keys from a bottleneck of their own, values from the layer's input; else all from the residual's."""
    trigram: bool = True
    """A token's input is its embedding between those of its neighbours."""


class EncoderConfig(Config):
    """The full shape of one encoder; fields that BERT has carry Hugging Face's names."""

    family: str = "bert"
    """``models/families/``: what its parameters are called in ``transformers``, and how it differs from BERT."""
    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    hidden_act: Activation = "gelu"
    hidden_dropout_prob: float = Field(default=0.1, ge=0, lt=1)
    attention_probs_dropout_prob: float = Field(default=0.0, ge=0, lt=1)
    max_position_embeddings: int = Field(default=512, ge=1)
    """Rows of the table; ``max_length`` is how long a sequence may be."""
    type_vocab_size: int = Field(default=2, ge=0)
    """With fewer than two, the second text of a pair is not told from the first."""
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = Field(default=0, ge=0)
    """Says where RoBERTa's positions begin; written into exported models."""
    pooler: bool = False
    """tanh(W h + b) of the first token."""
    embedding_size: int | None = Field(default=None, ge=1)
    """Width of the word embeddings (ELECTRA, MobileBERT); None: ``hidden_size``."""
    norm: Norm = "layer_norm"
    """``no_norm`` (MobileBERT): gamma * h + beta."""
    bottleneck: BottleneckConfig | None = None

    @model_validator(mode="after")
    def _possible(self) -> EncoderConfig:
        inner, called = (
            (self.hidden_size, "hidden_size")
            if self.bottleneck is None
            else (self.bottleneck.intra_size, "bottleneck.intra_size")
        )
        if inner % self.num_attention_heads:
            raise ValueError(
                f"{called} {inner} is not divisible by num_attention_heads "
                f"{self.num_attention_heads}; take a divisor of it"
            )
        try:
            problem = self.kin.problem(self)
        except ConfigError as error:  # an unknown family
            raise ValueError(str(error)) from None
        if problem is None and self.max_length < 1:
            problem = f"max_position_embeddings {self.max_position_embeddings}, all before the first position"
        if problem is None and self.bottleneck is not None and self.word_size > self.hidden_size:
            problem = f"embedding_size {self.embedding_size} above hidden_size {self.hidden_size}"
        if problem is not None:
            raise ValueError(f"a model of family {self.family!r} has {problem}")
        return self

    @property
    def kin(self) -> Family:
        return FAMILIES[self.family]

    @property
    def attention_size(self) -> int:
        """Width of the queries, keys and values of all heads together."""
        return self.hidden_size if self.bottleneck is None else self.bottleneck.intra_size

    @property
    def head_size(self) -> int:
        return self.attention_size // self.num_attention_heads

    @property
    def word_size(self) -> int:
        """Width of the word embeddings."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @property
    def first_position(self) -> int:
        """The row of the position table for a sequence's first token."""
        return self.pad_token_id + 1 if self.kin.positions_after_pad else 0

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence."""
        return self.max_position_embeddings - self.first_position

    @property
    def prediction_size(self) -> int:
        """Width at which the masked-LM head meets the vocabulary."""
        return self.hidden_size if self.bottleneck is not None else self.word_size

    def layer_parameters(self) -> int:
        h, f, narrow = self.hidden_size, self.intermediate_size, self.bottleneck
        if narrow is None:
            return 4 * (h * h + h) + 2 * h + h * f + f + f * h + h + 2 * h
        n = narrow.intra_size
        entries = (2 if narrow.shared_query_key else 1) * (h * n + 3 * n)
        value = (h if narrow.shared_query_key else n) * n + n
        attention = 2 * (n * n + n) + value + n * n + 3 * n
        return entries + attention + narrow.feed_forwards * (n * f + f + f * n + 3 * n) + n * h + 3 * h

    def encoder_parameters(self) -> int:
        """Embeddings and layers, without pooler and masked-LM head."""
        h, e = self.hidden_size, self.word_size
        tables = self.max_position_embeddings + self.type_vocab_size + 2
        if self.bottleneck is not None:
            embeddings = self.vocab_size * e + tables * h + (3 * e if self.bottleneck.trigram else e) * h + h
        else:
            embeddings = (self.vocab_size + tables) * e + (e * h + h if e != h else 0)
        return embeddings + self.num_hidden_layers * self.layer_parameters()

    def head_parameters(self) -> int:
        """Masked-LM head with its decoder tied to the word embeddings."""
        out = self.prediction_size
        return self.hidden_size * out + 3 * out + self.vocab_size * (out - self.word_size) + self.vocab_size

    def pooler_parameters(self) -> int:
        """Of a pooler, whether this model has one or not; 0 in families without."""
        return self.hidden_size**2 + self.hidden_size if self.kin.pooler else 0

    def parameters(self) -> int:
        """What a masked-LM model trains: encoder, head, and its pooler if it has one."""
        return self.encoder_parameters() + self.head_parameters() + (self.pooler_parameters() if self.pooler else 0)

    def published_parameters(self) -> int:
        """As model cards count: encoder and pooler, no masked-LM head."""
        return self.encoder_parameters() + self.pooler_parameters()


class ModelConfig(Config):
    """``model:`` in a run file: a preset, single fields over it, or all fields."""

    preset: str | None = None
    family: str | None = None
    """One of bert, roberta, distilbert, electra, ernie, mobilebert; default: the preset's, or bert."""
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    intermediate_size: int | None = None
    hidden_act: Activation | None = None
    hidden_dropout_prob: float | None = None
    attention_probs_dropout_prob: float | None = None
    max_position_embeddings: int | None = None
    type_vocab_size: int | None = None
    layer_norm_eps: float | None = None
    pooler: bool | None = None
    embedding_size: int | None = None
    norm: Norm | None = None
    bottleneck: BottleneckConfig | None = None

    @model_validator(mode="after")
    def _complete(self) -> ModelConfig:
        try:
            self.resolve(vocab_size=1000)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    def resolve(self, vocab_size: int | None = None, pad_token_id: int | None = None) -> EncoderConfig:
        """The full shape; ``vocab_size`` and ``pad_token_id`` (the corpus's) win over the preset's."""
        fields: dict[str, Any] = {}
        if self.preset is not None:
            if self.preset not in presets():
                near = difflib.get_close_matches(self.preset, presets(), n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"there is no preset {self.preset!r}.{hint} Known: {', '.join(presets())}")
            fields.update(presets()[self.preset])
        given = {k: v for k, v in self.model_dump(exclude={"preset"}).items() if v is not None}
        fields.update(given)
        for name, corpus in (("vocab_size", vocab_size), ("pad_token_id", pad_token_id)):
            if corpus is not None:
                fields[name] = corpus
        fields = {**FAMILIES[fields.get("family", "bert")].defaults, **fields}
        if "hidden_size" in fields:
            narrow = fields.get("bottleneck")
            inner = BottleneckConfig.model_validate(narrow).intra_size if narrow is not None else fields["hidden_size"]
            fields.setdefault("intermediate_size", 4 * inner)
        needed = ("hidden_size", "num_hidden_layers", "num_attention_heads")
        missing = [name for name in needed if name not in fields]
        if missing:
            raise ConfigError(f"give a preset, or also {', '.join(missing)}")
        return EncoderConfig.model_validate(fields)

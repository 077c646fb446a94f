"""What sets one family of encoders apart from BERT: names, configuration fields, and a few traits.

There is one encoder class, whose parameters carry BERT's names (``bert.encoder.layer.0...``). A family says how
``transformers`` calls the same things. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from configs.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from distill_core.models.config import EncoderConfig

FAMILIES: Registry[Family] = Registry("model family")
"""Under the ``model_type`` of ``transformers``."""

# Fields of EncoderConfig that every family of transformers has, under this name or that of `Family.fields`.
SHARED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "initializer_range",
    "pad_token_id",
)

OTHERS = ("position_embedding_type", "is_decoder", "tie_word_embeddings", "id2label", "label2id", "problem_type")
"""Further keys of a config.json that are read: what our encoder refuses, and what a head's outputs are."""


@dataclass(frozen=True)
class Family:
    """One family; what is not said is as in BERT."""

    masked_lm: str
    """Class of ``transformers`` with a masked-LM head."""
    base: str
    """Class of ``transformers`` without."""
    renames: tuple[tuple[str, str], ...] = ()
    """(part of our parameter name, theirs), replaced one after another."""
    tied: tuple[str, ...] = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
    """Their parameters that are others under a second name."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Our configuration field -> theirs, where the names differ."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a model of this family that names no value for them."""
    pooler: bool = True
    """Whether their base class has one."""
    token_types: bool = True
    positions_after_pad: bool = False
    """RoBERTa: the first position is ``pad_token_id + 1``."""
    layer_norm_eps: float | None = None
    """A value that their class has built in."""
    head_act: str | None = None
    """The activation of the masked-LM head, where it is not ``hidden_act``."""
    embedding_size: bool = False
    """Whether embeddings may be narrower than the hidden states."""
    bottleneck: bool = False
    """Whether the layers are MobileBERT's."""
    keys: tuple[str, ...] = ()
    """Keys of config.json that this family has besides those of BERT."""

    @property
    def known(self) -> frozenset[str]:
        """The keys of a config.json that are read; whatever else it says is not looked at."""
        shape = (*SHARED, "type_vocab_size", "layer_norm_eps")
        return frozenset((*shape, *self.fields.values(), *OTHERS, *self.keys))

    def theirs(self, name: str) -> str:
        """Their name of our parameter ``name``."""
        for ours, theirs in self.renames:
            name = name.replace(ours, theirs)
        return name

    def read(self, theirs: Any) -> dict[str, Any]:
        """Our configuration fields from their configuration object."""
        names = [*SHARED, *(["type_vocab_size"] if self.token_types else [])]
        names += ["layer_norm_eps"] if self.layer_norm_eps is None else []
        found = {name: getattr(theirs, self.fields.get(name, name), None) for name in names}
        return {**self.defaults, **{name: value for name, value in found.items() if value is not None}}

    def settings(self, shape: EncoderConfig) -> dict[str, Any]:
        """Their configuration's arguments for ``shape``."""
        names = [*SHARED, *(["type_vocab_size"] if self.token_types else [])]
        names += ["layer_norm_eps"] if self.layer_norm_eps is None else []
        return {self.fields.get(name, name): getattr(shape, name) for name in names}

    def refusal(self, theirs: Any) -> str | None:
        """Why a model with their configuration would be computed wrongly by ours; None: it would not."""
        return None

    def fold(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Their state dict with what we have no parameter for folded into others."""
        return state

    def problem(self, shape: EncoderConfig) -> str | None:
        """What in ``shape`` this family cannot be; None: nothing."""
        if self.token_types != (shape.type_vocab_size > 0):
            wanted = "at least 1" if self.token_types else "0 (it has no token types)"
            return f"type_vocab_size {shape.type_vocab_size}; it must be {wanted}"
        if shape.pooler and not self.pooler:
            return "pooler: true, but transformers' models of this family have none"
        if self.layer_norm_eps not in (None, shape.layer_norm_eps):
            return f"layer_norm_eps {shape.layer_norm_eps}, but {self.layer_norm_eps} is built into transformers' class"
        if shape.embedding_size is not None and not self.embedding_size:
            return f"embedding_size {shape.embedding_size}; only electra and mobilebert have one"
        if self.bottleneck != (shape.bottleneck is not None):
            return "no `bottleneck`" if self.bottleneck else "a `bottleneck`, which only mobilebert has"
        if shape.norm != "layer_norm" and not self.bottleneck:
            return f"norm: {shape.norm}, which only mobilebert has"
        return None

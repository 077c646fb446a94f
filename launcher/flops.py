"""FLOPs of models on paper. A multiply-add is two; embeddings look up and cost nothing."""

from __future__ import annotations

from distill_core.models.config import EncoderConfig


def forward_flops(model: EncoderConfig, mean_length: float, masked: float) -> float:
    """One token's forward pass; ``masked``: the share of tokens at which the vocabulary's logits are computed."""
    if model.bottleneck is None:
        matrices = 4 * model.hidden_size**2 + 2 * model.hidden_size * model.intermediate_size
    else:
        matrices = model.layer_parameters()  # the biases among them hardly count
    layer = 2 * matrices + 4 * model.attention_size * mean_length
    return model.num_hidden_layers * layer + masked * (transform_flops(model) + decoder_flops(model))


def transform_flops(model: EncoderConfig) -> float:
    """The masked-LM head at one token, before its decoder."""
    return 2.0 * model.prediction_size * model.hidden_size


def decoder_flops(model: EncoderConfig) -> float:
    """The product with the vocabulary at one token."""
    return 2.0 * model.prediction_size * model.vocab_size

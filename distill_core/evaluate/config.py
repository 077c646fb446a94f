"""The ``evaluation:`` block."""

from __future__ import annotations

from pydantic import Field, field_validator

from configs.loader import Config
from distill_core.evaluate.pseudo_perplexity import PseudoPerplexityConfig


class EvaluationConfig(Config):
    """What is measured at the end of the run."""

    latency_lengths: list[int] = [32, 128]
    latency_batch_sizes: list[int] = [1, 16]
    latency_repeats: int = Field(default=10, ge=1)
    sentences: list[str] = []
    """With one [MASK] each: the fill-mask guesses printed at the end."""
    pseudo_perplexity: PseudoPerplexityConfig | None = None
    """Of all models on held-out sequences; one forward pass a token, so off unless asked for."""
    bias: list[str] = []
    """Template sets: packaged ones (en, nl, zh) or paths of own YAML files."""
    choices: str | None = None
    """Path of a JSON lines file of gaps with words to choose from: {"sentence": "... [MASK] ...", "choices": [...],
    "answer": "..."}."""

    @field_validator("sentences")
    @classmethod
    def _one_mask(cls, value: list[str]) -> list[str]:
        for sentence in value:
            if sentence.count("[MASK]") != 1:
                raise ValueError(f"the sentence {sentence!r} must hold exactly one [MASK]")
        return value

"""Pseudo-perplexity, bias and zero-shot choice of all models of a chain; one model is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from configs.errors import DataError
from data_prep.corpus import Corpus
from distill_core.evaluate import bias, choice
from distill_core.evaluate.bias import BiasTemplates
from distill_core.evaluate.choice import Choice
from distill_core.evaluate.config import EvaluationConfig
from distill_core.evaluate.fill_mask import load_tokenizer
from distill_core.evaluate.latency import current_device
from distill_core.evaluate.pseudo_perplexity import pseudo_perplexity, same_vocabulary, texts
from distill_core.models import pretrained
from distill_core.models.encoder import Encoder

Rows = list[dict[str, Any]]


def check_inputs(config: EvaluationConfig) -> None:
    """Read every file that the evaluation names, so that a run does not fail on it at its end.

    Raises:
        ConfigError, DataError: one of them cannot be used.
    """
    for name in config.bias:
        bias.read_templates(name)
    if config.choices is not None:
        choice.read_choices(config.choices)


def pseudo_perplexities(models: Mapping[str, str], corpus: Corpus, limit: int, seed: int) -> Rows:
    """A row a model: {"model", "has_head", and the fields of ``PseudoPerplexity``}.

    The corpus's ids are text to a model with its vocabulary only; another one is skipped.
    """
    chosen = texts(corpus, limit, seed)
    ours = load_tokenizer(corpus.tokenizer_folder, corpus.vocab_size)

    def measure(encoder: Encoder, tokenizer: Any) -> Rows:
        if not same_vocabulary(ours, tokenizer):
            return [{"skipped": "its vocabulary is not the corpus's, and perplexities of two do not compare"}]
        return [asdict(pseudo_perplexity(encoder, chosen, corpus.special_ids))]

    return _rows(models, measure)


def biases(models: Mapping[str, str], sets: Mapping[str, BiasTemplates]) -> Rows:
    """A row for each template set and model: {"set", "model", "has_head", and the fields of ``Bias``}."""

    def measure(encoder: Encoder, tokenizer: Any) -> Rows:
        return [{"set": name, **asdict(bias.measure(encoder, tokenizer, chosen))} for name, chosen in sets.items()]

    order = list(sets)
    return sorted(_rows(models, measure), key=lambda row: order.index(row["set"]) if "set" in row else len(order))


def choices(models: Mapping[str, str], items: list[Choice]) -> Rows:
    """A row a model: {"model", "has_head", and the fields of ``ChoiceQuality``}."""
    return _rows(models, lambda encoder, tokenizer: [asdict(choice.choose(encoder, tokenizer, items))])


def _rows(models: Mapping[str, str], measure: Callable[[Encoder, Any], Rows]) -> Rows:
    """What ``measure`` finds for each model (fp32, on the current device) with its own tokenizer.

    A model that cannot be measured has a row {"model", "has_head", "skipped": the reason}: a run that has come to its
    end does not fail on a teacher without tokenizer files.
    """
    rows: Rows = []
    for name, source in models.items():
        loaded = pretrained.load(source, f"evaluation of {name}")
        try:
            tokenizer = load_tokenizer(source, loaded.encoder.config.vocab_size)
        except DataError as error:
            found: Rows = [{"skipped": str(error)}]
        else:
            found = measure(loaded.encoder.to(current_device()), tokenizer)
        rows += [{"model": name, "has_head": not loaded.missing_head, **row} for row in found]
    return rows

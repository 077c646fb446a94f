"""What models put in the place of [MASK], side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs import hub
from configs.errors import ConfigError, DataError
from distill_core.batch import Batch
from distill_core.features import MASKED_LOGITS
from distill_core.models import pretrained
from distill_core.models.encoder import Encoder

MASK = "[MASK]"
Rows = list[dict[str, Any]]


def guesses(model: Path | str, sentences: Sequence[str], top_k: int = 5) -> Rows:
    """The ``top_k`` likeliest tokens for the one [MASK] of each sentence.

    Args:
        model: a Hugging Face folder (or hub name) with its tokenizer.
        sentences: each with exactly one ``[MASK]``, however the model's own tokenizer writes it.

    Returns:
        rows {"sentence", "has_head", "guesses": [{"token", "probability"}, ...]}; ``has_head`` is False when the model
        came without a masked-LM head, so that its guesses are random.

    Raises:
        ConfigError: a sentence without [MASK], with several, or too long for the model.
        DataError: the folder is not a model, or holds no tokenizer.
    """
    check_sentences(sentences)
    if not sentences:
        return []
    loaded = pretrained.load(str(model), "fill-mask")
    tokenizer = load_tokenizer(model, loaded.encoder.config.vocab_size)
    ids = [_encode(tokenizer, sentence, loaded.encoder, model) for sentence in sentences]
    best = _best(loaded.encoder, ids, tokenizer.mask_token_id, top_k)
    return [
        {
            "sentence": sentence,
            "has_head": not loaded.missing_head,
            "guesses": [
                {"token": str(tokenizer.convert_ids_to_tokens(token)), "probability": probability}
                for token, probability in pairs
            ],
        }
        for sentence, pairs in zip(sentences, best, strict=True)
    ]


def compare(models: Mapping[str, Path | str], sentences: Sequence[str], top_k: int = 5) -> Rows:
    """The rows of :func:`guesses` with "model", sentence by sentence; one model is in memory at a time."""
    found = {name: guesses(source, sentences, top_k) for name, source in models.items()}
    return [{"model": name, **found[name][place]} for place in range(len(sentences)) for name in models]


def check_sentences(sentences: Sequence[str]) -> None:
    """Raise :class:`ConfigError` unless each sentence holds exactly one [MASK]."""
    for sentence in sentences:
        count = sentence.count(MASK)
        if count != 1:
            raise ConfigError(
                f"The sentence {sentence!r} holds {'no' if count == 0 else count} {MASK}; write exactly one in the "
                f"place to be guessed, as in 今天天气很{MASK}。"
            )


def load_tokenizer(model: Path | str, vocab_size: int) -> Any:
    """The model's own tokenizer.

    Raises:
        DataError: there is none, it has no mask token, or it has more tokens than the model.
    """
    from transformers import AutoTokenizer

    source = str(model)
    folder = Path(source) if hub.is_local(source) else pretrained.folder_of(source, "tokenizer", weights=False)
    if not any((folder / name).is_file() for name in pretrained.TOKENIZER_FILES):
        raise DataError(
            f"{source} holds no tokenizer (none of {', '.join(pretrained.TOKENIZER_FILES)}). Copy the files of the "
            "model's tokenizer into it."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the tokenizers package raises plain Exceptions for damaged files
        raise DataError(f"The tokenizer of {source} cannot be loaded: {error}. Copy it there again.") from None
    if tokenizer.mask_token_id is None:
        raise DataError(f"The tokenizer of {source} has no mask token; it is not one of a masked-LM model.")
    if len(tokenizer) > vocab_size:
        raise DataError(
            f"The tokenizer of {source} has {len(tokenizer)} tokens, its model {vocab_size}; they do not belong "
            "together. Copy the tokenizer that the model was trained with."
        )
    return tokenizer


def _encode(tokenizer: Any, sentence: str, model: Encoder, source: Path | str) -> list[int]:
    # Special tokens of a tokenizer from elsewhere may be written otherwise (<mask>); the user always writes [MASK].
    ids: list[int] = tokenizer(sentence.replace(MASK, tokenizer.mask_token))["input_ids"]
    if len(ids) > model.config.max_length:
        raise ConfigError(
            f"The sentence {sentence[:40]!r}... has {len(ids)} tokens, but {source} takes at most "
            f"{model.config.max_length}; shorten it."
        )
    if ids.count(tokenizer.mask_token_id) != 1:
        raise DataError(f"The tokenizer of {source} does not turn {tokenizer.mask_token} into its mask token.")
    return ids


@torch.no_grad()
def _best(model: Encoder, ids: list[list[int]], mask_id: int, top_k: int) -> list[list[tuple[int, float]]]:
    """(token, probability) pairs of each sentence, likeliest first; all sentences go through as one stream."""
    model.eval()
    batch = Batch.of(ids)
    batch.rows = (batch.ids == mask_id).nonzero().squeeze(1)
    logits = model(batch, MASKED_LOGITS).logits["masked"]
    values, tokens = logits.float().softmax(-1).topk(min(top_k, logits.shape[-1]))
    pairs = zip(tokens.tolist(), values.tolist(), strict=True)
    return [list(zip(t, (round(p, 6) for p in v), strict=True)) for t, v in pairs]


# ---------------------------------------------------------------- showing


def table(rows: Rows) -> Table:
    """Sentence by sentence, one line a model."""
    out = Table(title="fill-mask", title_justify="left", show_edge=False, pad_edge=False)
    for column in ("sentence", "model", "guesses"):
        out.add_column(column, overflow="fold")
    before: str | None = None
    for row in rows:
        new = row["sentence"] != before
        if new and before is not None:
            out.add_section()
        before = row["sentence"]
        words = "  ".join(f"{g['token']} {g['probability']:.1%}" for g in row["guesses"])
        if not row.get("has_head", True):
            words += "  (random: no masked-LM head)"
        # Text, not str: rich would take [MASK] for markup.
        out.add_row(Text(row["sentence"] if new else ""), Text(str(row.get("model", ""))), Text(words))
    return out


def text(rows: Rows, width: int = 110) -> str:
    """The same as plain text for a file or a pipe."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    console.print(table(rows))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()

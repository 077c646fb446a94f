"""Text -> token ids: opening a given vocabulary, or training one on the corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from configs.errors import DataError
from data_prep.config import TokenizerConfig
from data_prep.tokenizer_base import Tokenizer


def open_tokenizer(folder_or_vocab: Path, config: TokenizerConfig) -> Tokenizer:
    """The tokenizer of a vocabulary file, or of a folder that holds one.

    wordpiece: ``vocab.txt``, or a ``tokenizer.json`` of a BERT tokenizer; where the folder's
    ``tokenizer_config.json`` states ``do_lower_case``, that holds instead of ``config.lowercase``.
    sentencepiece: ``spiece.model`` (unigram or BPE, whatever ``config.algorithm``), with the model's own normalisation.
    bpe: ``tokenizer.json``, or a folder with that or ``vocab.json`` and ``merges.txt`` (byte-level BPE, as of
    RoBERTa); where the folder's ``tokenizer_config.json`` states ``add_prefix_space``, that holds. Always cased.

    Raises:
        DataError: the file is missing or unreadable, or cannot be used for masked language modelling.
    """
    path = Path(folder_or_vocab).expanduser()
    if not path.exists():
        raise DataError(
            f"There is no vocabulary {folder_or_vocab}: correct `data.tokenizer.vocab`, or leave it out to train one."
        )
    if config.kind == "sentencepiece":
        from data_prep.tokenizer_sentencepiece import open_sentencepiece

        return open_sentencepiece(path)
    if config.kind == "bpe":
        from data_prep.tokenizer_bpe import open_bpe

        return open_bpe(path)
    from data_prep.tokenizer_wordpiece import open_wordpiece

    return open_wordpiece(path, config)


def train_tokenizer(texts: Iterator[str], config: TokenizerConfig, folder: Path) -> Tokenizer:
    """Train a tokenizer of ``config.kind`` on the first ``config.train_characters`` and save it.

    Args:
        texts: cleaned documents.

    Raises:
        DataError: the corpus is too small for any vocabulary.
        OutputError: the folder cannot be written.
    """
    from data_prep import tokenizer_training

    taken = tokenizer_training.first_characters(texts, config.train_characters)
    trainers: dict[str, Callable[[Iterator[str], TokenizerConfig], Tokenizer]] = {
        "wordpiece": tokenizer_training.train_wordpiece,
        "sentencepiece": tokenizer_training.train_sentencepiece,
        "bpe": tokenizer_training.train_bpe,
    }
    tokenizer = trainers[config.kind](taken, config)
    tokenizer.save(folder)
    return tokenizer

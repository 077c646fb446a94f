"""The ``data:`` part of a run file. ``distill prep`` validates only this part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.loader import Config, runtime

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names of runs and stages: they become folder names."""
Fraction = Annotated[float, Field(ge=0, le=1)]


class SourceConfig(Config):
    """One source of documents."""

    path: str
    """A file, a folder, a glob, ``builtin:sample``, or (kind ``datasets``) a hub name or a local folder."""
    kind: Literal["auto", "text", "jsonl", "parquet", "datasets"] = "auto"
    """``auto``: by the file's ending (.txt, .jsonl, .jsonl.gz, .jsonl.zst, .parquet)."""
    text_column: str = "text"
    name: str | None = None
    """``datasets`` only: the configuration's name."""
    split: str = "train"
    """``datasets`` only."""
    encoding: str = "utf-8"


class CleanConfig(Config):
    """What is done to the text of a document before it is cut."""

    unicode: Literal["none", "NFC", "NFKC"] = "NFC"
    """NFKC also turns the full-width ，！？ into ,!? and is therefore not the default for Chinese."""
    min_characters: int = Field(default=4, ge=0)
    """Documents with fewer characters after cleaning are dropped and counted."""


class SegmentConfig(Config):
    """Word boundaries, for whole word masking."""

    kind: Literal["rjieba", "none"] = "rjieba"
    """``none``: each character (or run of word pieces without a space) is a word by itself."""
    hmm: bool = True


class TokenizerConfig(Config):
    """Token ids: a given vocabulary, or one trained on the corpus."""

    kind: Literal["wordpiece", "sentencepiece"] = "wordpiece"
    vocab: str | None = None
    """``vocab.txt`` (wordpiece) or ``spiece.model`` (sentencepiece), or a folder with one; trained if absent."""
    lowercase: bool = True
    vocab_size: int = Field(default=8000, ge=200, le=4_000_000)
    """Only when trained."""
    train_characters: int = Field(default=50_000_000, ge=1000)
    """Only when trained: how much of the corpus the trainer sees, from its beginning."""


class SequenceConfig(Config):
    """How the sentences of the corpus become training sequences."""

    kind: Literal["documents"] = "documents"
    """``documents``: whole sentences of one document, packed up to ``max_length``."""
    max_length: int = Field(default=512, ge=8, le=65535)
    """Tokens, with [CLS] and [SEP]."""


class MaskConfig(Config):
    """Whole word masking (masking.py)."""

    mode: Literal["stored", "dynamic"] = "stored"
    """``stored``: drawn at preparation, memory-mapped; epoch e uses view e mod ``views``. ``dynamic``: drawn
    at load time by the same function, view = epoch."""
    views: int = Field(default=4, ge=1, le=1000)
    rate: float = Field(default=0.15, gt=0, lt=1)
    mask: Fraction = 0.8
    random: Fraction = 0.1
    """Of the selected tokens: replaced by [MASK], by a random token; the rest is kept."""

    @model_validator(mode="after")
    def _shares(self) -> MaskConfig:
        if self.mask + self.random > 1 + 1e-9:
            raise ValueError(f"mask + random = {self.mask + self.random:g}, but together they may be at most 1")
        return self


class DataConfig(Config):
    """From raw files to memory-mapped shards."""

    sources: list[SourceConfig] = Field(min_length=1)
    folder: str | None = runtime(None)
    """Where the shards live; default: ``data/`` in the run folder. Several runs may share one."""
    clean: CleanConfig = CleanConfig()
    segment: SegmentConfig = SegmentConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    sequences: SequenceConfig = SequenceConfig()
    masks: MaskConfig = MaskConfig()
    held_out: float = Field(default=0.01, gt=0, lt=0.5)
    """Share of the documents kept away from training, chosen by a hash of their text."""
    block_megabytes: int = Field(default=64, ge=1)
    """Uncompressed files are cut into blocks of about this size at document boundaries: the unit of work."""
    seed: int = 1337
    workers: int | None = runtime(None, ge=1)
    """Processes; default: one per core."""


class PrepConfig(Config):
    """The part of a run file that preparation reads; ``distill_core.config.RunConfig`` adds the rest."""

    name: str = Field(pattern=NAME)
    output: str = runtime("runs")
    """The run folder is `output`/`name`."""
    data: DataConfig

    @property
    def folder(self) -> Path:
        return Path(self.output) / self.name

    @property
    def data_folder(self) -> Path:
        return Path(self.data.folder) if self.data.folder else self.folder / "data"

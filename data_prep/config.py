"""The ``data:`` part of a run file. ``distill prep`` validates only this part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from configs.loader import Config, runtime
from data_prep.config_quality import DedupConfig, FilterConfig, Fraction

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names of runs and stages: they become folder names."""


class SourceConfig(Config):
    """One source of documents."""

    path: str
    """A file, a folder, a glob, ``builtin:sample``, or (kind ``datasets``) a local folder or a hub name,
    ``ORG/NAME`` or ``ORG/NAME@COMMIT``."""
    kind: str = "auto"
    """``auto``: by the file's ending (.txt, .jsonl, .parquet, .warc, .wet, .xml; most of them also with .gz, .xz, .zst,
    .bz2); else the name of a reader: text, jsonl, parquet, warc, mediawiki, datasets, or one of a plugin."""
    label: str | None = None
    """The source's name in counts and reports; default: ``path``."""
    text_column: str | Annotated[list[str], Field(min_length=1)] = "text"
    """Field of a record that holds its text. Several: their texts are joined by line breaks, e.g. [title, text]."""
    weight: float = Field(default=1.0, gt=0, le=1000)
    """0.3: three of ten documents are taken, chosen by a hash of their text. 2.5: each stands twice in the training
    split, and half of them three times; held-out documents stand once."""
    max_documents: int | None = Field(default=None, ge=1)
    max_megabytes: float | None = Field(default=None, gt=0)
    """Only the beginning of the source, as it is after cleaning and with a ``weight`` below 1; megabytes (10^6) of
    UTF-8 text. The document that reaches the limit is the last one."""
    name: str | None = None
    """``datasets`` only: the configuration's name."""
    split: str = "train"
    """``datasets`` only."""
    encoding: str = "utf-8"

    @property
    def text_columns(self) -> list[str]:
        return [self.text_column] if isinstance(self.text_column, str) else self.text_column

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        from data_prep.readers import READERS  # they are built on this file

        return value if value == "auto" else READERS.check(value)


class CleanConfig(Config):
    """What is done to the text of a document, and what it is cut into."""

    html_entities: bool = False
    """``&lt;`` becomes ``<`` (once: ``&amp;lt;`` becomes ``&lt;``)."""
    unicode: Literal["none", "NFC", "NFKC"] = "NFC"
    """NFKC also turns the full-width ，！？ into ,!? and is therefore not the default for Chinese."""
    opencc: Literal["t2s", "tw2s", "tw2sp", "hk2s"] | None = None
    """Traditional to simplified Chinese by OpenCC's conversion of this name (needs ``zhengliu[opencc]``)."""
    filters: FilterConfig = FilterConfig()
    min_characters: int = Field(default=4, ge=0)
    """Documents with fewer characters after cleaning are dropped and counted."""
    unit: Literal["sentence", "line"] = "sentence"
    """What sequences are put together from: the lines of a document cut into sentences, or its lines as they are
    (RobBERTje)."""
    min_unit_characters: int = Field(default=0, ge=0)
    """Units with fewer characters are dropped and counted; RobBERTje drops lines of 10 and less (11 here)."""


class SegmentConfig(Config):
    """Word boundaries, for whole word masking."""

    kind: str = "jieba"
    """``jieba``: for Chinese, exactly the words of jieba 0.42; it tears words with accents (caf|é). ``rjieba``: nearly
    those, from another package. ``ltp``: a perceptron ``model`` of LTP. ``none``: for text with spaces; a run of
    letters and digits is a word, whatever pieces the tokenizer makes of it, every other character (and every Chinese
    one) is a word by itself. Or one of a plugin."""
    hmm: bool = True
    """``jieba`` and ``rjieba``: find words that the dictionary lacks by the hidden Markov model."""
    user_dictionary: str | None = None
    """``jieba`` only: a file in jieba's format. A word without a frequency gets the one that keeps it whole
    (``suggest_freq``); with frequency 0 it is cut."""
    model: str | None = None
    """``ltp`` only: the model's file."""

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        from data_prep.segment import SEGMENTERS  # they are built on this file

        return SEGMENTERS.check(value)

    @model_validator(mode="after")
    def _belongs_to_kind(self) -> SegmentConfig:
        if self.user_dictionary is not None and self.kind != "jieba":
            raise ValueError(f"user_dictionary is read by kind: jieba only, not by {self.kind}; remove it")
        if self.model is not None and self.kind != "ltp":
            raise ValueError(f"model is read by kind: ltp only, not by {self.kind}; remove it")
        if self.kind == "ltp" and self.model is None:
            raise ValueError("kind: ltp needs model, the path of a word segmentation model of LTP's legacy kind")
        return self


BPE_SMALLEST = 261


class TokenizerConfig(Config):
    """Token ids: a given vocabulary, or one trained on the corpus."""

    kind: Literal["wordpiece", "sentencepiece", "bpe"] = "wordpiece"
    """``bpe``: byte-level, as of RoBERTa."""
    vocab: str | None = None
    """``vocab.txt`` (wordpiece), ``spiece.model`` (sentencepiece) or ``tokenizer.json`` (bpe), or a folder with one
    (bpe: or with ``vocab.json`` and ``merges.txt``); trained if absent."""
    algorithm: Literal["unigram", "bpe"] = "unigram"
    """Only when trained, ``sentencepiece`` only: its unigram model, or its BPE over characters."""
    lowercase: bool = True
    """``wordpiece`` only: ``bpe`` is always cased, ``sentencepiece`` models have their own normalisation; false there,
    and true is refused."""
    vocab_size: int = Field(default=8000, ge=200, le=4_000_000)
    """Only when trained."""
    train_characters: int = Field(default=50_000_000, ge=1000)
    """Only when trained: how much of the corpus the trainer sees, from its beginning."""

    @model_validator(mode="before")
    @classmethod
    def _only_wordpiece_has_lowercase(cls, values: Any) -> Any:
        others = isinstance(values, dict) and values.get("kind") in ("bpe", "sentencepiece")
        return {"lowercase": False, **values} if others else values

    @model_validator(mode="after")
    def _belongs_to_kind(self) -> TokenizerConfig:
        if self.lowercase and self.kind == "bpe":
            raise ValueError("lowercase: true is not for kind: bpe, which keeps every byte of the text; remove it")
        if self.lowercase and self.kind == "sentencepiece":
            raise ValueError(
                "lowercase: true is not for kind: sentencepiece, whose models carry their own normalisation; remove "
                "it, and for lower case give a model as `vocab` that was trained with a rule such as nmt_nfkc_cf"
            )
        if self.algorithm != "unigram" and self.kind != "sentencepiece":
            raise ValueError(f"algorithm is read by kind: sentencepiece only, not by {self.kind}; remove it")
        if self.kind == "bpe" and self.vocab is None and self.vocab_size <= BPE_SMALLEST:
            raise ValueError(
                f"vocab_size: {self.vocab_size} leaves no room for merges; kind: bpe begins with {BPE_SMALLEST} "
                "entries (256 bytes and 5 special tokens)"
            )
        return self


class SequenceConfig(Config):
    """How the units of the corpus (``clean.unit``) become training sequences (variants.py, pairs.py).

    Fields that are None belong to other kinds, which alone may set them.
    """

    kind: Literal["documents", "lines", "merged", "shuffled", "packed", "pairs"] = "documents"
    """``documents``: whole units of one document, packed up to ``max_length``. ``lines``: each unit by itself.
    ``merged``: consecutive units of one document, joined by chance. ``shuffled``: the units of a shard in random
    order, packed up to ``max_length``. ``packed``: all tokens of a shard in a row, cut into sequences of exactly
    ``max_length``, across documents (MiniRBT). ``pairs``: [CLS] A [SEP] B [SEP], with a label for A and B."""
    max_length: int = Field(default=512, ge=8, le=65535)
    """Tokens, with [CLS] and [SEP]. Units that are longer are cut."""
    merge_probability: Fraction | None = None
    """``merged`` only (default 0.5): the chance that a unit is joined to the one before it. 0 is ``lines``, 1
    ``documents``."""
    drop_remainder: bool | None = None
    """``packed`` only (default false): leave out the last sequence of a shard, which is shorter."""
    pair_order: Literal["next", "swapped"] | None = None
    """``pairs`` only (default ``next``). ``next``: B follows A (label 0) or comes from another document (1), as in BERT
    and TinyBERT. ``swapped``: B follows A (0) or A follows B (1), as in ALBERT and MacBERT."""
    short_sequence_probability: Fraction | None = None
    """``pairs`` only (default 0.1): the share of documents whose pairs are made shorter."""
    copies: int | None = Field(default=None, ge=1, le=1000)
    """``pairs`` only (default 1): passes over the documents, each with its own draws, that make one epoch
    (TinyBERT pre-generates 3)."""

    @property
    def folder(self) -> str:
        """Name of the view's folder; the other settings stand in the identity, and so in the name of the shard."""
        return f"{self.kind}-{self.max_length}"

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
            return values
        given = {k: v for k, v in values.items() if v is not None or k not in FIELDS_OF_ONE_KIND}
        own = {k: default for k, (kind, default) in FIELDS_OF_ONE_KIND.items() if kind == values["kind"]}
        return own | given

    @model_validator(mode="after")
    def _belongs_to_the_kind(self) -> SequenceConfig:
        for name, (kind, _) in FIELDS_OF_ONE_KIND.items():
            if kind != self.kind and getattr(self, name) is not None:
                raise ValueError(
                    f"{name} belongs to kind: {kind}, but the kind is {self.kind}; remove {name}, or choose that kind"
                )
        return self


FIELDS_OF_ONE_KIND: dict[str, tuple[str, object]] = {
    "merge_probability": ("merged", 0.5),
    "drop_remainder": ("packed", False),
    "pair_order": ("pairs", "next"),
    "short_sequence_probability": ("pairs", 0.1),
    "copies": ("pairs", 1),
}
"""Field of :class:`SequenceConfig` -> (the kind of sequences that it belongs to, its default there)."""

HELD_OUT_RATE = 0.15


class SimilarConfig(Config):
    """Words like the selected ones instead of [MASK], as in MacBERT (similar.py)."""

    vectors: str
    """Word vectors: word2vec's or GloVe's text format, or word2vec's binary one (``.bin``); .gz, .xz, .zst too."""
    share: Fraction = 0.8
    """Of the selected words."""
    neighbours: int = Field(default=10, ge=1, le=1000)
    """A replacement is drawn from so many nearest words of the same number of tokens."""
    min_cosine: float = Field(default=0.5, ge=-1, le=1)
    """Words further away are not similar."""
    words: int = Field(default=100_000, ge=2)
    """How many rows of the file are read, from its beginning (the most frequent words, as a rule)."""


class MaskConfig(Config):
    """Which tokens are masked (masking.py)."""

    mode: Literal["stored", "dynamic"] = "stored"
    """``stored``: drawn at preparation, memory-mapped; epoch e uses view e mod ``views``. ``dynamic``: drawn
    at load time by the same function, view = epoch."""
    views: int = Field(default=4, ge=1, le=1000)
    rate: float = Field(default=0.15, ge=0, lt=1)
    """Share of the maskable tokens. 0: nothing is masked in training (as in TinyBERT's second release); the held-out
    split is then masked at 0.15, so that masked-LM quality can still be measured."""
    mask: Fraction = 0.8
    random: Fraction = 0.1
    """Of the selected tokens: replaced by [MASK], by a random token; the rest is kept."""
    unit: Literal["word", "token"] = "word"
    """What is selected: whole words, or every token by itself (the first BERT)."""
    smoothing: float | None = Field(default=None, ge=0, le=10)
    """Tokens are selected with weight count^-smoothing, so that rare ones are masked more often (DistilBERT: 0.7).
    Only with ``unit: token`` and ``mode: dynamic``."""
    max_masked: int | None = Field(default=None, ge=1)
    """At most so many tokens of a sequence (TinyBERT: 20)."""
    ngram: list[Fraction] | None = Field(default=None, min_length=1, max_length=16)
    """Chances that 1, 2, ... words in a row are selected together (MacBERT: [0.4, 0.3, 0.2, 0.1]); default: one."""
    replace: Literal["token", "word"] = "token"
    """What one draw of ``mask`` and ``random`` decides on: a token (BERT, MiniRBT) or a whole word (MacBERT)."""
    similar: SimilarConfig | None = None
    """Similar words. With it ``mask`` is 0 by default (MacBERT has no [MASK]) and ``replace`` is ``word``."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_with_similar_words(cls, values: Any) -> Any:
        given = isinstance(values, dict) and values.get("similar") is not None
        return {"mask": 0.0, "replace": "word", **values} if given else values

    def rate_of(self, split: str) -> float:
        return HELD_OUT_RATE if split == "held_out" and self.rate == 0 else self.rate

    def stored(self, split: str) -> bool:
        """Whether views of ``split`` lie on disk: an empty mask needs none."""
        return self.mode == "stored" and self.rate_of(split) > 0

    @model_validator(mode="after")
    def _shares(self) -> MaskConfig:
        similar = 0.0 if self.similar is None else self.similar.share
        total = self.mask + self.random + similar
        if total > 1 + 1e-9:
            names = "mask + random" if self.similar is None else "mask + random + similar.share"
            raise ValueError(f"{names} = {total:g}, but together they may be at most 1")
        return self

    @model_validator(mode="after")
    def _words(self) -> MaskConfig:
        if self.ngram is not None and abs(sum(self.ngram) - 1) > 1e-6:
            raise ValueError(f"the chances in ngram sum to {sum(self.ngram):g}; they must sum to 1")
        if self.ngram is not None and self.smoothing is not None:
            raise ValueError("smoothing weighs single tokens, ngram selects several; remove one of them")
        if self.similar is not None and (self.unit, self.replace) != ("word", "word"):
            raise ValueError("similar replaces whole words; set unit: word and replace: word, or remove similar")
        return self

    @model_validator(mode="after")
    def _smoothing(self) -> MaskConfig:
        if self.smoothing is not None and self.unit == "word":
            raise ValueError("smoothing weighs single tokens; set unit: token, or remove smoothing")
        if self.smoothing is not None and self.mode == "stored":
            raise ValueError(
                "smoothing needs the token counts of the whole corpus, which are not known yet while masks are stored "
                "with the shards; set mode: dynamic, or remove smoothing"
            )
        return self


class DataConfig(Config):
    """From raw files to memory-mapped shards."""

    sources: list[SourceConfig] = []
    """None for a run without a corpus, whose stages all read labelled rows; preparation then only installs the given
    tokenizer."""
    folder: str | None = runtime(None)
    """Where the shards live; default: ``data/`` in the run folder. Several runs may share one."""
    clean: CleanConfig = CleanConfig()
    dedup: DedupConfig = DedupConfig()
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
    verify: Literal["first_touch", "open", "none"] = runtime("first_touch")
    """When training holds the data against its checksums: each block of 4 MiB when it is first read, every file when
    the data is opened, or never."""

    @model_validator(mode="after")
    def _tokens_without_text(self) -> DataConfig:
        if not self.sources and self.tokenizer.vocab is None:
            raise ValueError(
                "without `sources` there is no text to train a vocabulary on; give `tokenizer.vocab` (a model's folder "
                "or vocabulary file) for a run on labelled rows alone, or `sources`"
            )
        return self


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

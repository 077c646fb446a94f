"""How much there is to train on: counted from prepared data, else estimated from the sources' sizes and beginnings."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from configs.errors import DataError
from data_prep.config import DataConfig, SourceConfig
from data_prep.corpus import Corpus
from data_prep.readers import open_sources
from data_prep.tokenizer_base import Tokenizer
from distill_core import preflight
from distill_core.batch import Count
from distill_core.config import AugmentStage, DistillStage, FinetuneStage, RunConfig, TrainedStage, model_sources
from distill_core.models.config import ModelConfig
from distill_core.shapes import preset_of
from distill_core.tasks.rows import RowCounts, read_rows
from launcher.plan_sample import sample

BYTES_PER_TOKEN = 3.05
"""UTF-8 Chinese in WordPiece, JSON lines or text; 3.02 and 3.04 on two of our corpora. For want of a tokenizer."""
UNPACKED = {".gz": 2.8, ".zst": 3.0, ".parquet": 2.0}
"""Text bytes per byte of file."""
FILLED = 0.75
"""Of ``max_length``, by whole sentences of one document; 0.70 to 0.76 on two of our corpora at 64. For want of text."""
LENGTHS = 1024
"""Sequences whose lengths are looked at."""


@dataclass(frozen=True)
class Data:
    """The training split. ``exact``: counted from prepared data, else estimated from the sources' sizes."""

    tokens: int | None
    """With [CLS] and [SEP]; None where it cannot be known (a hub data set)."""
    sequences: int | None
    mean_length: float
    vocab_size: int
    exact: bool
    problems: tuple[str, ...] = ()
    """What is missing for a run; a plan is made all the same."""
    has_text: bool = True
    """False for a run on labelled rows alone."""
    lengths: tuple[int, ...] = ()
    """Of some sequences, ascending: how they are spread; () where nothing but their mean is known."""

    @property
    def pairs_per_token(self) -> float:
        """Query-key pairs: the mean of the squared lengths over the mean length."""
        squares = sum(length * length for length in self.lengths)
        return squares / sum(self.lengths) if self.lengths else self.mean_length

    def spread(self, tokens: int) -> list[int]:
        """Lengths of sequences that hold about so many tokens, spread as those of the split, the longest first."""
        known = self.lengths or (max(1, round(self.mean_length)),)
        mean = sum(known) / len(known)
        if tokens <= mean:
            return [max(1, tokens)]
        count = round(tokens / mean)
        return [known[int((place + 0.5) * len(known) / count)] for place in reversed(range(count))]


def measure(config: RunConfig) -> Data:
    """Counts from the prepared data when it is there, else an estimate from the source files."""
    folder = config.data_folder
    if config.data.sources and (folder / "manifest.json").is_file():
        corpus = Corpus.open(folder)
        split = corpus.split("train")
        tokens = split.n_tokens + split.specials * len(split)
        some = np.linspace(0, len(split) - 1, min(LENGTHS, len(split))).astype(np.int64)
        lengths = tuple(sorted(split.lengths(some).tolist()))
        return Data(tokens, len(split), tokens / len(split), corpus.vocab_size, True, lengths=lengths)
    problems = []
    try:
        vocab_size = preflight.given_vocabulary(config) or config.data.tokenizer.vocab_size
    except DataError as error:
        problems.append(str(error))
        vocab_size = published_vocabulary(config) or config.data.tokenizer.vocab_size
    if not config.data.sources:
        return Data(None, None, 0.0, vocab_size, False, tuple(problems), has_text=False)
    found, content = None, None
    try:
        found = sample(config.data, given_tokenizer(config), BYTES_PER_TOKEN)
        content = source_tokens(config.data, BYTES_PER_TOKEN if found is None else found.bytes_per_token)
    except DataError as error:
        problems.append(str(error))
    lengths = () if found is None else found.lengths[:: max(1, len(found.lengths) // LENGTHS)]
    length = max(3.0, FILLED * config.data.sequences.max_length) if found is None else found.mean_length
    if content is None:
        return Data(None, None, length, vocab_size, False, tuple(problems), lengths=lengths)
    each = 1 / (length - 2) if found is None else len(found.lengths) / found.tokens  # pairs use texts again
    sequences = max(1, round(content * (1 - config.data.held_out) * each))
    return Data(round(sequences * length), sequences, length, vocab_size, False, tuple(problems), lengths=lengths)


def given_tokenizer(config: RunConfig) -> Tokenizer | None:
    """None where it will be trained, or is not at hand."""
    try:
        return preflight.run_tokenizer(config)
    except DataError:  # said among what is missing
        return None


def published_vocabulary(config: RunConfig) -> int | None:
    """The vocabulary of the first model from outside whose shape is known by a preset."""
    for stage in config.stages:
        said = [teacher.shape for teacher in stage.teacher] if isinstance(stage, DistillStage) else []
        names = [shape.preset for shape in said if shape is not None]
        names += [preset_of(source) for source in model_sources(stage) if config.stage_index(source) is None]
        found = next((name for name in names if name is not None), None)
        if found is not None:
            return ModelConfig(preset=found).resolve().vocab_size
    return None


def source_tokens(data: DataConfig, bytes_per_token: float) -> float | None:
    """Content tokens of all sources by the sizes of their files; None with a source that is not a file."""
    sources: dict[str | None, SourceConfig] = {}
    sizes: dict[str | None, float] = {}
    for reader in open_sources(data):
        path, source = Path(reader.path), reader.source
        if not path.is_file():
            return None
        sources[source.label] = source
        sizes[source.label] = sizes.get(source.label, 0.0) + path.stat().st_size * UNPACKED.get(path.suffix, 1.0)
    return sum(taken_bytes(source, sizes[label]) for label, source in sources.items()) / bytes_per_token


def taken_bytes(source: SourceConfig, size: float) -> float:
    """Of ``size`` bytes of text what goes into the corpus, whole copies included."""
    most = math.inf if source.max_megabytes is None else 1e6 * source.max_megabytes
    return min(most, size * min(1.0, source.weight)) * max(1.0, source.weight)


def shard_bytes(data: DataConfig, counted: Data) -> float | None:
    """Disk for the training split's shards: ids, word bits, indices, stored masks."""
    if counted.tokens is None or counted.sequences is None:
        return None
    width = 2 if counted.vocab_size <= 65536 else 4
    views = data.masks.views if data.masks.mode == "stored" else 0
    per_token = width + 1 / 8 + views * data.masks.rate * (2 + width)
    per_sequence = 8 + 16 + 8 * views + 2 * 12  # offsets, one piece, view offsets, about two sentences
    return counted.tokens * per_token + counted.sequences * per_sequence


def task_data(config: RunConfig, stage: DistillStage | FinetuneStage, data: Data) -> Data:
    """The rows of a task, their length estimated from their characters."""
    assert stage.task is not None
    task = config.tasks[stage.task]
    try:
        rows = read_rows(Path(task.train), task.kind, RowCounts(), task.columns)
    except DataError:  # preflight says so; a plan is made all the same
        return replace(data, tokens=None, sequences=None, mean_length=task.max_length / 2, exact=False, lengths=())
    copies = 1
    if stage.rows is not None:
        made = config.stages[config.stage_index(stage.rows) or 0]
        assert isinstance(made, AugmentStage)
        copies += made.augment.copies
    sizes = sorted(min(len(row.text_a) + len(row.text_b or "") + 3, task.max_length) for row in rows)
    length = sum(sizes) / len(sizes)
    sequences, some = len(rows) * copies, tuple(sizes[:: max(1, len(sizes) // LENGTHS)])
    return replace(
        data, tokens=round(length * sequences), sequences=sequences, mean_length=length, exact=False, lengths=some
    )


def per_token(config: RunConfig, stage: TrainedStage, data: Data) -> dict[Count, float]:
    """What a step counts, for each real token on average."""
    texts = 1 / max(1.0, data.mean_length)
    return {
        "tokens": 1.0,
        "pairs": data.pairs_per_token,
        "masked": config.data.masks.rate,
        "sampled": stage.training.sampled_rows,
        "sequences": texts,
        "targets": texts,
    }

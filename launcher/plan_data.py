"""How much there is to train on: counted from prepared data, else estimated from the sizes of the sources."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from configs.errors import DataError
from data_prep.config import DataConfig
from data_prep.corpus import Corpus
from data_prep.readers import open_sources
from distill_core import preflight
from distill_core.batch import Count
from distill_core.config import AugmentStage, DistillStage, FinetuneStage, RunConfig, TrainedStage, model_sources
from distill_core.models.config import ModelConfig
from distill_core.shapes import preset_of
from distill_core.tasks.rows import RowCounts, read_rows

BYTES_PER_TOKEN = 3.05
"""UTF-8 Chinese in WordPiece, JSON lines or text; 3.02 and 3.04 on two of our corpora."""
UNPACKED = {".gz": 2.8, ".zst": 3.0, ".parquet": 2.0}
"""Text bytes per byte of file."""
FILLED = 0.75
"""Of ``max_length``, by whole sentences of one document; 0.70 to 0.76 on two of our corpora at 64."""


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


def measure(config: RunConfig) -> Data:
    """Counts from the prepared data when it is there, else an estimate from the sizes of the source files."""
    folder = config.data_folder
    if config.data.sources and (folder / "manifest.json").is_file():
        corpus = Corpus.open(folder)
        split = corpus.split("train")
        tokens = split.n_tokens + split.specials * len(split)
        return Data(tokens, len(split), tokens / len(split), corpus.vocab_size, True)
    problems = []
    try:
        vocab_size = preflight.given_vocabulary(config) or config.data.tokenizer.vocab_size
    except DataError as error:
        problems.append(str(error))
        vocab_size = published_vocabulary(config) or config.data.tokenizer.vocab_size
    if not config.data.sources:
        return Data(None, None, 0.0, vocab_size, False, tuple(problems), has_text=False)
    try:
        content = source_tokens(config.data)
    except DataError as error:
        problems.append(str(error))
        content = None
    length = max(3.0, FILLED * config.data.sequences.max_length)
    if content is None:
        return Data(None, None, length, vocab_size, False, tuple(problems))
    sequences = max(1, round(content * (1 - config.data.held_out) / (length - 2)))
    return Data(round(sequences * length), sequences, length, vocab_size, False, tuple(problems))


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


def source_tokens(data: DataConfig) -> float | None:
    """Content tokens of all sources by the sizes of their files; None with a source that is not a file."""
    total = 0.0
    for reader in open_sources(data):
        path = Path(reader.path)
        if not path.is_file():
            return None
        total += path.stat().st_size * UNPACKED.get(path.suffix, 1.0) / BYTES_PER_TOKEN
    return total


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
        return replace(data, tokens=None, sequences=None, mean_length=task.max_length / 2, exact=False)
    copies = 1
    if stage.rows is not None:
        made = config.stages[config.stage_index(stage.rows) or 0]
        assert isinstance(made, AugmentStage)
        copies += made.augment.copies
    sizes = [len(row.text_a) + len(row.text_b or "") + 3 for row in rows]
    length = sum(min(size, task.max_length) for size in sizes) / len(sizes)
    sequences = len(rows) * copies
    return replace(data, tokens=round(length * sequences), sequences=sequences, mean_length=length, exact=False)


def per_token(config: RunConfig, stage: TrainedStage, data: Data) -> dict[Count, float]:
    """What a step counts, for each real token on average."""
    texts = 1 / max(1.0, data.mean_length)
    return {
        "tokens": 1.0,
        "pairs": data.mean_length,
        "masked": config.data.masks.rate,
        "sampled": stage.training.sampled_rows,
        "sequences": texts,
        "targets": texts,
    }

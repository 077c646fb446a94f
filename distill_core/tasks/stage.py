"""The ``augment`` stage: more rows of a task's training data, made by a masked LM. It trains nothing.

STAGE/rows.jsonl    each row of the task, followed by its new ones
STAGE/DONE.json     how many there are, and the identity of the stage
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from configs.errors import DataError, output_error
from distill_core.config import AugmentStage, RunConfig
from distill_core.engine import Rank
from distill_core.evaluate.fill_mask import load_tokenizer
from distill_core.models import pretrained
from distill_core.record import write_aside
from distill_core.tasks.augment import augment, check_kind
from distill_core.tasks.rows import Row, RowCounts, TaskKind, read_rows, write_rows

ROWS = "rows.jsonl"


def run_augment(config: RunConfig, index: int, identity: dict[str, Any], rank: Rank) -> None:
    """Make the rows of an augment stage; each rank takes a stretch of the task's rows. Collective.

    Raises:
        ConfigError: rows of this kind of task cannot be augmented.
        DataError: the rows or the model cannot be read.
        OutputError: the stage's folder cannot be written.
    """
    stage, folder = config.stages[index], config.stage_folder(index)
    assert isinstance(stage, AugmentStage)
    task = config.tasks[stage.task]
    check_kind(task.kind)
    began = time.monotonic()
    counts = RowCounts()
    rows = read_rows(task.train, task.kind, counts, task.columns)
    mine = rows[_stretch(len(rows), rank)]
    new = _made(stage, config.model_source(stage.model), mine, task.kind, counts, rank)
    for message in counts.messages if rank.is_first else []:
        print(f"stage {stage.name}: row left out: {message}", flush=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(_part(folder, rank.rank), new)
        rank.barrier()
        if rank.is_first:
            made = _join(folder, rank.world_size)
            facts = {
                "name": stage.name,
                "kind": stage.kind,
                "rows": len(rows),
                "made": made,
                "seconds": round(time.monotonic() - began, 1),
                "identity": identity,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            write_aside(folder / "DONE.json", facts)
            print(f"stage {stage.name}: {made:,} rows made of {len(rows):,}", flush=True)
    except OSError as error:
        raise output_error(folder, error) from error
    rank.barrier()


def _stretch(n: int, rank: Rank) -> slice:
    """This rank's part of n rows, in order."""
    return slice(n * rank.rank // rank.world_size, n * (rank.rank + 1) // rank.world_size)


def _made(
    stage: AugmentStage, source: str, rows: list[Row], kind: TaskKind, counts: RowCounts, rank: Rank
) -> list[Row]:
    loaded = pretrained.load(source, f"stage {stage.name!r}: model")
    if loaded.missing_head:
        raise DataError(
            f"stage {stage.name!r}: the model {source} has no masked-LM head (it would be random), and words are "
            "replaced by what it predicts. Name a masked LM."
        )
    tokenizer = load_tokenizer(source, loaded.encoder.config.vocab_size)
    return list(augment(rows, loaded.encoder.to(rank.device), tokenizer, stage.augment, kind, counts))


def _part(folder: Path, number: int) -> Path:
    return folder / f"rows-{number}.jsonl"


def _join(folder: Path, parts: int) -> int:
    """The ranks' files one after another as rows.jsonl; returns how many rows there are."""
    aside = folder / f".{ROWS}"
    lines = 0
    with aside.open("wb") as out:
        for number in range(parts):
            content = _part(folder, number).read_bytes()
            out.write(content)
            lines += content.count(b"\n")
    aside.replace(folder / ROWS)
    for number in range(parts):
        _part(folder, number).unlink()
    return lines

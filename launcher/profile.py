"""``distill profile``: where the time and the memory of a stage's step go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill_core.clock import PARTS
from distill_core.config import RunConfig, TrainedStage
from distill_core.flops import Flops
from launcher.launch import ranks as ranks_of
from launcher.plan_losses import table_of
from launcher.rehearsal import measured
from launcher.runfile import check_stage
from launcher.units import amount, size

EXPLAINED = {
    "data": "waiting for batches, moving them",
    "teacher": "forward passes of the teachers",
    "forward": "student and losses",
    "backward": "student and losses",
    "optimizer": "update",
    "communication": "collectives; on a GPU those beside the backward pass and the update are in these parts",
    "other": "checks, log lines",
}
MEMORY = {
    "libraries": "Python and its libraries",
    "built": "with models, data and optimizer",
    "peak": "peak",
}


def show(config: RunConfig, stage: str | None, steps: int, out: Path | None, console: Console | None = None) -> None:
    """Trace ``steps`` steps of a stage and print where their time goes.

    Args:
        stage: default: the last one that trains something.
        out: folder of the trace; default: RUN/profile/STAGE.

    Raises:
        ConfigError, DataError: there is nothing to measure.
        LaunchError: a rank failed.
    """
    console = console or Console(highlight=False)
    check_stage([each.name for each in config.stages], stage)
    stage = stage or next(each.name for each in reversed(config.stages) if isinstance(each, TrainedStage))
    trace = (out or config.folder / "profile" / stage) / "trace.json"
    found = measured(config, stage, ranks_of(config.launch.processes), steps, trace)
    for part in (headline(found), parts_table(found), operators_table(found), memory_table(found)):
        console.print(part)
        console.print()
    console.print(Text(f"trace: {trace} (open it in https://ui.perfetto.dev or chrome://tracing)"))


def headline(found: Mapping[str, Any]) -> Text:
    row, ranks = found["row"], found["ranks"]
    words = [
        f"{found['stage']}: {1000 * found['step_seconds']:.4g} ms a step (median of {found['steps']}, traced)",
        f"{row['speed/tokens_per_second']:,.0f} tokens/s",
        f"{row.get('speed/flops_utilization', 0.0):.0%} of {found['peak_tflops']:.3g} TFLOP/s",
        f"{ranks} rank{'s' if ranks > 1 else ''}",
        f"{found['micro_steps']:.3g} micro-steps",
        f"{row['data/padding_share']:.0%} padding",
    ]
    return Text(", ".join(words), "bold")


def parts_table(found: Mapping[str, Any]) -> Table:
    """Time by part, with the useful FLOPs of those that have some."""
    row = found["row"]
    step = row["speed/step_seconds"]
    useful = useful_flops(found)
    table = table_of("part", "ms a step", "share", "useful FLOPs", "TFLOP/s", "")
    for part in PARTS:
        seconds, flops = row[f"time/{part}"] * step, useful.get(part, 0.0)
        speed = f"{flops / seconds / 1e12:.3g}" if flops and seconds else ""
        share = f"{row[f'time/{part}']:.1%}"
        table.add_row(part, f"{1000 * seconds:.4g}", share, amount(flops) if flops else "", speed, EXPLAINED[part])
    table.caption = "of the first rank; useful FLOPs: of all ranks"
    return table


def useful_flops(found: Mapping[str, Any]) -> dict[str, float]:
    """Of one step by part of the time: a backward pass is two thirds of what student and losses count."""
    counts = found["counts"]
    flops = {name: Flops(each).of(counts) for name, each in found["flops"].items()}
    trained = flops["student"] + flops["losses"]
    return {"teacher": flops["teachers"], "forward": trained / 3, "backward": 2 * trained / 3}


def operators_table(found: Mapping[str, Any]) -> Table:
    """What the profiler saw most of."""
    table = table_of("operator", "calls a step", "ms a step", "share")
    for row in found["operators"]:
        share = row["seconds"] / found["step_seconds"]
        table.add_row(Text(row["name"][:60]), f"{row['calls']:.4g}", f"{1000 * row['seconds']:.4g}", f"{share:.1%}")
    table.caption = "by its own time, without what it calls; of the first rank"
    return table


def memory_table(found: Mapping[str, Any]) -> Table:
    table = table_of("memory", "resident" if found["device"] == "cpu" else "host, peak: device")
    for name, words in MEMORY.items():
        table.add_row(words, size(1e9 * found["memory"][name]))
    table.caption = "of the first rank"
    return table

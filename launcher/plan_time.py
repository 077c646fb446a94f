"""How long a run will take: by the speed of a matrix product, by real steps, and how it was when it ran."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from distill_core.config import RunConfig, trained
from distill_core.frozen import DTYPES
from distill_core.peak import product_flops
from launcher import devices
from launcher.plan import Plan, StagePlan
from launcher.plan_fit import span, wire_bytes
from launcher.plan_losses import table_of
from launcher.rehearsal import measured
from launcher.units import amount, size
from launcher.watch import duration

EFFICIENCY = 0.4
"""Share of a plain matrix product's speed that a training step keeps; 0.3 to 0.5 in our runs on CPUs."""
PROBE_SECONDS = 0.4


@dataclass(frozen=True)
class Speed:
    """FLOP/s of a plain matrix product on one unit of this machine: a GPU, or a core."""

    flops: float
    units: int
    gpu: bool
    name: str


def probe(stage: StagePlan, config: RunConfig) -> Speed:
    """A short matrix product of the shape that costs the stage most.

    On a CPU with one thread, times the cores: several threads wait for each other when the machine is busy.
    """
    model = stage.teacher if stage.teacher is not None else stage.student
    training = next(s.training for s in trained(config.stages) if s.name == stage.name)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = DTYPES[training.precision]
    shape = (min(4096, training.micro_batch_tokens), model.hidden_size, model.intermediate_size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        flops = product_flops(shape, dtype, device, PROBE_SECONDS)
    finally:
        torch.set_num_threads(threads)
    if cuda:
        return Speed(flops, torch.cuda.device_count(), True, torch.cuda.get_device_name(0))
    return Speed(flops, devices.cores(), False, f"{devices.cores()} CPU cores")


def time_lines(plan: Plan, speeds: list[Speed]) -> list[str]:
    """The estimate of training time: on a CPU the ranks share all cores, on GPUs each has its own."""
    seconds = [
        seconds_of(stage, speed, units_of(plan, speed)) for stage, speed in zip(plan.stages, speeds, strict=True)
    ]
    parts = [f"{stage.name} {duration(each)}" for stage, each in zip(plan.stages, seconds, strict=True)]
    flops = sum(stage.flops for stage in plan.stages)
    return [
        f"training: {amount(flops)}FLOP; estimate {duration(sum(seconds))} here ({speeds[0].name}): {', '.join(parts)}",
        "  + preparation, evaluation and start-up",
    ]


def units_of(plan: Plan, speed: Speed) -> int:
    return min(plan.ranks, speed.units) if speed.gpu else speed.units


def seconds_of(stage: StagePlan, speed: Speed, units: int) -> float:
    return stage.flops / (speed.flops * EFFICIENCY * units)


def network_lines(plan: Plan) -> list[str]:
    """Bytes that ranks send in a step; none with one rank alone."""
    if plan.ranks == 1:
        return []
    sent = ", ".join(f"{stage.name} {size(wire_bytes(stage, plan.ranks))}" for stage in plan.stages)
    return [f"network: each rank sends in a step: {sent}"]


# ---------------------------------------------------------------- real steps


MEASURED_STEPS = 5


def measured_steps(config: RunConfig, plan: Plan) -> dict[str, dict[str, Any]]:
    """Some real steps of each stage on this machine, with its ranks, at its own shape; by the stage's name.

    Raises:
        DataError: the data is not prepared.
        LaunchError: a rank failed.
    """
    return {stage.name: measured(config, stage.name, plan.ranks, MEASURED_STEPS) for stage in plan.stages}


def expected_seconds(
    plan: Plan, stage: StagePlan, steps: Mapping[str, Any], speeds: list[Speed] | None
) -> float | None:
    """Of a step: measured, else estimated, else not known."""
    if stage.name in steps:
        return float(steps[stage.name]["step_seconds"])
    if speeds is None:
        return None
    speed = speeds[plan.stages.index(stage)]
    return seconds_of(stage, speed, units_of(plan, speed)) / stage.steps


def expected_bytes(stage: StagePlan, steps: Mapping[str, Any]) -> float:
    """At the peak: measured, else planned."""
    return 1e9 * steps[stage.name]["memory"]["peak"] if stage.name in steps else stage.memory.total


def steps_table(plan: Plan, steps: Mapping[str, Any], speeds: list[Speed] | None) -> Table | None:
    """What the steps have taken, beside what was planned for them."""
    if not steps:
        return None
    table = table_of("measured", "a step", "planned", "peak memory", "planned", "all steps", "device-hours")
    for stage in plan.stages:
        seconds, peak = float(steps[stage.name]["step_seconds"]), expected_bytes(stage, steps)
        planned = expected_seconds(plan, stage, {}, speeds)
        said = "" if planned is None else f"{span(planned)} ({off(planned, seconds)})"
        whole = stage.steps * seconds
        table.add_row(
            Text(stage.name),
            span(seconds),
            said,
            size(peak),
            f"{size(stage.memory.total)} ({off(stage.memory.total, peak)})",
            duration(whole),
            f"{whole * plan.ranks / 3600:.3g}",
        )
    table.caption = f"median of {MEASURED_STEPS} real steps on this machine, {plan.ranks} ranks"
    return table


def off(planned: float, found: float) -> str:
    """How far a plan was from what was found."""
    return f"{planned / found - 1:+.0%}"


# ---------------------------------------------------------------- the last run


def last_run_table(config: RunConfig, plan: Plan, steps: Mapping[str, Any], speeds: list[Speed] | None) -> Table | None:
    """How far the plan is from what the run has met so far; None where it has not run yet."""
    table = table_of("last run", "a step", "expected", "peak memory", "expected")
    for stage in plan.stages:
        index = config.stage_index(stage.name)
        assert index is not None
        rows = read_metrics(config.stage_folder(index) / "metrics.jsonl")
        if not rows:
            continue
        seconds = statistics.median(row["speed/step_seconds"] for row in rows)
        peak = 1e9 * max(row["memory/gigabytes"] for row in rows)
        planned, bytes_ = expected_seconds(plan, stage, steps, speeds), expected_bytes(stage, steps)
        said = "" if planned is None else f"{span(planned)} ({off(planned, seconds)})"
        table.add_row(Text(stage.name), span(seconds), said, size(peak), f"{size(bytes_)} ({off(bytes_, peak)})")
    table.caption = "of the first rank; the process of a run goes on from stage to stage, and so does its peak memory"
    return table if table.rows else None


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a stage's curves that tell its speed; [] where it has not run."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
            if "speed/step_seconds" in row and "memory/gigabytes" in row:
                rows.append(row)
        except (ValueError, TypeError):  # a line torn by a crash
            continue
    return rows

"""How long a run will take: by the speed of a matrix product, by real micro-steps, and how it was when it ran."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text

from distill_core.config import RunConfig
from distill_core.frozen import DTYPES
from distill_core.peak import product_flops
from launcher import devices
from launcher.plan import Plan, StagePlan
from launcher.plan_devices import Place
from launcher.plan_fit import fits, scale_table, span, wire_bytes
from launcher.plan_losses import table_of
from launcher.plan_probe import Probed, probed
from launcher.plan_stopping import at_most
from launcher.units import amount, size
from launcher.watch import duration

EFFICIENCY = 0.4
"""Share of a plain matrix product's speed that a training step keeps; 0.3 to 0.5 in our runs on CPUs."""
PROBE_SECONDS = 0.4
SHOWN = ("speed/step_seconds", "speed/tokens_per_second", "memory/gigabytes")
"""Of a run's curves."""


def product_speed(stage: StagePlan, place: Place) -> float:
    """FLOP/s of a matrix product on what one rank has: by the data sheet, or measured in the shape that costs most.

    On a CPU with one thread, times a rank's cores: several threads wait for each other when the machine is busy.
    """
    if place.device.sheet:
        return place.device.sheet[stage.training.precision]
    model = stage.teacher if stage.teacher is not None else stage.student
    cuda = torch.cuda.is_available()
    dtype = DTYPES[stage.training.precision]
    shape = (min(4096, stage.training.micro_batch_tokens), model.hidden_size, model.intermediate_size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        flops = product_flops(shape, dtype, torch.device("cuda" if cuda else "cpu"), PROBE_SECONDS)
    finally:
        torch.set_num_threads(threads)
    return flops if cuda else flops * devices.cores() / (place.ranks // place.nodes)


@dataclass(frozen=True)
class Times:
    """Seconds of the stages' steps.

    Args:
        speeds: FLOP/s of a plain matrix product on one rank's device, by stage; {} where nothing is to be estimated.
        probed: real micro-steps, by stage.
        bandwidth: bytes/s between two devices, other than the ranks here.
    """

    place: Place
    speeds: Mapping[str, float]
    probed: Mapping[str, Probed]
    bandwidth: float

    def seconds(self, stage: StagePlan, ranks: int | None = None) -> float | None:
        """Of a step on so many ranks (default: the plan's); None where nothing is known."""
        count = ranks or stage.ranks
        sent = wire_bytes(stage, count) / self.bandwidth
        if stage.name in self.probed:
            taken = self.probed[stage.name]
            wall = taken.seconds(stage, stage.tokens_per_step / count).wall
            return wall if taken.ranks == count else wall + sent
        if stage.name in self.speeds:
            return stage.flops_per_step / (count * self.speeds[stage.name] * EFFICIENCY) + sent
        return None

    def tokens_per_second(self, stage: StagePlan) -> float | None:
        seconds = self.seconds(stage)
        return stage.tokens_per_step / seconds if seconds else None

    @property
    def words(self) -> str:
        """Where the figures come from."""
        words = []
        if self.probed:
            one = next(iter(self.probed.values()))
            words.append(f"from real micro-steps of {one.ranks} rank{'s' if one.ranks > 1 else ''} on this machine")
        if self.speeds:
            of_whom = f"{', '.join(self.speeds)}: " if self.probed else ""
            speed = " and ".join(sorted({f"{amount(flops)}FLOP/s" for flops in self.speeds.values()}))
            found = "by the data sheet" if self.place.device.sheet else "of a matrix product here"
            words.append(f"{of_whom}{EFFICIENCY:g} of the {speed} {found}, which may be off by a factor of two")
        return "; ".join(words)


def times_of(config: RunConfig, plan: Plan, place: Place, estimate: bool, measure: bool, bandwidth: float) -> Times:
    """``estimate``: by matrix products; ``measure``: by real micro-steps of all stages that fit this machine.

    Raises:
        LaunchError: a rank failed.
    """
    wanted = [stage for stage in plan.stages if fits(stage, place.device)] if measure else []
    steps = probed(config, plan, wanted, place.ranks // place.nodes) if wanted else {}
    others = [stage for stage in plan.stages if stage.name not in steps] if estimate else []
    return Times(place, {stage.name: product_speed(stage, place) for stage in others}, steps, bandwidth)


def time_table(plan: Plan, times: Times) -> Table | None:
    """How long each stage takes; None where nothing is known."""
    table = table_of("time", "a step", "tokens/s", "useful TFLOP/s", "all steps", "device-hours")
    whole = 0.0
    for stage in plan.stages:
        seconds = times.seconds(stage)
        if seconds is None:
            continue
        whole += seconds * stage.steps
        table.add_row(
            Text(stage.name),
            span(seconds),
            amount(stage.tokens_per_step / seconds),
            f"{stage.flops_per_step / seconds / 1e12:.3g}",
            f"{at_most(stage)}{duration(seconds * stage.steps)}",
            f"{seconds * stage.steps * plan.ranks / 3600:.3g}",
        )
    if not table.rows:
        return None
    most = next(filter(None, map(at_most, plan.stages)), "")
    table.add_row("all", "", "", "", f"{most}{duration(whole)}", f"{whole * plan.ranks / 3600:.3g}")
    table.caption = Text(
        f"{times.words}; a device is what one rank has; + preparation, evaluation, checkpoints and start-up"
    )
    return table


def paper(plan: Plan, times: Times, counts: Sequence[int]) -> list[Table]:
    """The table of other numbers of devices, by what a device does here."""
    if not counts or not (times.probed or times.speeds):
        return []
    words = f"{times.words}; {size(times.bandwidth)}/s between two devices, of which nothing is hidden"
    return [scale_table(plan, counts, times.seconds, words)]


def network_lines(plan: Plan) -> list[str]:
    """Bytes that ranks send in a step; none with one rank alone."""
    if plan.ranks == 1:
        return []
    sent = ", ".join(f"{stage.name} {size(wire_bytes(stage, plan.ranks))}" for stage in plan.stages)
    return [f"network: each rank sends in a step: {sent}"]


def off(planned: float, found: float) -> str:
    """How far a plan was from what was found."""
    return f"{planned / found - 1:+.0%}"


# ---------------------------------------------------------------- the last run


def last_run_table(config: RunConfig, plan: Plan, times: Times) -> Table | None:
    """How far the plan is from what the run has met so far; None where it has not run yet."""
    table = table_of("last run", "a step", "planned", "tokens/s", "planned", "peak memory", "planned")
    for stage in plan.stages:
        index = config.stage_index(stage.name)
        assert index is not None
        rows = read_metrics(config.stage_folder(index) / "metrics.jsonl")
        if not rows:
            continue
        seconds = statistics.median(row["speed/step_seconds"] for row in rows)
        rate = statistics.median(row["speed/tokens_per_second"] for row in rows)
        peak = 1e9 * max(row["memory/gigabytes"] for row in rows)
        planned, fast, filled = times.seconds(stage), times.tokens_per_second(stage), stage.memory.total
        table.add_row(
            Text(stage.name),
            span(seconds),
            "" if planned is None else f"{span(planned)} ({off(planned, seconds)})",
            amount(rate),
            "" if fast is None else f"{amount(fast)} ({off(fast, rate)})",
            size(peak),
            f"{size(filled)} ({off(filled, peak)})",
        )
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
            if all(name in row for name in SHOWN):
                rows.append(row)
        except (ValueError, TypeError):  # a line torn by a crash
            continue
    return rows

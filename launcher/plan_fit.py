"""Does a run fit on its devices, and what should be chosen so that it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from configs.errors import ConfigError
from launcher.plan import Plan, StagePlan
from launcher.plan_devices import Device
from launcher.plan_losses import table_of
from launcher.plan_options import WORDS
from launcher.units import amount, size

SPARE = 0.1
"""Of a device's memory that is left free: for what no plan sees, such as fragments."""


@dataclass(frozen=True)
class Advice:
    """A setting under which a stage fits: the lowest ZeRO stage, with the largest micro-batch."""

    zero_stage: int
    micro_batch_tokens: int


def fits(stage: StagePlan, device: Device) -> bool:
    return stage.memory.total <= (1 - SPARE) * device.memory


def advise(stage: StagePlan, device: Device, ranks: int) -> Advice | None:
    """The lowest ZeRO stage that leaves room for the longest sequence; None where none does.

    ZeRO divides by the ranks, so that one rank alone has nothing to choose.
    """
    longest, wanted = stage.longest, stage.tokens_per_step / ranks
    for zero in (stage.training.zero_stage,) if ranks == 1 else (1, 2, 3):
        memory, room = stage.memory_at(zero), (1 - SPARE) * device.memory
        tokens = memory.most_tokens(room)
        if tokens >= longest and memory.process + memory.loading <= room:
            return Advice(zero, max(longest, math.floor(min(tokens, math.ceil(wanted)))))
    return None


def fit_table(plan: Plan, device: Device) -> Table:
    """Each stage's memory against the device, and what to choose."""
    table = table_of("stage", "needs", f"of {size(device.memory)}", "choose")
    for stage in plan.stages:
        share = f"{stage.memory.total / device.memory:.0%}" + ("" if fits(stage, device) else " too much")
        table.add_row(Text(stage.name), size(stage.memory.total), share, said(advise(stage, device, plan.ranks)))
    table.caption = Text(
        f"on one rank ({device.name}); to choose: the lowest zero_stage that fits, and up to how many "
        f"micro_batch_tokens; {SPARE:.0%} is left free"
    )
    return table


def said(advice: Advice | None) -> str:
    if advice is None:
        return "more or larger devices, or a smaller model"
    return f"zero_stage {advice.zero_stage}, micro_batch_tokens up to {advice.micro_batch_tokens:,}"


def require_fit(plan: Plan, device: Device) -> None:
    """Raise ConfigError (exit status 64: settings that cannot work here) unless every stage fits."""
    bad = [stage for stage in plan.stages if not fits(stage, device)]
    if not bad:
        return
    lines = [
        f"stage {stage.name!r} needs {size(stage.memory.total)} on one rank, where {size((1 - SPARE) * device.memory)} "
        f"of {size(device.memory)} may be filled ({device.name}); choose {said(advise(stage, device, plan.ranks))}."
        for stage in bad
    ]
    raise ConfigError("The run does not fit: " + " ".join(lines))


# ---------------------------------------------------------------- other numbers of devices


def wire_bytes(stage: StagePlan, ranks: int, zero: int | None = None, micro_steps: int | None = None) -> float:
    """Bytes that each rank sends in one step: a ring's all-reduce of the gradients in the training precision.

    ZeRO 2 sends the gradients of every micro-step on (half of that each) and gathers the weights once; ZeRO 3 gathers
    them for the forward and the backward pass of every micro-step, at most (a small student's stay in between).
    """
    zero = stage.training.zero_stage if zero is None else zero
    word = WORDS[stage.training.precision]
    each, micro_steps = (ranks - 1) / ranks * word * stage.trained, micro_steps or stage.micro_steps_on(ranks)
    if zero < 2:
        return 2.0 * each
    return (1.0 + micro_steps) * each if zero == 2 else 3.0 * micro_steps * each


def scale_table(
    plan: Plan, counts: Sequence[int], seconds_on: Callable[[StagePlan, int], float | None], words: str
) -> Table:
    """Steps of each stage on so many devices, on paper.

    Args:
        seconds_on: of a step of a stage on so many devices.
        words: where its figures come from.
    """
    table = table_of("stage", "devices", "step", "tokens/s", "time", "device-hours", "memory", "sent")
    for stage in plan.stages:
        for count in counts:
            seconds = seconds_on(stage, count)
            if count > stage.sequences / stage.steps or seconds is None:
                table.add_row(Text(stage.name), f"{count:,}", "fewer sequences in a step than devices")
                continue
            table.add_row(
                Text(stage.name),
                f"{count:,}",
                span(seconds),
                amount(stage.tokens_per_step / seconds),
                span(seconds * stage.steps),
                f"{seconds * stage.steps * count / 3600:.3g}",
                size(stage.memory_on(count).total),
                size(wire_bytes(stage, count)),
            )
    table.caption = Text(f"on paper: {words}; memory: of one device; sent: by each in one step")
    return table


def span(seconds: float) -> str:
    """A time in its unit."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= (length if unit == "s" else 2 * length):
            return f"{seconds / length:.3g} {unit}"
    return f"{1000 * seconds:.3g} ms"

"""A plan as tables, and the probe behind its estimate of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill_core.config import RunConfig, trained
from distill_core.peak import product_flops
from launcher import devices
from launcher.launch import ranks as ranks_of
from launcher.plan import Plan, StagePlan, make_plan
from launcher.plan_beside import beside_lines
from launcher.plan_cache import CachePlan, speed_up
from launcher.plan_losses import layered, layers_table, losses_table, table_of
from launcher.plan_teachers import teachers_table
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


def show(config: RunConfig, with_probe: bool, console: Console | None = None) -> None:
    """Print the plan of ``config``."""
    console = console or Console()
    plan = make_plan(config, ranks_of(config.launch.processes))
    console.print(Text(f"Plan of {plan.name!r} on {plan.ranks} rank{'s' if plan.ranks > 1 else ''}", "bold"))
    for problem in plan.data.problems:
        console.print(Text(f"missing: {problem}", "yellow"))
    for line in data_lines(plan):
        console.print(Text(line))
    layers = [layers_table(stage) for stage in layered(plan.stages)]
    tables = (models_table(plan), teachers_table(plan), costs_table(plan), memory_table(plan), losses_table(plan))
    for table in (*tables, *layers):
        if table is not None:
            console.print()
            console.print(table)
    speeds = [probe(stage, config) for stage in plan.stages] if with_probe else None
    for shown in cache_tables(plan, speeds):
        console.print()
        console.print(shown)
    console.print()
    for line in [*own_tokens_lines(plan), *beside_lines(config, plan)]:
        console.print(Text(line))
    if speeds is not None:
        for line in time_lines(plan, speeds):
            console.print(Text(line))
    console.print(Text("All figures but parameters, steps and sequences are estimates.", "dim"))


# ---------------------------------------------------------------- tables


def data_lines(plan: Plan) -> list[str]:
    data = plan.data
    if not data.has_text:
        lines = ["data: no corpus, all stages read labelled rows"]
    elif data.tokens is None or data.sequences is None:
        lines = ["data: not prepared yet, and how much it will be is not known beforehand"]
    else:
        how = "counted" if data.exact else "estimated from the sizes of the sources; `distill prep` counts them"
        lines = [f"data: {amount(data.tokens)} training tokens in {amount(data.sequences)} sequences ({how})"]
    disk = [f"checkpoints and models {size(sum(s.checkpoint_bytes for s in plan.stages))}"]
    kept = [stage.cache.all_bytes for stage in plan.stages if stage.cache is not None and stage.cache.chosen]
    if kept:
        disk.append(f"teacher outputs {known(None if None in kept else sum(b or 0 for b in kept), size)}")
    if plan.shard_bytes is not None:
        disk.insert(0, f"shards {size(plan.shard_bytes)}")
    return [*lines, f"vocabulary: {data.vocab_size:,} tokens", f"disk: {', '.join(disk)}"]


def own_tokens_lines(plan: Plan) -> list[str]:
    """For each stage its teachers that do not read the student's tokens."""
    return [
        f"{stage.name}: the rows are tokenised a second time for {', '.join(stage.own_tokens)}"
        for stage in plan.stages
        if stage.own_tokens
    ]


def models_table(plan: Plan) -> Table:
    table = table_of("stage", "model", "layers x width", "parameters", "published")
    for stage in plan.stages:
        rows = [(f"teacher ({teacher.source})", teacher.shape) for teacher in stage.teachers]
        for label, shape in [*rows, ("student" if rows else "model", stage.student)]:
            form = f"{shape.num_hidden_layers} x {shape.hidden_size}"
            counts = (f"{shape.parameters():,}", f"{shape.published_parameters() / 1e6:.2f}M")
            table.add_row(Text(stage.name), Text(label), form, *counts)
        if stage.projections:
            table.add_row(Text(stage.name), "projections", "", f"{stage.projections:,}", "")
    table.caption = "parameters: with the tied masked-LM head; published: with a pooler instead, as on model cards"
    return table


def costs_table(plan: Plan) -> Table:
    table = table_of("stage", "steps", "micro-steps", "sequences", "tokens", "epochs", "FLOPs/token")
    for stage in plan.stages:
        counts = (f"{stage.steps:,}", str(stage.micro_steps), f"{stage.sequences:,}", amount(stage.tokens))
        epochs = "?" if stage.epochs is None else f"{stage.epochs:.1f}"
        table.add_row(Text(stage.name), *counts, epochs, amount(stage.flops_per_token))
    table.caption = "micro-steps: forward/backward passes of one step on each rank"
    if any(stage.epochs is None for stage in plan.stages):
        table.caption += "; ?: not known before the data is there (a stage counted in epochs shows one step)"
    return table


def memory_table(plan: Plan) -> Table:
    """Bytes on one rank, without what Python and the libraries take by themselves."""
    heads = {"weights": "weights", "gradients": "grads", "optimizer": "adam", "teacher": "teacher"}
    heads |= {"activations": "act.", "logits": "logits"}
    table = table_of("memory", "total", *heads.values())
    for stage in plan.stages:
        values = [stage.memory.total, *(getattr(stage.memory, part) for part in heads)]
        table.add_row(Text(stage.name), *(size(value) if value else "" for value in values))
    table.caption = (
        "on one rank, beside some 0.5 GB for Python and its libraries; act.: activations kept for the backward pass"
    )
    return table


def cache_tables(plan: Plan, speeds: list[Speed] | None) -> list[Table | Text]:
    """For each distill stage on the corpus: its teachers live or cached, or why they cannot be cached."""
    found: list[Table | Text] = []
    for number, stage in enumerate(plan.stages):
        if stage.cache is None:
            continue
        if stage.cache.refused is not None:
            found.append(Text(f"{stage.name}: the teacher cannot be cached: {stage.cache.refused}."))
            continue
        rate = None
        if speeds is not None:
            speed = speeds[number]
            rate = speed.flops * EFFICIENCY * units_of(plan, speed) / stage.cache.step_cached
        found.append(cache_table(stage.name, stage.cache, rate))
    return found


def cache_table(name: str, cache: CachePlan, tokens_per_second: float | None) -> Table:
    table = table_of(f"{name}: teacher", "live", "cached")
    cost, views = cache.cost, f"{cache.views} mask view{'s' if cache.views > 1 else ''}"
    table.add_row("FLOPs/token, teacher", amount(cost.live), amount(cost.cached))
    table.add_row("FLOPs/token, step", amount(cache.step_live), amount(cache.step_cached))
    faster = f"{speed_up(cache.step_live, cache.step_cached):.3g}x"
    table.add_row("speed-up of a step, at most", "", faster)
    if cache.reuse is not None:
        table.add_row("speed-up with writing it, at most", "", f"{speed_up(cache.step_live, cache.stage_cached):.3g}x")
    table.add_row("disk", "", f"{size(cost.bytes)}/token, {known(cache.view_bytes, size)} a view")
    table.add_row("disk in all", "", f"{known(cache.all_bytes, size)}, {views}")
    pays = "never pays" if cache.pays_from is None else f"pays from {cache.pays_from}"
    table.add_row("readings of a masked copy", "", f"{known(cache.reuse, '{:.2g}'.format)} ({pays})")
    if tokens_per_second is not None:
        rate = f"{size(cache.read_rate(tokens_per_second))}/s at {amount(tokens_per_second)} tokens/s"
        table.add_row("reading from disk", "", rate)
    table.caption = (
        f"this run: {'cached' if cache.chosen else 'live (teacher_cache: {} caches)'}; at most: by FLOPs; a "
        "narrow student reaches less of the peak speed than a wide teacher, so expect less"
    )
    return table


def known(value: float | None, form: Callable[[float], str]) -> str:
    return "?" if value is None else form(value)


# ---------------------------------------------------------------- time


def probe(stage: StagePlan, config: RunConfig) -> Speed:
    """A short matrix product of the shape that costs the stage most.

    On a CPU with one thread, times the cores: several threads wait for each other when the machine is busy.
    """
    model = stage.teacher if stage.teacher is not None else stage.student
    training = next(s.training for s in trained(config.stages) if s.name == stage.name)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = torch.bfloat16 if training.precision == "bf16" else torch.float32
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

"""A plan as tables, and the probe behind its estimate of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs.cluster import ClusterConfig
from configs.errors import ConfigError
from distill_core.config import RunConfig
from distill_core.precision import decided_by, here, undecided
from launcher.plan import Plan, make_plan
from launcher.plan_beside import beside_lines
from launcher.plan_cache import CachePlan, speed_up
from launcher.plan_devices import Place, place_of
from launcher.plan_fit import fit_table, require_fit
from launcher.plan_losses import layered, layers_table, losses_table, table_of
from launcher.plan_stopping import at_most, stopping_lines
from launcher.plan_teachers import teachers_table
from launcher.plan_time import Times, last_run_table, network_lines, paper, time_table, times_of
from launcher.units import amount, size

COUNTS = (1, 8, 64, 512)


@dataclass(frozen=True)
class Wanted:
    """What a plan is to show, and for where.

    ``probe``: measure a matrix product; ``measure``: take real micro-steps; ``require_fit``: refuse a run that does
    not fit; ``counts``: of devices, for a table on paper; ``bandwidth``: bytes/s between two of them; ``cluster``:
    where the run is to be, and ``device``: on what (both: default this machine).
    """

    probe: bool = True
    measure: bool = False
    require_fit: bool = False
    counts: tuple[int, ...] = COUNTS
    bandwidth: float = 25e9
    cluster: ClusterConfig | None = None
    device: str | None = None


def show(config: RunConfig, wanted: Wanted, console: Console | None = None) -> None:
    """Print the plan of ``config``.

    Raises:
        ConfigError: it does not fit, and must; or steps are to be measured of another machine.
    """
    console = console or Console()
    place = place_of(config.launch.processes, wanted.cluster, wanted.device)
    if wanted.measure and not place.here:
        raise ConfigError("--measure takes steps here, and --cluster or --device names other machines; leave one out.")
    config, decided = planned(config, place)
    plan = make_plan(config, place.ranks, place.device.gpu)
    console.print(Text(f"Plan of {plan.name!r} on {place.words}", "bold"))
    for line in decided:
        console.print(Text(line))
    for problem in [*plan.data.problems, *place.notes]:
        console.print(Text(f"missing: {problem}", "yellow"))
    for line in data_lines(plan):
        console.print(Text(line))
    if wanted.measure:
        console.print(Text("taking real micro-steps of each stage ...", "dim"))
    times = times_of(config, plan, place, wanted.probe, wanted.measure, wanted.bandwidth)
    shown: list[Table | Text | None] = [models_table(plan), teachers_table(plan), costs_table(plan), memory_table(plan)]
    shown += [fit_table(plan, place.device), losses_table(plan), *map(layers_table, layered(plan.stages))]
    shown += [*cache_tables(plan, times), time_table(plan, times), *paper(plan, times, wanted.counts)]
    lines = [*stopping_lines(plan), *own_tokens_lines(plan), *beside_lines(config, plan), *network_lines(plan)]
    shown += [Text("\n".join(lines)) if lines else None, last_run_table(config, plan, times)]
    for part in shown:
        if part is not None:
            console.print()
            console.print(part)
    console.print(Text("All figures but parameters, steps and sequences are estimates.", "dim"))
    if wanted.require_fit:
        require_fit(plan, place.device)


def planned(config: RunConfig, place: Place) -> tuple[RunConfig, list[str]]:
    """With the device's precision where it is ``auto`` and the run has not started; and a line that says so."""
    names = undecided(config)
    if not names:
        return config, []
    device = place.device
    precision = device.precision or here()
    on = "this machine" if device.precision is None else device.name
    line = f"precision: auto is {precision} on {on} ({', '.join(names)}); the run's own devices decide"
    return decided_by(config, precision), [line]


def device_counts(text: str) -> tuple[int, ...]:
    """``1,8,64`` as numbers.

    Raises:
        ConfigError: something is no number of devices.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() and int(word) for word in words):
        raise ConfigError(f"--devices {text}: give numbers of devices with commas between them, as in 1,8,64,512.")
    return tuple(map(int, words))


# ---------------------------------------------------------------- tables


def data_lines(plan: Plan) -> list[str]:
    data = plan.data
    if not data.has_text:
        lines = ["data: no corpus, all stages read labelled rows"]
    elif data.tokens is None or data.sequences is None:
        lines = ["data: not prepared yet, and how much it will be is not known beforehand"]
    else:
        how = (
            "counted"
            if data.exact
            else "estimated from sizes and beginnings of the sources; `distill prep` counts them"
        )
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
        steps = f"{at_most(stage)}{stage.steps:,}"
        counts = (steps, str(stage.micro_steps), f"{stage.sequences:,}", amount(stage.tokens))
        epochs = "?" if stage.epochs is None else f"{stage.epochs:.1f}"
        table.add_row(Text(stage.name), *counts, epochs, amount(stage.flops_per_token))
    table.caption = "micro-steps: forward/backward passes of one step on each rank"
    if any(map(at_most, plan.stages)):
        table.caption += "; at most: with all that follows from it, as early stopping may end the stage"
    if any(stage.epochs is None for stage in plan.stages):
        table.caption += "; ?: not known before the data is there (a stage counted in epochs shows one step)"
    return table


PARTS_OF_MEMORY = {
    "total": "all",
    "teacher": "teachers",
    "weights": "student's weights",
    "gradients": "gradients",
    "optimizer": "fp32 masters, Adam",
    "activations": "activations",
    "logits": "logits",
    "workspace": "kernels, loose heap",
    "process": "Python, libraries",
    "loading": "reading the teachers",
}


def memory_table(plan: Plan) -> Table:
    """Bytes on one rank, by part; parts that no stage has are left out."""
    memories = [stage.memory for stage in plan.stages]
    table = table_of("memory of a rank", *(stage.name for stage in plan.stages))
    for part, words in PARTS_OF_MEMORY.items():
        values = [getattr(memory, part) for memory in memories]
        if any(values):
            table.add_row(words, *(size(value) if value else "" for value in values))
    captions = ["activations, logits: alive at the peak of a micro-step, as simulated"]
    if any(memory.loading for memory in memories):
        captions.append("reading the teachers comes before all else but Python: the larger of the two counts")
    alone = [stage.name for stage in plan.stages if not stage.peak.complete]
    if alone:
        captions.append(f"without what the losses of {', '.join(alone)} take by themselves")
    table.caption = "; ".join(captions)
    return table


def cache_tables(plan: Plan, times: Times) -> list[Table | Text]:
    """For each distill stage on the corpus: its teachers live or cached, or why they cannot be cached."""
    found: list[Table | Text] = []
    for stage in plan.stages:
        if stage.cache is None:
            continue
        if stage.cache.refused is not None:
            found.append(Text(f"{stage.name}: the teacher cannot be cached: {stage.cache.refused}."))
            continue
        rate = times.tokens_per_second(stage)  # as the run file has it; a step with cached teachers has fewer FLOPs
        faster = stage.flops_per_token / stage.cache.step_cached
        found.append(cache_table(stage.name, stage.cache, None if rate is None else rate * faster))
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

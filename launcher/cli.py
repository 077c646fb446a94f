"""The ``distill`` command: one function per verb. Heavy imports happen inside the verbs, for a quick ``--help``."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NoReturn

from launcher.needed import needed, words

with needed():
    import typer

    from configs.errors import Requeue, explained
    from launcher.signals import Stopped, stop_signals
    from launcher.startup import collect_less

USAGE, BUG = 64, 70

app = typer.Typer(
    name="distill",
    help="From raw text to a small encoder, in one command. Each verb takes a run file (or the name of a packaged "
    "one, or a run folder) and a.b=c overrides.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(no_args_is_help=True, help="Look at prepared data, check it, write it out.")
app.add_typer(data_app, name="data")

Run = Annotated[str, typer.Argument(metavar="RUN.yaml", help="Run file, packaged name, or run folder.")]
OptionalRun = Annotated[str | None, typer.Argument(metavar="[RUN.yaml]", help="Also look at its output folder.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Single settings, over the run file.")
]
StageOption = Annotated[str | None, typer.Option(metavar="STAGE", help="Default: the last stage.")]
Split = Annotated[str, typer.Option(help="train or held_out")]


class Current:
    """The run folder at work, for a crash log."""

    folder: Path | None = None


@app.command()
def run(
    run_file: Run,
    overrides: Overrides = None,
    only: Annotated[str | None, typer.Option(metavar="STAGE", help="Only this stage.")] = None,
    cluster: Annotated[str | None, typer.Option(metavar="FILE", help="Cluster file: not this machine alone.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Check everything, print what would be started, stop.")] = False,
) -> None:
    """Everything: prepare the data, train the stages, evaluate, export, report. Continues where it stopped.

    A run file with a `sweep` is several runs, one after another or `sweep.at_once` at the same time."""
    from configs.cluster import load_cluster
    from launcher import launch, scheduled, sweep
    from launcher.runfile import open_run

    where = None if cluster is None else load_cluster(cluster)
    several = sweep.open_sweep(run_file, overrides or [])
    if several is not None:
        Current.folder = several.folder
        if where is None and not dry_run:
            scheduled.refuse_several(os.environ)
        if dry_run:
            typer.echo(sweep.dry_run(several, only, where))
        else:
            with requeued():
                sweep.run(several, only, where, cluster)
        return
    config = open_run(run_file, overrides or [])
    Current.folder = config.folder
    if dry_run:
        typer.echo(launch.dry_run(config, only, where))
    elif where is None and scheduled.is_rank(os.environ):
        scheduled.leave(config, only)
    else:
        with requeued():
            launch.launch(config, only, where)


@contextlib.contextmanager
def requeued() -> Iterator[None]:
    """A scheduler's signals before there are ranks: what is prepared so far is kept."""
    try:
        yield
    except Stopped as stopped:
        if stopped.signum not in (signal.SIGTERM, signal.SIGUSR1):
            raise
        raise Requeue(f"Stopped by {stopped}, before the ranks had started. The same command continues.") from None


@app.command()
def prep(
    run_file: Run,
    overrides: Overrides = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="FILE", help="Cluster file: not this machine's processes.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print what would be started, e.g. Slurm's scripts; stop.")] = False,
) -> None:
    """Only the data: raw files to shards. Looks at `data:` alone and needs no PyTorch."""
    # Before numpy comes: it is not asked for matrix products here, and a process without threads can be forked.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from configs.cluster import load_cluster
    from launcher import launch, pins, sweep
    from launcher.lock import folder_lock

    configs = [pins.settled(config) for config in sweep.preps(run_file, overrides or [])]
    where = None if cluster is None else load_cluster(cluster)
    for config in configs:
        launch.check_sources(config.data, config.data_folder)
    for config in configs:
        if dry_run:
            typer.echo(launch.describe_prep(config.data, config.data_folder, where))
            continue
        Current.folder = config.folder
        with folder_lock(config.folder):
            launch.prepare_data(config.data, config.data_folder, where)


@data_app.command()
def inspect(
    run_file: Run,
    overrides: Overrides = None,
    count: Annotated[int, typer.Option(min=1, help="Sequences to show.")] = 3,
    first: Annotated[int, typer.Option(min=0, help="Number of the first one.")] = 0,
    split: Split = "train",
    view: Annotated[int, typer.Option(min=0, help="Mask view: the masks of that epoch.")] = 0,
    duplicates: Annotated[int, typer.Option(min=0, help="Instead: clusters of duplicates to show.")] = 0,
) -> None:
    """Print samples with their words and whole-word masks drawn, and what preparation counted."""
    from launcher import data
    from launcher.runfile import open_prep

    if duplicates:
        data.duplicates(open_prep(run_file, overrides or []).data_folder, duplicates)
        return
    data.inspect(open_prep(run_file, overrides or []).data_folder, split, count, first, view)


@data_app.command()
def verify(run_file: Run, overrides: Overrides = None) -> None:
    """Hash every file again and compare with the manifests."""
    from launcher import data
    from launcher.runfile import open_prep

    data.verify(open_prep(run_file, overrides or []).data_folder)


@data_app.command()
def count(run_file: Run, overrides: Overrides = None) -> None:
    """Documents, characters, bytes and tokens of each file, and documents dropped by reason."""
    from launcher import data
    from launcher.runfile import open_prep

    data.count(open_prep(run_file, overrides or []).data_folder)


@data_app.command()
def convert(
    run_file: Run,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write, e.g. train.parquet.")],
    overrides: Overrides = None,
    to: Annotated[str | None, typer.Option(help="parquet, arrow or jsonl; default: by the name of OUT.")] = None,
    split: Split = "train",
) -> None:
    """Write the prepared sequences out for other tools: ids and word numbers, one row a sequence."""
    from launcher import data
    from launcher.runfile import open_prep

    data.convert(open_prep(run_file, overrides or []).data_folder, split, to, out)


@app.command()
def plan(
    run_file: Run,
    overrides: Overrides = None,
    probe: Annotated[bool, typer.Option(help="Measure a matrix product for a rough estimate of time.")] = True,
    measure: Annotated[bool, typer.Option(help="Take a few real micro-steps here, for a good estimate.")] = False,
    require_fit: Annotated[bool, typer.Option(help="Exit status 64 when it does not fit into memory.")] = False,
    cluster: Annotated[str | None, typer.Option(metavar="FILE", help="Plan for this cluster file's ranks.")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of each rank, if not as here: h200, a100, ... or GB:TFLOPS.")
    ] = None,
    device_counts: Annotated[
        str, typer.Option("--devices", metavar="N,N", help="For the table on paper; '' for none.")
    ] = "1,8,64,512",
    bandwidth: Annotated[float, typer.Option(min=0.001, help="GB/s between two devices.")] = 25.0,
) -> None:
    """What the run will cost, before it starts: parameters, tokens, steps, memory, disk, network, time. No network."""
    from configs.cluster import load_cluster
    from launcher import plan_view, sweep
    from launcher.runfile import open_run

    counts, where = plan_view.device_counts(device_counts), None if cluster is None else load_cluster(cluster)
    wanted = plan_view.Wanted(probe, measure, require_fit, counts, 1e9 * bandwidth, where, device)
    several = sweep.open_sweep(run_file, overrides or [])
    for config in [open_run(run_file, overrides or [])] if several is None else sweep.configs(several):
        plan_view.show(config, wanted)


@app.command()
def profile(
    run_file: Run,
    overrides: Overrides = None,
    stage: StageOption = None,
    steps: Annotated[int, typer.Option(min=1, help="To trace, behind two that are not.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Folder of the trace; default: RUN/profile/STAGE.")] = None,
) -> None:
    """Trace some real steps of a stage, and print where their time and memory go. Changes nothing of the run."""
    from launcher import profile as profiling
    from launcher.runfile import open_run

    profiling.show(open_run(run_file, overrides or []), stage, steps, out)


@app.command()
def doctor(
    run_file: OptionalRun = None,
    overrides: Overrides = None,
    hosts: Annotated[Path | None, typer.Option(metavar="FILE", help="A hostfile: examine these hosts, by ssh.")] = None,
    cluster: Annotated[str | None, typer.Option(metavar="FILE", help="Cluster file of kind hosts: likewise.")] = None,
    bill: Annotated[
        Path | None, typer.Option("--sbom", metavar="FILE", help="Instead: write what is installed, as CycloneDX JSON.")
    ] = None,
) -> None:
    """Is this machine fit for a run, or (--hosts, --cluster) are those together? Exit status 0 if so, 1 if not."""
    if bill is not None:
        from launcher import sbom

        typer.echo(f"Wrote {sbom.write(bill)} packages to {bill}")
        return
    from configs.cluster import load_cluster
    from configs.errors import ConfigError
    from launcher import doctor as examination
    from launcher.runfile import open_prep

    folder = open_prep(run_file, overrides or []).folder if run_file else Path("runs")
    if hosts is None and cluster is None:
        raise typer.Exit(examination.show(examination.examine(folder)))
    if hosts is not None and cluster is not None:
        raise ConfigError("Give either --hosts or --cluster, not both.")
    from launcher import doctor_hosts

    where = doctor_hosts.of_hostfile(hosts) if hosts is not None else load_cluster(str(cluster))
    findings = doctor_hosts.examine(folder, doctor_hosts.backend_of(where))
    raise typer.Exit(examination.show(findings, subject="These hosts are"))


@app.command()
def export(run_file: Run, overrides: Overrides = None, stage: StageOption = None) -> None:
    """Write a stage's student as a Hugging Face folder with its model card."""
    from distill_core.export import export_run
    from launcher.runfile import open_run

    config = open_run(run_file, overrides or [])
    Current.folder = config.folder
    typer.echo(f"Exported to {export_run(config, config.folder, stage)}")


@app.command()
def report(run_file: Run, overrides: Overrides = None) -> None:
    """Write report.html and report.md from what the run has measured; of a sweep, the comparison of its runs."""
    from distill_core.report import write_report
    from launcher import sweep
    from launcher.runfile import open_run

    several = sweep.open_sweep(run_file, overrides or [])
    if several is not None:
        Current.folder = several.folder
        typer.echo(f"Wrote {sweep.report(several, sweep.configs(several))}")
        return
    config = open_run(run_file, overrides or [])
    Current.folder = config.folder
    typer.echo(f"Wrote {write_report(config, config.folder)}")


@app.command()
def monitor(
    run_file: Run,
    overrides: Overrides = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="On 127.0.0.1.")] = 6006,
) -> None:
    """Start TensorBoard on 127.0.0.1, for this machine alone."""
    from launcher import curves, sweep
    from launcher.runfile import open_prep

    config, several = open_prep(run_file, overrides or []), sweep.open_sweep(run_file, overrides or [])
    names = [] if several is None else [run.name for run in several.runs]
    raise typer.Exit(curves.serve(config.folder, port, config.data_folder, names))


@app.command(name="try")
def try_models(
    run_file: Run,
    overrides: Overrides = None,
    sentence: Annotated[list[str] | None, typer.Option("--sentence", "-s", help="With one [MASK]; repeatable.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Guesses per model.")] = 5,
) -> None:
    """Fill-mask guesses of the run's models side by side."""
    from distill_core.evaluate import fill_mask
    from launcher import models
    from launcher.runfile import open_run

    config = open_run(run_file, overrides or [])
    sentences = sentence or config.evaluation.sentences or models.SENTENCES
    fill_mask.check_sentences(sentences)
    _show(fill_mask.table(fill_mask.compare(models.finished(config), sentences, top_k)))


def _show(what: object) -> None:
    from rich.console import Console

    Console().print(what)


# ---------------------------------------------------------------- exit status


def main() -> NoReturn:
    """The console script: 0 done, 64 usage, an error's own status, 128 + signal, 70 a defect of ours."""
    collect_less()
    if isinstance(sys.stdout, io.TextIOWrapper):  # bytes of a path that are no text are printed as they are
        sys.stdout.reconfigure(errors="surrogateescape")
    sys.exit(status_of(lambda: app(prog_name="distill")))


def status_of(command: Callable[[], object]) -> int:
    """Run ``command`` and turn however it ends into an exit status, with a message for the user."""
    try:
        with stop_signals():
            command()
        return 0
    except SystemExit as end:  # typer has printed its usage message already; its number for that is 2
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return USAGE if code == 2 else code
    except Stopped as stopped:
        _complain(f"Stopped by {stopped}. The same command continues where it stopped.")
        return stopped.exit_code
    except KeyboardInterrupt:
        _complain("Interrupted.")
        return 130
    except Exception as error:
        known = explained(error)
        missing = words(error) if isinstance(error, ImportError) else None
        _complain(missing or (_crash(error) if known is None else str(known)))
        return BUG if known is None else known.exit_code


def _complain(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=not sys.stderr.isatty())
    console.print(Text("distill: ", style="bold red").append(message, style="not bold default"))


def _crash(error: Exception) -> str:
    """Keep the traceback in the run folder, or print it when there is none."""
    text = "".join(traceback.format_exception(error))
    what = f"This is a defect of distill: {type(error).__name__}: {error}."
    try:
        if Current.folder is None:
            raise FileNotFoundError
        log = Current.folder / "logs" / "crash.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(text, encoding="utf-8")
    except OSError:
        return f"{text}{what} Please report it with the traceback above."
    return f"{what} Please report it with the traceback in {log}."


if __name__ == "__main__":
    main()

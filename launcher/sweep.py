"""Sweeps: a run file with a ``sweep`` block -> OUTPUT/NAME/0001-..., ordinary runs, one after another or some at once.

The sweep's folder holds ``config.yaml`` (the file as read, with its ``sweep``), the corpus that the runs share, and
the comparison. What is finished is known from the runs' own folders; there is no state beside them.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field

from configs import loader
from configs.cluster import ClusterConfig
from configs.errors import ConfigError, Requeue, ZhengliuError
from configs.loader import Config
from configs.sweep import Point, label, merged, points, take_sweep, validate_all
from data_prep.config import NAME, DataConfig, PrepConfig
from launcher import launch, pins, side_by_side
from launcher.lock import folder_lock
from launcher.runfile import open_prep, read
from launcher.side_by_side import Ended, Runs

if TYPE_CHECKING:
    from distill_core.config import RunConfig
    from launcher.backends import Backend
    from launcher.job import Job


class Place(Config):
    """Where the sweep lies; said in the words of a run file."""

    name: str = Field(pattern=NAME)
    output: str = "runs"


@dataclass(frozen=True)
class Sweep:
    """A sweep that has been read, its runs in their places but not yet validated."""

    source: str
    place: Place
    tree: dict[str, Any]
    """With the ``sweep`` block: what `config.yaml` keeps."""
    runs: list[Point]
    at_once: int = 1

    @property
    def folder(self) -> Path:
        return Path(self.place.output) / self.place.name


def open_sweep(run: str, overrides: Sequence[str] = ()) -> Sweep | None:
    """The sweep in a run file, or in a sweep's folder; None when it is a single run.

    Raises:
        ConfigError: with the place of each problem.
    """
    tree, origins, source = read(run, overrides)
    whole = copy.deepcopy(tree)
    block = take_sweep(tree, origins, source)
    if block is None:
        return None
    for word in overrides:
        if word.partition("=")[0] in block.keys:
            raise ConfigError(f"The override {word!r} has no effect, as the sweep says that key for each run.")
    place = loader.validate({k: tree[k] for k in ("name", "output") if k in tree}, Place, origins, source)
    sweep = Sweep(source, place, whole, points(tree, origins, block, source), block.at_once)
    shared = (tree.get("data") or {}).get("folder") if isinstance(tree.get("data"), dict) else None
    for child in sweep.runs:
        child.tree.update({"name": child.name, "output": str(sweep.folder)})
        if isinstance(child.tree.get("data"), dict) and "data.folder" not in child.changes:
            child.tree["data"]["folder"] = corpus_folder(shared or str(sweep.folder / "data"), child.changes)
    return sweep


def corpus_folder(shared: str, changes: Mapping[str, Any]) -> str:
    """``shared``, or a folder beside it for the runs with these values where some of them change the corpus."""
    runtime = {f"data.{name}" for name in set(DataConfig.model_fields) - set(loader.identity_names(DataConfig))}
    own = {key: value for key, value in changes.items() if key.partition(".")[0] == "data" and key not in runtime}
    if not own:
        return shared
    code = hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()
    return f"{shared}-{label(own)[:60]}-{code[:6]}"


def preps(run: str, overrides: Sequence[str] = ()) -> list[PrepConfig]:
    """What is to be prepared: the data of a run, or each corpus of a sweep once. Imports no torch."""
    sweep = open_sweep(run, overrides)
    if sweep is None:
        return [open_prep(run, overrides)]
    place = sweep.place.model_dump()
    parts = [Point(p.name, p.changes, place | {"data": p.tree.get("data")}, p.origins) for p in sweep.runs]
    return list({config.data_folder: config for config in validate_all(parts, PrepConfig, sweep.source)}.values())


def configs(sweep: Sweep) -> list[RunConfig]:
    """Its runs, typed.

    Raises:
        ConfigError: with the problems of all of them.
    """
    from distill_core.config import RunConfig
    from distill_core.precision import as_recorded

    return [pins.recorded(as_recorded(config)) for config in validate_all(sweep.runs, RunConfig, sweep.source)]


def dry_run(sweep: Sweep, only: str | None = None, cluster: ClusterConfig | None = None) -> str:
    """What :func:`run` would start, finished runs left out; every check is made."""
    left = [config for config in configs(sweep) if not finished(config, only)]
    with launch.leaving_no_folder(*(config.folder for config in left)):
        jobs = plan_all(sweep, left, only, cluster)
        missing = [config for config in left if not (config.data_folder / "manifest.json").is_file()]
        corpora = {
            c.data_folder: launch.describe_prep(c.data, c.data_folder, launch.prepares(jobs[c.name][0]))
            for c in missing
        }
        texts = []
        for number, config in enumerate(left):
            backend, job = jobs[config.name]
            after = launch.numbers_of_prep(config.data, backend) if config in missing else []
            behind = [f"ID-OF-{left[number - sweep.at_once].name}"] if number >= sweep.at_once else []
            texts.append(f"# {config.name}\n{backend.describe(replace(job, after=after, behind=behind))}")
    head = [f"# {sweep.at_once} at once"] if sweep.at_once > 1 else []
    return "\n\n".join([*head, *corpora.values(), *texts])


def run(
    sweep: Sweep, only: str | None = None, cluster: ClusterConfig | None = None, cluster_file: str | None = None
) -> None:
    """Carry out all runs that are not finished, and compare them. A run that fails does not keep the others back.

    Args:
        cluster_file: where ``cluster`` was read from; runs at once are processes, which read it themselves.

    Raises:
        ZhengliuError: before anything starts, with the problems of all runs; or at the end, naming the runs that have
            failed, with the highest of their exit statuses.
        Requeue: stopped from outside; the same command continues.
    """
    runs = [pins.settled(config) for config in configs(sweep)]
    left = [config for config in runs if not finished(config, only)]
    jobs = plan_all(sweep, left, only, cluster)
    titles = {
        point.name: f"sweep: {number} of {len(runs)}, {point.name}: {said(point.changes)}"
        for number, point in enumerate(sweep.runs, 1)
    }
    failed: dict[str, ZhengliuError] = {}
    with folder_lock(sweep.folder):
        text = yaml.safe_dump(sweep.tree, sort_keys=False, allow_unicode=True, width=100)
        launch.write(sweep.folder / "config.yaml", text)
        print(f"sweep: {len(runs)} runs in {sweep.folder}, of which {len(runs) - len(left)} are finished.", flush=True)
        todo = Runs(left, titles, jobs, sweep.at_once, only, cluster, cluster_file)
        for config, error in carry_out(todo):
            if error is not None:
                failed[config.name] = error
                print(f"sweep: {config.name} has failed (status {error.exit_code}): {error}", flush=True)
            report(sweep, runs)
        print(f"\nsweep: comparison in {report(sweep, runs)}", flush=True)
    if failed:
        raise together(f"{sweep.place.name}: {len(failed)} of {len(runs)} runs have failed.", failed, len(runs))


def carry_out(runs: Runs) -> Iterator[Ended]:
    """Each run as it ends.

    Raises:
        Requeue: stopped from outside.
    """
    if any(backend.scheduled for backend, _ in runs.jobs.values()):
        yield from side_by_side.in_queue(runs)
    elif runs.at_once > 1:
        yield from side_by_side.in_processes(runs)
    else:
        yield from one_by_one(runs)


def one_by_one(runs: Runs) -> Iterator[Ended]:
    """In this process, which shows their lines."""
    for config in runs.configs:
        print(f"\n{runs.titles[config.name]}", flush=True)
        try:
            launch.launch(config, runs.only, runs.cluster)
            yield config, None
        except Requeue:
            raise
        except ZhengliuError as error:
            yield config, error


def plan_all(
    sweep: Sweep, runs: Sequence[RunConfig], only: str | None, cluster: ClusterConfig | None
) -> dict[str, tuple[Backend, Job]]:
    """Check everything of every run that can be known now.

    Raises:
        ZhengliuError: with what is wrong with all of them.
    """
    planned: dict[str, tuple[Backend, Job]] = {}
    refused: dict[str, ZhengliuError] = {}
    for config in runs:
        try:
            planned[config.name] = launch.plan_job(config, only, cluster)
            side_by_side.refuse(sweep.at_once, planned[config.name][0])
        except ZhengliuError as error:
            refused[config.name] = error
    if refused:
        raise together(f"{sweep.source}: nothing was started.", refused, len(runs))
    return planned


def finished(config: RunConfig, only: str | None = None) -> bool:
    """Whether the run was carried out with this very configuration, to the export (``only``: to that stage's end)."""
    from distill_core.config import RunConfig
    from distill_core.outcome import read_outcome
    from distill_core.report_evaluation import missing

    path = config.folder / "config.yaml"
    try:
        if not path.is_file() or _work(loader.load(path, [], RunConfig)) != _work(config):
            return False
    except ConfigError:  # of another version: the run will say what it cannot go on from
        return False
    outcome = read_outcome(config, config.folder)
    if any(stage.done is None for stage in outcome.stages if only in (None, stage.name)):
        return False
    return only is not None or (any((config.folder / "export").glob("*")) and not missing(outcome))


def _work(config: RunConfig) -> dict[str, Any]:
    """Without what says only where the run and its data lie, and by how many processes they are made."""
    return config.model_dump(mode="json", exclude={"output": True, "launch": True, "data": {"folder", "workers"}})


def report(sweep: Sweep, runs: Sequence[RunConfig]) -> Path:
    """Write the comparison of what the runs have left so far; the path of its page."""
    from distill_core.sweep_report import write_sweep_report

    changes = [point.changes for point in sweep.runs]
    return write_sweep_report(sweep.place.name, sweep.folder, list(zip(changes, runs, strict=True)))


def said(changes: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={json.dumps(value, ensure_ascii=False, default=str)}" for key, value in changes.items())


def together(head: str, errors: Mapping[str, ZhengliuError], of: int) -> ZhengliuError:
    """One error of several runs, with the highest of their statuses."""
    lines = merged([(name, str(error)) for name, error in errors.items()], of)
    error = ZhengliuError("\n  - ".join([head, *lines]))
    error.exit_code = max(one.exit_code for one in errors.values())
    return error

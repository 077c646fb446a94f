"""Models and data sets of the hub: a name without its commit is resolved once, when a run is first started, and kept.

Models are kept in the run's ``environment.json``, data sets in the ``plan.json`` of the data folder, which several runs
may share. From then on the run's own configuration (config.yaml, and so the identity of its stages) names the commit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from configs import hub, loader
from data_prep.config import PrepConfig
from data_prep.plan import PLAN

C = TypeVar("C", bound=PrepConfig)
Place = tuple[str, dict[str, Any], str, hub.Kind]
"""(key as in a run file, the mapping and the field of it that hold a source, what it is)."""


def places(tree: dict[str, Any]) -> Iterator[Place]:
    """Where a whole configuration names something of the hub."""
    for number, source in enumerate(tree["data"]["sources"]):
        if source["kind"] == "datasets" and not hub.is_local(source["path"]):
            yield f"data.sources.{number}.path", source, "path", "dataset"
    stages = tree.get("stages") or []
    own = {stage["name"] for stage in stages}
    for stage in stages:
        key, student = f"stages.{stage['name']}", stage.get("student") or {}
        taught = stage.get("teacher") or []
        named = [(f"{key}.teacher.{number}.source", teacher, "source") for number, teacher in enumerate(taught)]
        named += [(f"{key}.init.source", stage.get("init") or {}, "source")]
        named += [(f"{key}.student.init.source", student.get("init") or {}, "source"), (f"{key}.model", stage, "model")]
        for where, holder, field in named:
            source = holder.get(field)
            if isinstance(source, str) and source not in own and not hub.is_local(source):
                yield where, holder, field, "model"


def recorded(config: C) -> C:
    """With the commits that were found when the run was started, or its data prepared, before. No network."""
    kept = {("model", name): commit for name, commit in _models(config.folder / "environment.json")}
    kept |= {("dataset", name): commit for name, commit in _datasets(config.data_folder / PLAN)}

    def known(source: str, kind: hub.Kind, _: str) -> str:
        return f"{source}@{kept[kind, source]}" if (kind, source) in kept else source

    return _with(config, known) if kept else config


def settled(config: C) -> C:
    """With a commit for every name of the hub; what is found out now is said.

    Raises:
        ConfigError: a name has a branch or a tag.
        DataError: there is no such name, or it is neither here nor can the hub be reached.
    """
    found: dict[tuple[hub.Kind, str], str] = {}

    def newest(source: str, kind: hub.Kind, where: str) -> str:
        if (kind, source) not in found:
            found[kind, source] = hub.pin(source, kind, where)
            if found[kind, source] != source:
                print(
                    f"{where}: {source} names no commit. This run reads the newest one, now and whenever it is "
                    f"continued. As a line of the run file: {where.rsplit('.', 1)[-1]}: {found[kind, source]}",
                    flush=True,
                )
        return found[kind, source]

    return _with(recorded(config), newest)


def record(config: PrepConfig) -> dict[str, dict[str, str]]:
    """name -> commit of all that a settled configuration takes from the hub, for environment.json."""
    said: dict[str, dict[str, str]] = {"models": {}, "datasets": {}}
    for _, holder, field, kind in places(config.model_dump(mode="json")):
        name, commit = hub.split(holder[field])
        if commit is not None:
            said[f"{kind}s"][name] = commit
    return said


def _with(config: C, pinned: Callable[[str, hub.Kind, str], str]) -> C:
    tree = config.model_dump(mode="json")
    changed = False
    for where, holder, field, kind in places(tree):
        before = holder[field]
        holder[field] = pinned(before, kind, where)
        changed |= holder[field] != before
    return loader.validate(tree, type(config), source="names of the hub") if changed else config


def _models(path: Path) -> list[tuple[str, str]]:
    """What an environment.json says; nothing of one that is not there, damaged, or of an older version."""
    facts = _json(path).get("hub")
    models = facts.get("models") if isinstance(facts, dict) else None
    items = models.items() if isinstance(models, dict) else ()
    return [(name, commit) for name, commit in items if isinstance(commit, str) and hub.COMMIT.fullmatch(commit)]


def _datasets(path: Path) -> list[tuple[str, str]]:
    sources = _json(path).get("sources")
    listed = [source for source in sources if isinstance(source, dict)] if isinstance(sources, list) else []
    named = [str(source.get("path")).partition("@") for source in listed]
    return [(name, commit) for name, _, commit in named if hub.COMMIT.fullmatch(commit)]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

"""A run file, a packaged name or a run folder -> typed config; for ``prep`` and ``data`` without torch."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs import loader
from configs.errors import ConfigError
from configs.problems import Origins
from data_prep.config import PrepConfig
from launcher import pins

if TYPE_CHECKING:
    from distill_core.config import RunConfig


def open_run(run: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The whole run file, typed, with what its run has decided. Imports torch: each loss brings its own config."""
    tree, origins, source = read(run, overrides)
    if tree.get("sweep") is not None:
        raise ConfigError(
            f"{source} is a sweep of several runs; `run`, `prep`, `plan`, `report` and `monitor` take it whole. Name "
            "the folder of one of its runs (OUTPUT/NAME/0001-...) instead."
        )
    from distill_core.config import RunConfig
    from distill_core.precision import as_recorded

    return pins.recorded(as_recorded(loader.validate(tree, RunConfig, origins, source)))


def open_prep(run: str, overrides: Sequence[str] = ()) -> PrepConfig:
    """Only ``name``, ``output`` and ``data`` of the run file: the other keys are not looked at."""
    tree, origins, source = read(run, overrides)
    part = {key: tree[key] for key in PrepConfig.model_fields if key in tree}
    return pins.recorded(loader.validate(part, PrepConfig, origins, source))


def read(run: str, overrides: Sequence[str]) -> tuple[dict[str, Any], Origins, str]:
    """The tree that a run file stands for, where its keys came from, and its name for messages.

    A run folder (or a sweep's) stands for its own resolved config.yaml, wherever it has been moved to.
    """
    folder = Path(run)
    path = folder / "config.yaml"
    if not folder.is_dir() or (not path.is_file() and loader.is_packaged(run)):
        return (*loader.read_tree(run, overrides), run)
    if not path.is_file():
        raise ConfigError(f"{folder} is not a run folder: it has no config.yaml. Name a run file instead.")
    tree, origins = loader.read_tree(path)
    if tree.get("name") != folder.resolve().name:
        raise ConfigError(
            f"{path} belongs to a run called {tree.get('name')!r}; give the folder that name again, or take the run "
            "file."
        )
    tree["output"] = str(folder.resolve().parent)
    for word in overrides:
        loader.apply_override(tree, origins, word)
    return tree, origins, str(path)


def check_stage(names: Sequence[str], wanted: str | None) -> None:
    """Raise ConfigError unless ``wanted`` is a stage of the run (or None)."""
    if wanted is None or wanted in names:
        return
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"The run has no stage {wanted!r}.{hint} It has: {', '.join(names)}.")

"""Losses, models, readers, segmenters and backends that other installed packages bring along.

A package declares them under the entry-point group ``zhengliu.plugins``; the name says what it brings, the value is
the module that registers it on import:

    [project.entry-points."zhengliu.plugins"]
    losses.contrastive = "my_package.contrastive"

Only what is installed is ever imported: a name in a run file is looked up in the registries and never becomes code.
"""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points

from configs.errors import ConfigError

GROUP = "zhengliu.plugins"
KINDS = ("losses", "models", "readers", "segmenters", "backends")


@functools.cache
def load_plugins(kind: str) -> tuple[str, ...]:
    """Import the modules of installed packages that bring something of this kind; returns "name (package)" of each.

    Called where the kind's own modules have just been imported.

    Raises:
        ConfigError: a plugin cannot be imported, or has a name that says no kind.
    """
    found = []
    for plugin in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        what = plugin.name.partition(".")[0]
        if what not in KINDS:
            raise ConfigError(
                f"The plugin {plugin.name!r} of the package {_package(plugin)} has a name that does not say what it "
                f"brings; entry points of {GROUP} are called KIND.NAME, with KIND one of {', '.join(KINDS)}."
            )
        if what == kind:
            found.append(f"{plugin.name} ({_package(plugin)})")
            _import(plugin)
    return tuple(found)


def _import(plugin: EntryPoint) -> None:
    try:
        plugin.load()
    except Exception as error:
        raise ConfigError(
            f"The plugin {plugin.name!r} of the package {_package(plugin)} ({plugin.value}) cannot be loaded: "
            f"{type(error).__name__}: {error}. Update or remove that package."
        ) from error


def _package(plugin: EntryPoint) -> str:
    return "unknown" if plugin.dist is None else f"{plugin.dist.name} {plugin.dist.version}"

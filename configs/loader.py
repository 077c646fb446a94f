"""YAML -> ``extends`` -> ``a.b=c`` overrides -> typed config, with every error at once.

Generic: knows no room of the house. A typed config is a pydantic model derived from :class:`Config`;
each of its fields is *identity* (a change makes it another run) unless it is declared with
:func:`runtime` (logging, workers, paths of outputs: a run may be resumed with another value).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from configs.errors import ConfigError
from configs.problems import KeyPath, Origins, explained

PACKAGED = Path(__file__).parent
MAX_VALUES = 100_000


class Config(BaseModel):
    """Base of every typed config: unknown keys are errors, numbers finite, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


C = TypeVar("C", bound=Config)


def runtime(default: Any = ..., **kwargs: Any) -> Any:
    """A field that may differ when a run is resumed (kept out of :func:`identity`)."""
    return Field(default, json_schema_extra={"runtime": True}, **kwargs)


# ---------------------------------------------------------------- reading


def load(path: str | Path, overrides: Sequence[str], model: type[C]) -> C:
    """Read a run file and validate it as ``model``.

    Args:
        path: a YAML file, or the name of a packaged one (``quickstart``).
        overrides: ``a.b=c`` words; the value is parsed as YAML; list items are addressed by index or by
            their ``name`` (``stages.student.training.steps=100``).
        model: the typed config.

    Raises:
        ConfigError: with all problems at once, each with its place, value, reason and nearest valid name.
    """
    tree, origins = read_tree(path, overrides)
    return validate(tree, model, origins, str(path))


def read_tree(path: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], Origins]:
    """The merged, not yet validated tree of a run file, and the file:line that each key came from."""
    tree, origins = _read_file(_find(path), ())
    _choose_mode(tree, origins, overrides)
    for word in overrides:
        apply_override(tree, origins, word)
    return tree, origins


def _choose_mode(tree: dict[str, Any], origins: Origins, overrides: Sequence[str]) -> None:
    """Write the chosen one of a file's ``modes`` (name -> {a.b: value}) into the tree; the first is the default.

    ``mode`` keeps the name. A resolved file has a ``mode`` and no ``modes`` any more.
    """
    modes = tree.pop("modes", None)
    said = [word.partition("=")[2] for word in overrides if word.startswith("mode=")]
    if modes is None:
        if said and said[-1] != tree.get("mode"):
            raise ConfigError(f"mode={said[-1]}: this run file has no `modes` to choose from.")
        return
    if not isinstance(modes, dict) or not all(isinstance(values, dict) for values in modes.values()):
        raise ConfigError(f"{origins[('modes',)]}: `modes` maps names to {{a.b: value}}.")
    wanted = said[-1] if said else tree.get("mode", next(iter(modes), None))
    if wanted not in modes:
        near = difflib.get_close_matches(str(wanted), modes, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"There is no mode {wanted!r}.{hint} This run file has: {', '.join(modes)}.")
    for path, value in modes[wanted].items():
        write_at(tree, origins, path, unshared(value), f"the mode {wanted!r}")
    tree["mode"] = wanted


def is_packaged(path: str | Path) -> bool:
    """Whether it is the name of a packaged file."""
    return any(candidate.is_file() for candidate in _packaged(path))


def _packaged(path: str | Path) -> list[Path]:
    return [PACKAGED / f"{path}.yaml", PACKAGED / path]


def _find(path: str | Path, beside: Path | None = None) -> Path:
    tried = [Path(path)] if beside is None else [beside.parent / path]
    tried += _packaged(path)
    for candidate in tried:
        if candidate.is_file():
            return candidate
    packaged = [p.relative_to(PACKAGED).with_suffix("").as_posix() for p in PACKAGED.rglob("*.yaml")]
    packaged = sorted(name for name in packaged if not name.startswith(("models/", "clusters/")))
    near = difflib.get_close_matches(Path(path).stem, packaged, n=1)
    hint = f" Did you mean the packaged {near[0]!r}?" if near else f" Packaged: {', '.join(packaged)}."
    where = f" (named by `extends` in {beside})" if beside else ""
    raise ConfigError(f"There is no run file {str(path)!r}{where}.{hint}")


def _read_file(path: Path, chain: tuple[Path, ...]) -> tuple[dict[str, Any], Origins]:
    if path.resolve() in chain:
        raise ConfigError(f"{path}: `extends` goes round in a circle.")
    raw, origins = _parse(path)
    tree: dict[str, Any] = {}
    merged: Origins = {}
    parents = raw.pop("extends", None) or []
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{origins[('extends',)]}: `extends` is the name of a run file, or a list of names.")
    for parent in parents:
        base, base_origins = _read_file(_find(parent, path), (*chain, path.resolve()))
        _merge(tree, base)
        merged.update(base_origins)
    _merge(tree, raw)
    merged.update(origins)
    return tree, merged


def _parse(path: Path) -> tuple[dict[str, Any], Origins]:
    """One file as plain values, and the line of each key."""
    origins: Origins = {}
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return {}, origins
        _refuse_bombs(node, path)
        _note_origins(node, (), path, origins)
        raw = unshared(yaml.safe_load(text))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}.") from None
    except OSError as error:
        raise ConfigError(f"Cannot read the run file {path}: {error.strerror}.") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: 2024-13-45 looks like a date, and is none
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a run file is a mapping of keys to values, not a {type(raw).__name__}.")
    return raw, origins


def _refuse_bombs(node: yaml.Node, path: Path) -> None:
    """Raise ConfigError when the file, with its aliases written out, has more values than any run file needs."""
    left = MAX_VALUES
    waiting = [node]
    while waiting:
        node = waiting.pop()
        left -= 1
        if left < 0:
            raise ConfigError(f"{path} has more than {MAX_VALUES:,} values when its aliases are written out.")
        if isinstance(node, yaml.MappingNode):
            waiting += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def unshared(node: Any) -> Any:
    """A copy in which YAML aliases are separate values: an override of one must not change the others."""
    if isinstance(node, dict):
        return {key: unshared(value) for key, value in node.items()}
    if isinstance(node, str) and "\0" in node:
        raise ValueError(f"{node[:80]!r} holds a NUL, which no path, argument or environment variable can")
    return [unshared(item) for item in node] if isinstance(node, list) else node


def _note_origins(node: yaml.Node, at: KeyPath, path: Path, origins: Origins) -> None:
    """Remember the line of each key, and refuse a key that stands twice in one mapping."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                raise ConfigError(f"{path}:{key.start_mark.line + 1}: the key {name!r} stands twice.")
            seen.add(name)
            origins[(*at, name)] = f"{path}:{key.start_mark.line + 1}"
            _note_origins(value, (*at, name), path, origins)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            origins[(*at, index)] = f"{path}:{value.start_mark.line + 1}"
            _note_origins(value, (*at, index), path, origins)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> None:
    """Deep-merge mappings; a list of the later file replaces the earlier one."""
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def apply_override(tree: dict[str, Any], origins: Origins, word: str) -> None:
    """Write ``a.b=c`` into ``tree``; a list item is addressed by its index or its ``name``."""
    path, equals, text = word.partition("=")
    if not equals or not path:
        raise ConfigError(f"The override {word!r} is not of the form a.b=value.")
    write_at(tree, origins, path, _override_value(text, word), f"override {word!r}")


def write_at(tree: dict[str, Any], origins: Origins, path: str, value: Any, word: str) -> None:
    """Write ``value`` at ``path``; ``word``: who says so, for messages."""
    here: Any = tree
    at: list[str | int] = []
    keys = path.split(".")
    for position, key in enumerate(keys):
        index: str | int = _item_index(here, key, word) if isinstance(here, list) else key
        at.append(index)
        if position == len(keys) - 1:
            here[index] = value
        else:
            if isinstance(here, dict) and here.get(key) is None:
                here[key] = {}
            here = here[index]
            if not isinstance(here, dict | list):
                place = ".".join(map(str, at))
                raise ConfigError(f"The {word}: `{place}` holds a plain value, {here!r}, with nothing inside.")
    origins[tuple(at)] = word


def _override_value(text: str, word: str) -> Any:
    """The value as YAML; what begins like no YAML collection or string (``*.txt``, ``C: x``) is plain text."""
    try:
        return unshared(yaml.safe_load(text)) if text else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if text[0] not in "[{\"'":
            return text
        reason = " ".join(str(error).split())
        raise ConfigError(f"The value of the override {word!r} is not YAML: {reason}") from None


def _item_index(items: list[Any], key: str, word: str) -> int:
    if key.isdigit() and int(key) < len(items):
        return int(key)
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if key in names:
        return names.index(key)
    known = ", ".join(str(name) for name in names if name) or f"0 to {len(items) - 1}"
    raise ConfigError(f"The {word}: the list has no item {key!r} (it has {known}).")


# ---------------------------------------------------------------- validating


def validate(tree: Any, model: type[C], origins: Origins | None = None, source: str = "run file") -> C:
    """``tree`` as ``model``, or one :class:`ConfigError` that lists every problem."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise refused(source, explained(error, tree, model, origins or {}, source)) from None


def refused(source: str, problems: Sequence[str]) -> ConfigError:
    """One error that lists ``problems``."""
    head = f"{source}: {len(problems)} problem{'s' if len(problems) > 1 else ''} in the configuration."
    return ConfigError("\n  - ".join([head, *problems]), problems)


# ---------------------------------------------------------------- identity and writing


def identity(config: BaseModel) -> dict[str, Any]:
    """The config as plain values, without its runtime fields."""
    return {name: _plain(getattr(config, name)) for name in identity_names(type(config))}


def identity_names(model: type[BaseModel]) -> list[str]:
    """The fields of ``model`` that were not declared with :func:`runtime`."""
    extras = {name: field.json_schema_extra for name, field in model.model_fields.items()}
    return [name for name, extra in extras.items() if not (isinstance(extra, dict) and extra.get("runtime"))]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity(value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value


def differences(before: Any, after: Any, at: str = "") -> list[str]:
    """Lines ``key: old -> new`` for every leaf that differs between two plain trees."""
    if isinstance(before, dict) and isinstance(after, dict):
        lines: list[str] = []
        for key in dict.fromkeys([*before, *after]):
            inner = f"{at}.{key}" if at else str(key)
            lines += differences(before.get(key), after.get(key), inner)
        return lines
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [
            line for i, (b, a) in enumerate(zip(before, after, strict=True)) for line in differences(b, a, f"{at}.{i}")
        ]
    return [] if before == after else [f"{at}: {before!r} -> {after!r}"]


def to_yaml(config: BaseModel) -> str:
    """The resolved config as YAML that :func:`load` reads back to an equal one."""
    facts = config.model_dump(mode="json")
    return yaml.dump(facts, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Quotes texts with line breaks of Unicode, which are otherwise written as they are, and read as spaces."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    breaks = set("\r\x85\u2028\u2029\ufeff")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, '"' if breaks.intersection(text) else None)


_Dumper.add_representer(str, _text)

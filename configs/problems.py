"""What pydantic refuses in a run file, as lines for a person: place, value, reason and the nearest valid name."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

KeyPath = tuple[str | int, ...]
Origins = dict[KeyPath, str]
"""The file:line, override or mode that a key came from."""


def refusal(place: KeyPath, reason: str, value: Any) -> ValidationError:
    """An error for the validator of a whole tree to raise about one ``place`` in it, whose ``value`` it refuses."""
    problem = PydanticCustomError("refused", "{reason}", {"reason": reason})
    return ValidationError.from_exception_data("", [InitErrorDetails(type=problem, loc=place, input=value)])


def explained(error: ValidationError, tree: Any, model: type[BaseModel], origins: Origins, source: str) -> list[str]:
    """A line for each problem, each once."""
    items = [dict(item) for item in error.errors()]
    lines = [_explain(item, tree, model, origins, source) for item in _without_echoes(items, tree)]
    return list(dict.fromkeys(lines))


def _explain(item: dict[str, Any], tree: Any, model: type[BaseModel], origins: Origins, source: str) -> str:
    loc = tuple(item["loc"])
    shown = _keys_of(loc, tree, missing=item["type"] == "missing")
    if item["type"] == "union_tag_invalid":
        shown = (*shown, item["ctx"]["discriminator"].strip("'"))
    place = next((origins[shown[:n]] for n in range(len(shown), 0, -1) if shown[:n] in origins), source)
    name = ".".join(map(str, shown)) or "(top level)"
    if item["type"] == "extra_forbidden":
        known = field_names(model, loc[:-1])
        near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.6)
        hint = f" Did you mean `{near[0]}`?" if near else (f" Known: {', '.join(known)}." if known else "")
        return f"`{name}` ({place}): there is no such key.{hint}"
    if item["type"] == "missing":
        return f"`{name}` ({place}): this key is required."
    if item["type"] == "union_tag_not_found":
        return f"`{name}` ({place}): the key {item['ctx']['discriminator']} is required."
    known = _NAMES.findall(item.get("ctx", {}).get("expected_tags") or item.get("ctx", {}).get("expected") or "")
    if known:
        value = item["ctx"].get("tag", item.get("input"))
        near = difflib.get_close_matches(str(value), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"`{name}` = {value!r} ({place}): there is no such choice.{hint} Known: {', '.join(known)}."
    reason = str(item["msg"]).removeprefix("Value error, ").rstrip(".")
    reason = reason[:1].upper() + reason[1:]
    value = item.get("input")
    given = "" if isinstance(value, dict | list | BaseModel) else f" = {value!r}"
    return f"`{name}`{given} ({place}): {reason}."


_NAMES = re.compile("'([^']*)'")
"""The choices as pydantic writes them into a message."""


def _without_echoes(items: list[dict[str, Any]], tree: Any) -> list[dict[str, Any]]:
    """Where a key takes a name or a list, a number or a mapping, pydantic tries both: without what it says about the
    other one."""
    at = [_keys_of(tuple(item["loc"]), tree, missing=False) for item in items]

    def echo(item: dict[str, Any], keys: KeyPath) -> bool:
        beside = [o["type"] for o, k in zip(items, at, strict=True) if o is not item and k[: len(keys)] == keys]
        if item["type"] == "model_type":
            return any(other != "model_type" for other in beside)
        if isinstance(item["input"], str):
            return item["type"].endswith("_type") and "literal_error" in beside
        other_form = item["type"] in ("literal_error", "float_type")
        return isinstance(item["input"], list | dict) and other_form and bool(beside)

    return [item for item, keys in zip(items, at, strict=True) if not echo(item, keys)]


def _keys_of(loc: KeyPath, tree: Any, missing: bool) -> KeyPath:
    """``loc`` without the union tags that pydantic puts into it."""
    keys: list[str | int] = []
    here = tree
    for position, part in enumerate(loc):
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            if not (missing and position == len(loc) - 1):
                continue
        keys.append(part)
    return tuple(keys)


def field_names(model: type[BaseModel], loc: Iterable[str | int]) -> list[str]:
    """The valid keys at ``loc`` inside ``model`` (union tags and list indices in ``loc`` are walked over)."""
    here: list[type[BaseModel]] = [model]
    for part in loc:
        step: list[type[BaseModel]] = []
        for m in here:
            if isinstance(part, str) and part in m.model_fields:
                step += _models_in(m.model_fields[part].annotation)
        if step:
            here = step
        elif isinstance(part, str):
            tagged = [m for m in here if _tag(m) == part]
            here = tagged or here
    return sorted({name for m in here for name in m.model_fields})


def _tag(model: type[BaseModel]) -> str | None:
    kind = model.model_fields.get("kind")
    if kind is None:
        return None
    args = typing.get_args(kind.annotation)
    return str(args[0]) if args else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        return [m for a in typing.get_args(annotation) for m in _models_in(a)]
    return []

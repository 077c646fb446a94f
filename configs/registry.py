"""A name -> class table for things added by one new file: losses, readers, backends, stages."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from configs.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes or functions under the names that YAML uses for them.

    Use as a decorator (``@LOSSES.add("kd_ce")``), then as ``LOSSES["kd_ce"]``; an unknown name raises
    :class:`ConfigError` with the nearest known one.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, T] = {}

    def add(self, name: str) -> Callable[[T], T]:
        def register(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.what} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return register

    def __getitem__(self, name: str) -> T:
        if name in self._entries:
            return self._entries[name]
        near = difflib.get_close_matches(name, self._entries, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        known = ", ".join(sorted(self._entries))
        raise ConfigError(f"There is no {self.what} {name!r}.{hint} Known: {known}.")

    def check(self, name: str) -> str:
        """``name``, if it is known.

        Raises:
            ValueError: with the nearest known one (for validators of configs).
        """
        try:
            self[name]
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return name

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

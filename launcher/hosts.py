"""Host names and hostfiles. A name that could be anything but a name is refused: it goes to ssh."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class Host:
    name: str
    slots: int | None
    """Ranks, as in DeepSpeed's and MPI's hostfiles; None: not said."""


def checked_name(name: str, where: str) -> str:
    """``name``, if it is a host name or an IP address.

    Raises:
        ConfigError: it is not.
    """
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        pass
    if len(name) > 253 or not NAME.fullmatch(name):
        raise ConfigError(f"{where}: {name!r} is no host name (letters, digits, dots and hyphens) and no IP address.")
    return name


def read_hostfile(path: Path) -> list[Host]:
    """``NAME [slots=N]`` a line; ``#`` begins a comment.

    Raises:
        ConfigError: naming file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The hostfile {path} cannot be read ({error}).") from None
    hosts: list[Host] = []
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        where = f"{path}:{number}"
        match = re.fullmatch(r"slots=([1-9]\d{0,3})", words[1]) if len(words) == 2 else None
        if len(words) > 2 or (len(words) == 2 and match is None):
            raise ConfigError(f"{where}: a line is `NAME` or `NAME slots=N`, not {line.strip()!r}.")
        hosts.append(Host(checked_name(words[0], where), None if match is None else int(match.group(1))))
        if [host.name for host in hosts].count(hosts[-1].name) > 1:
            raise ConfigError(f"{where}: {hosts[-1].name} is there twice. A host has one line, with its slots.")
    if not hosts:
        raise ConfigError(f"The hostfile {path} names no host.")
    return hosts


def listed(hostfile: str | None, names: Sequence[str]) -> list[Host]:
    """Those of a cluster file: of its ``hostfile``, else its ``hosts``.

    Raises:
        ConfigError: naming what is no host name, or there twice: a host has one agent.
    """
    if hostfile is not None:
        return read_hostfile(Path(hostfile))
    hosts = [Host(checked_name(name, "hosts"), None) for name in names]
    twice = sorted({host.name for host in hosts if hosts.count(host) > 1})
    if twice:
        raise ConfigError(f"hosts: {', '.join(twice)} is there twice. Name each host once; `processes` says its ranks.")
    return hosts


def slots(hosts: list[Host], wanted: int | None, where: str) -> int | None:
    """Ranks on each host: as wanted, else the slots, which must be the same everywhere.

    Raises:
        ConfigError: they differ.
    """
    if wanted is not None:
        return wanted
    found = {host.slots for host in hosts}
    if len(found) > 1:
        listed = ", ".join(f"{host.name}: {host.slots or 'not said'}" for host in hosts)
        raise ConfigError(f"{where}: all hosts must have the same number of slots ({listed}); or set `processes`.")
    return found.pop()

"""Which address and interface the ranks talk over. IPv4 and IPv6; nothing is ever bound to all interfaces."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from ipaddress import ip_address

import psutil

from configs.errors import ConfigError

DOCUMENTATION = "192.0.2.1"
"""TEST-NET-1 (RFC 5737): connecting a UDP socket to it sends nothing, and tells which address the default route has."""


def _addresses(name: str) -> list[str]:
    """Of an interface: all IPv4 ones before all IPv6 ones, and those that are valid on one link alone last."""
    found = [a.address for a in psutil.net_if_addrs().get(name, []) if a.family in (socket.AF_INET, socket.AF_INET6)]
    return sorted(found, key=lambda address: (ip_address(address).is_link_local, ":" in address))


def address_of(interface: str) -> str:
    """The address of an interface; its IPv4 address where it has both kinds.

    Raises:
        ConfigError: there is none, with the interfaces that have one.
    """
    addresses = _addresses(interface)
    if not addresses:
        names = ", ".join(name for name in psutil.net_if_addrs() if _addresses(name))
        raise ConfigError(
            f"{socket.gethostname()}: no interface {interface!r} with an IP address. Set `interface` in the cluster "
            f"file to one of: {names}."
        )
    return addresses[0]


def interface_of(address: str) -> str:
    """The interface that has this address, be it IPv4 or IPv6, the first one or another.

    Raises:
        ConfigError: only the loopback has it, or none, so that other nodes would not be reached by its name.
    """
    wanted, names = ip_address(address), list[str]()
    name: str
    for name in psutil.net_if_addrs():
        addresses = [ip_address(one) for one in _addresses(name)]
        if addresses and not any(one.is_loopback for one in addresses):
            names.append(name)
            if wanted in addresses:
                return name
    known = f", one of: {', '.join(names)}" if names else ""
    raise ConfigError(
        f"{socket.gethostname()}: no interface but the loopback has the address {address}. Set `interface` in the "
        f"cluster file (under torchrun GLOO_SOCKET_IFNAME) to that of the ranks' traffic{known}."
    )


def own_address(interface: str | None, peers: Iterable[str] = ()) -> str:
    """The address on which this node is to be reached.

    That of ``interface``, else the one by which it would send to one of ``peers``, else to the outside.

    Raises:
        ConfigError: this machine has no network.
    """
    if interface is not None:
        return address_of(interface)
    for peer in (*peers, DOCUMENTATION):
        with contextlib.suppress(OSError):
            found = _way_to(peer)
            if not ip_address(found).is_loopback:
                return found
    raise ConfigError(
        f"{socket.gethostname()} has no address that other nodes could reach. Set `interface` in the cluster file."
    )


def _way_to(peer: str) -> str:
    family, kind, protocol, _, where = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(where)
        return str(probe.getsockname()[0])


def listen(address: str) -> socket.socket:
    """A listening socket on a free high port of this address alone."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.bind((address, 0))
        server.listen(1024)
    except OSError as error:
        server.close()
        raise ConfigError(
            f"Cannot listen on {address} ({error.strerror}). Set `interface` in the cluster file."
        ) from None
    return server


def public_warning(address: str) -> str | None:
    """What to tell whoever would let the whole world in."""
    if not ip_address(address).is_global:
        return None
    return (
        f"warning: the ranks meet at {address}, a public address. Traffic between them is neither encrypted nor "
        "checked: choose a private network with `interface` in the cluster file, or let a firewall pass only the nodes."
    )

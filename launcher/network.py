"""Which address and interface the ranks talk over. IPv4 and IPv6; nothing is ever bound to all interfaces."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterable

from configs.errors import LaunchError

SIOCGIFADDR = 0x8915
DOCUMENTATION = "192.0.2.1"
"""TEST-NET-1 (RFC 5737): connecting a UDP socket to it sends nothing, and tells which address the default route has."""


def address_of(interface: str) -> str:
    """The IPv4 address of an interface.

    Raises:
        LaunchError: there is none, with those that there are.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            packed = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError as error:
            names = ", ".join(name for _, name in socket.if_nameindex())
            raise LaunchError(
                f"{socket.gethostname()}: the interface {interface!r} has no IPv4 address ({error.strerror}). Set "
                f"`interface` in the cluster file to one of: {names}."
            ) from None
    return socket.inet_ntoa(packed[20:24])


def interface_of(address: str) -> str | None:
    """The interface that has this IPv4 address."""
    for _, name in socket.if_nameindex():
        with contextlib.suppress(LaunchError):
            if address_of(name) == address:
                return name
    return None


def own_address(interface: str | None, peers: Iterable[str] = ()) -> str:
    """The address on which this node is to be reached.

    That of ``interface``, else the one by which it would send to one of ``peers``, else to the outside.

    Raises:
        LaunchError: this machine has no network.
    """
    if interface is not None:
        return address_of(interface)
    for peer in (*peers, DOCUMENTATION):
        with contextlib.suppress(OSError):
            found = _way_to(peer)
            if not ipaddress.ip_address(found).is_loopback:
                return found
    raise LaunchError(
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
        raise LaunchError(
            f"Cannot listen on {address} ({error.strerror}). Set `interface` in the cluster file."
        ) from None
    return server


def public_warning(address: str) -> str | None:
    """What to tell whoever would let the whole world in."""
    if not ipaddress.ip_address(address).is_global:
        return None
    return (
        f"warning: the ranks meet at {address}, a public address. Traffic between them is neither encrypted nor "
        "checked: choose a private network with `interface` in the cluster file, or let a firewall pass only the nodes."
    )

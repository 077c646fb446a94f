"""Real sockets between agents: who is let in, and what a stranger can do."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from configs.errors import ConfigError, LaunchError
from launcher import link, network
from launcher.link import Hub, Spoke


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path, "127.0.0.1")
    yield hub
    hub.close()
    assert not (tmp_path / "link.json").exists()


def facts(place: Path) -> dict[str, str]:
    return dict(json.loads((place / "link.json").read_text()))


def test_both_ways(hub: Hub, tmp_path: Path) -> None:
    spoke = Spoke(tmp_path, 1, "host b", 5)
    assert hub.inbox.get(timeout=5) == (1, {"host": "host b"})
    spoke.line.send({"text": "line\nbreak 世界"})
    assert hub.inbox.get(timeout=5) == (1, {"text": "line\nbreak 世界"})
    hub.send_all({"go": "x"})
    assert spoke.inbox.get(timeout=5) == {"go": "x"}
    spoke.close()
    assert hub.inbox.get(timeout=5) == (1, {"gone": True})


def test_the_end_of_the_hub_is_noticed(hub: Hub, tmp_path: Path) -> None:
    spoke = Spoke(tmp_path, 1, "b", 5)
    hub.inbox.get(timeout=5)
    hub.close()
    assert spoke.inbox.get(timeout=5) is None
    spoke.close()


def test_only_the_owner_reads_the_token(hub: Hub, tmp_path: Path) -> None:
    assert (tmp_path / "link.json").stat().st_mode & 0o777 == 0o600
    assert len(facts(tmp_path)["token"]) == 64


@pytest.mark.parametrize(
    "words",
    [
        b'{"token": "0000", "node": 1}\n',
        b"GET / HTTP/1.1\r\n\r\n",
        b"[]\n",
        b'{"node": 1}\n',
        b'{"token": "\\u00e9"}\n',
        b"[" * 100_000 + b"\n",
        b"\x80\x04\x95\n",
    ],
)
def test_a_stranger_is_turned_away(hub: Hub, tmp_path: Path, words: bytes) -> None:
    with socket.create_connection(("127.0.0.1", int(facts(tmp_path)["port"])), timeout=5) as stranger:
        stranger.sendall(words)
        assert stranger.recv(1) == b""
    assert hub.inbox.empty()
    assert not hub.lines


def test_strangers_that_say_nothing_hold_nobody_up(hub: Hub, tmp_path: Path) -> None:
    port = int(facts(tmp_path)["port"])
    silent = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(20)]
    spoke = Spoke(tmp_path, 1, "b", 5)
    assert hub.inbox.get(timeout=5)[0] == 1
    spoke.close()
    for one in silent:
        one.close()


def test_a_line_without_end_is_cut_off(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "MAX_LINE", 1 << 16)
    stranger = socket.create_connection(("127.0.0.1", int(facts(tmp_path)["port"])), timeout=5)
    with stranger, pytest.raises((BrokenPipeError, ConnectionResetError)):
        stranger.sendall(b"x" * (64 << 20))


def test_no_first_node(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="has not appeared within 0 s"):
        Spoke(tmp_path, 1, "b", 0.3)


def test_a_first_node_that_cannot_be_reached(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "link.json").write_text(json.dumps({"address": "127.0.0.1", "port": port, "token": "x"}))
    with pytest.raises(LaunchError, match=r"b cannot reach the first node at 127.0.0.1 port \d+ .*firewall"):
        Spoke(tmp_path, 1, "b", 2)


def test_a_file_of_an_earlier_try_is_replaced(tmp_path: Path) -> None:
    """A scheduler has started all nodes again; the other node is quicker than the first one."""
    with network.listen("127.0.0.1") as server:
        port = server.getsockname()[1]
    (tmp_path / "link.json").write_text(json.dumps({"address": "127.0.0.1", "port": port, "token": "x"}))
    hubs: list[Hub] = []
    timer = threading.Timer(0.5, lambda: hubs.append(Hub(tmp_path, "127.0.0.1")))
    timer.start()
    spoke = Spoke(tmp_path, 1, "b", 20)
    timer.join()
    assert hubs[0].inbox.get(timeout=10) == (1, {"host": "b"})
    spoke.close()
    hubs[0].close()


def test_a_listener_is_bound_to_its_address_alone() -> None:
    with network.listen("127.0.0.1") as server:
        assert server.getsockname()[0] == "127.0.0.1"
        assert server.getsockname()[1] > 1023
    with pytest.raises(ConfigError, match=r"Cannot listen on 192.0.2.77"):
        network.listen("192.0.2.77")


def test_addresses_and_interfaces() -> None:
    assert network.address_of("lo") == "127.0.0.1"
    with pytest.raises(ConfigError, match=r"no interface but the loopback has the address 127\.0\.0\.1"):
        network.interface_of("127.0.0.1")
    with pytest.raises(ConfigError, match=r"no interface 'none0' with an IP address.* one of: .*lo"):
        network.own_address("none0")
    assert network.own_address("lo") == "127.0.0.1"


def test_interfaces_by_any_of_their_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `getifaddrs` tells them: gloo and NCCL are given the name, and would talk to themselves over the loopback."""

    def one(address: str) -> SimpleNamespace:
        return SimpleNamespace(family=socket.AF_INET6 if ":" in address else socket.AF_INET, address=address)

    found = {
        "lo": ["127.0.0.1", "10.9.9.9", "::1"],
        "eth0": ["fe80::1%eth0", "fd00::2", "10.0.0.2", "10.0.0.3"],
        "ib0": ["fe80::1%ib0", "fd00:1::2"],
        "down0": [],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {name: [one(a) for a in all_] for name, all_ in found.items()})
    for address, name in {"10.0.0.2": "eth0", "10.0.0.3": "eth0", "fd00:0::2": "eth0", "fe80::1%ib0": "ib0"}.items():
        assert network.interface_of(address) == name
    assert (network.address_of("eth0"), network.address_of("ib0")) == ("10.0.0.2", "fd00:1::2")
    for address in ("10.9.9.9", "10.0.0.4"):
        with pytest.raises(ConfigError, match=rf"has the address {address}\. Set `interface`.* one of: eth0, ib0\."):
            network.interface_of(address)
    with pytest.raises(ConfigError, match="no interface 'down0' with an IP address"):
        network.address_of("down0")


def test_public_addresses_are_warned_of() -> None:
    assert network.public_warning("10.1.2.3") is None
    assert network.public_warning("fd00::1") is None
    assert "public" in str(network.public_warning("8.8.8.8"))


def test_a_warning_stays_beside_the_address_while_the_agent_is_there(tmp_path: Path) -> None:
    hub = Hub(tmp_path, "127.0.0.1", "warning: public")
    try:
        until = time.monotonic() + 10
        while "beat" not in (facts := json.loads((tmp_path / link.FILE).read_text())):
            assert time.monotonic() < until
            time.sleep(0.02)
        assert (facts["address"], facts["warning"]) == ("127.0.0.1", "warning: public")
    finally:
        hub.close()

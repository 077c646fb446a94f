"""Host names go to ssh: nothing but names gets through."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.errors import ConfigError
from launcher.hosts import Host, checked_name, read_hostfile, slots


@pytest.mark.parametrize("name", ["node1", "a", "gpu-07.cluster.example", "10.0.0.1", "fe80::1", "n_1"])
def test_names(name: str) -> None:
    assert checked_name(name, "x") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-oProxyCommand=touch${IFS}/tmp/x",
        "h1;touch",
        "h1 h2",
        "$(id)",
        "`id`",
        "user@host",
        "h1\nh2",
        "节点",
        "a" * 300,
        "h-",
        ".h",
        "h|id",
    ],
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ConfigError, match=r"the file:3: .* is no host name"):
        checked_name(name, "the file:3")


def test_a_hostfile(tmp_path: Path) -> None:
    file = tmp_path / "hostfile"
    file.write_text("# the cluster\nnode1 slots=4\n\nnode2   slots=4  # the new one\n10.0.0.3 slots=4\n")
    assert read_hostfile(file) == [Host("node1", 4), Host("node2", 4), Host("10.0.0.3", 4)]
    assert slots(read_hostfile(file), None, "h") == 4
    assert slots(read_hostfile(file), 2, "h") == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("node1 slots=0\n", "hostfile:1: a line is"),
        ("node1\nnode2 slots=x\n", "hostfile:2: a line is"),
        ("node1 slots=2 more\n", "hostfile:1: a line is"),
        ("node1\nnode2\nnode1\n", "hostfile:3: node1 is there twice"),
        ("# nothing\n", "names no host"),
        ("-oProxyCommand=touch slots=1\n", "hostfile:1: .* is no host name"),
    ],
)
def test_what_is_no_hostfile(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "hostfile").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_hostfile(tmp_path / "hostfile")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_hostfile(tmp_path / "none")


def test_slots_must_agree() -> None:
    with pytest.raises(ConfigError, match=r"same number of slots \(a: 2, b: not said\)"):
        slots([Host("a", 2), Host("b", None)], None, "hosts")
    assert slots([Host("a", None)], None, "hosts") is None

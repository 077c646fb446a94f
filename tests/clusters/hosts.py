"""Real hosts without real machines: network namespaces joined by a bridge, each with its own address, name and sshd.

Processes and files are this machine's: a "host" is what a network, a name and an ssh session can tell of one. The test
itself stands beside them, on the bridge, as a login node does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SUBNET = "10.213.77"
BRIDGE = "zlbr0"
PREFIX = "zl-host"
TOOLS = ("ip", "unshare", "sshd", "ssh", "ssh-keygen", "pdsh")
LOCK = Path("/tmp/zhengliu-netns.lock")
SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def missing() -> str | None:
    """Why this machine cannot do it; None when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [tool for tool in TOOLS if shutil.which(tool, path=SEARCH) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (scripts/system-packages)"
    done = _ip("netns", "add", f"{PREFIX}0", check=False)
    _ip("netns", "del", f"{PREFIX}0", check=False)
    return None if done.returncode == 0 else f"no network namespaces here: {done.stderr.strip()}"


def _ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", *words], capture_output=True, text=True, check=check, env=os.environ | {"PATH": SEARCH}
    )


class Host:
    """One of them, from number 1."""

    def __init__(self, number: int, folder: Path) -> None:
        self.number = number
        self.name = f"host{number}"
        self.space = f"{PREFIX}{number}"
        self.address = f"{SUBNET}.{number}"
        self._folder = folder
        self._sshd: subprocess.Popen[bytes] | None = None

    def make(self, count: int) -> None:
        veth = f"zlv{self.number}"
        _ip("netns", "add", self.space)
        _ip("link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", self.space)
        _ip("link", "set", veth, "master", BRIDGE, "up")
        _ip("-n", self.space, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for link in ("eth0", "lo"):
            _ip("-n", self.space, "link", "set", link, "up")
        etc = Path("/etc/netns") / self.space  # `ip netns exec` binds these over /etc
        etc.mkdir(parents=True, exist_ok=True)
        names = [f"{SUBNET}.{n} host{n}" for n in range(1, count + 1)]
        (etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
        (etc / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")

    def inside(self, *words: str) -> list[str]:
        """The command that runs ``words`` on this host."""
        named = f'hostname {self.name} && exec "$@"'
        return ["ip", "netns", "exec", self.space, "unshare", "--uts", "sh", "-c", named, "-", *words]

    def serve(self) -> None:
        """Start sshd."""
        config = self._folder / f"sshd{self.number}.conf"
        lines = [
            f"ListenAddress {self.address}",
            f"HostKey {self._folder / 'hostkey'}",
            f"AuthorizedKeysFile {self._folder / 'authorized_keys'}",
            "StrictModes no",
            "UsePAM no",
            "PermitRootLogin yes",
            "PidFile none",
            "MaxStartups 100",
        ]
        config.write_text("\n".join([*lines, ""]))
        sshd = str(shutil.which("sshd", path=SEARCH))
        command = self.inside(sshd, "-D", "-f", str(config), "-E", str(self._folder / f"sshd{self.number}.log"))
        self._sshd = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, env={"PATH": SEARCH, "HOME": "/root"}
        )

    def pids(self) -> list[int]:
        done = _ip("netns", "pids", self.space, check=False)
        return [int(word) for word in done.stdout.split()]

    def kill(self) -> None:
        """The machine is gone: every process of it at once, and its link."""
        _ip("link", "set", f"zlv{self.number}", "down", check=False)
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def link(self, state: str) -> None:
        """``up`` or ``down``, at the switch's end."""
        _ip("link", "set", f"zlv{self.number}", state)

    def agents(self) -> list[int]:
        return [pid for pid in self.pids() if b"node.py" in b" ".join(words(pid)[:4])]

    def ranks(self) -> dict[int, int]:
        """Rank -> pid, of those that run now."""
        found = {}
        for pid in self.pids():
            facts = variables(pid)
            parent = _parent(pid)
            if b"ZHENGLIU_PULSE" in facts and b"ZHENGLIU_PULSE" not in variables(parent):
                found[int(facts[b"RANK"])] = pid
        return found

    def remove(self) -> None:
        self.kill()
        if self._sshd is not None:
            self._sshd.wait()
        _ip("netns", "del", self.space, check=False)
        _ip("link", "del", f"zlv{self.number}", check=False)
        shutil.rmtree(Path("/etc/netns") / self.space, ignore_errors=True)


def words(pid: int) -> list[bytes]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return []


def variables(pid: int) -> dict[bytes, bytes]:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return dict(line.split(b"=", 1) for line in lines if b"=" in line)  # type: ignore[misc]
    return {}


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return 0


class Network:
    """Hosts and how to reach them."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.hosts = [Host(number, folder) for number in range(1, count + 1)]
        self.ssh_config = folder / "ssh_config"
        self.hostfile = folder / "hostfile"

    def __getitem__(self, number: int) -> Host:
        """From 1, as they are called."""
        return self.hosts[number - 1]

    def make(self) -> None:
        remove_all()
        Path("/run/sshd").mkdir(parents=True, exist_ok=True)
        for name in ("id", "hostkey"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name], check=True)
        shutil.copy(self.folder / "id.pub", self.folder / "authorized_keys")
        lines = [f"Host {host.name}\n  HostName {host.address}" for host in self.hosts]
        lines += ["Host *", "  User root", f"  IdentityFile {self.folder / 'id'}", "  StrictHostKeyChecking no"]
        lines += ["  UserKnownHostsFile /dev/null", "  LogLevel ERROR", ""]
        self.ssh_config.write_text("\n".join(lines))
        self.hostfile.write_text("".join(f"{host.name} slots=2\n" for host in self.hosts))
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{SUBNET}.254/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for host in self.hosts:
            host.make(len(self.hosts))
            host.serve()
        for host in self.hosts:
            self.await_ssh(host)

    def await_ssh(self, host: Host, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while self.ssh(host.name, "true").returncode != 0:
            assert time.monotonic() < deadline, f"{host.name} does not answer: {self.ssh(host.name, 'true').stderr}"
            time.sleep(0.2)

    def ssh(self, host: str, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ssh", "-F", self.ssh_config, "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "--", host, command],
            capture_output=True,
            text=True,
            check=False,
        )

    def left_behind(self, seconds: float = 5.0) -> list[str]:
        """Command lines of ranks and agents that still run on any host ``seconds`` from now; ideally none."""
        deadline = time.monotonic() + seconds
        while True:
            pids = [pid for host in self.hosts for pid in (*host.agents(), *host.ranks().values())]
            if not pids or time.monotonic() > deadline:
                return [b" ".join(words(pid)).decode(errors="replace") for pid in pids]
            time.sleep(0.05)


def remove_all() -> None:
    """Also what a run that crashed has left."""
    spaces = [line.split()[0] for line in _ip("netns", "list").stdout.splitlines() if line.startswith(PREFIX)]
    for space in spaces:
        Host(int(space.removeprefix(PREFIX)), Path()).remove()
    _ip("link", "del", BRIDGE, check=False)


@contextlib.contextmanager
def network(folder: Path, count: int) -> Iterator[Network]:
    """One at a time on this machine."""
    with LOCK.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = Network(folder, count)
        try:
            made.make()
            yield made
        finally:
            remove_all()
            for host in made.hosts:
                host.remove()


if __name__ == "__main__":  # by hand: python -m tests.clusters.hosts FOLDER COUNT, until Enter
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    with network(place, int(sys.argv[2])):
        print(f"up: {place}", flush=True)
        sys.stdin.readline()

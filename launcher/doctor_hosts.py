"""``distill doctor --hosts FILE``: do the hosts of a cluster fit together, and can ranks on them reach each other?"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import shlex
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from configs.cluster import ClusterConfig, HostsCluster, Timeouts
from configs.errors import ConfigError, LaunchError, ZhengliuError, output_error
from launcher import shared
from launcher.backends.hosts import Hosts
from launcher.doctor import FLOORS, GIGABYTE, TORCH_PROBE, Finding, State
from launcher.job import ROOT, Job

HOST_SECONDS = 300.0
"""For one host to answer; the first import of torch over a network file system takes its time."""
GIVE_UP_SECONDS = 5.0
"""For a host that has said something else to end by itself, with its reason."""
EXCHANGES = 5
CLOCK_WARN, CLOCK_FAIL = 1.0, 60.0
"""Seconds. Logs of nodes are put in order by their clocks; certificates and tokens fail much later."""
SLOW_DISK = 50e6
SLOW_HOST = 0.7
"""Of the fastest: all ranks wait for the slowest in each step."""
REDUCE_TIMEOUTS = Timeouts(load=240, node=30, stop=10, peer_grace=1)

Facts = dict[str, Any]


@dataclass
class Answer:
    """What a host said, or why it said nothing."""

    facts: Facts = field(default_factory=dict)
    error: str | None = None
    offset: float = 0.0
    """Its clock minus this machine's, in seconds."""
    bound: float = 0.0
    """Half of the quickest round trip: the offset is right within this."""


def backend_of(cluster: ClusterConfig) -> Hosts:
    """Raises ConfigError: not a cluster of hosts."""
    if not isinstance(cluster, HostsCluster):
        raise ConfigError(
            f"`distill doctor` reaches hosts by ssh; a cluster file of kind {cluster.kind} has none. Run `distill "
            "doctor` within a job of that cluster instead, or name its nodes with --hosts FILE."
        )
    return Hosts(cluster)


def of_hostfile(path: Path) -> HostsCluster:
    """Which says nothing of the runner: DeepSpeed's where it can be used, as in a run it would have to be chosen."""
    runner: Literal["deepspeed", "ssh"] = "ssh" if shutil.which("pdsh") is None else "deepspeed"
    return HostsCluster(kind="hosts", hostfile=str(path), runner=runner)


def examine(folder: Path, backend: Hosts) -> Iterator[Finding]:
    """All findings about the hosts for a run in ``folder``, one after another; the all-reduce last."""
    hosts = backend.nodes()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unseen = shared.unseen(folder, {host: backend.shell(host) for host in hosts})
    except OSError as error:
        raise output_error(folder, error) from error
    answers = ask_all(folder, backend, hosts)
    yield from reached(answers)
    yield shared_folder(folder, unseen)
    yield (started := runner(folder, backend))
    good = {host: answer for host, answer in answers.items() if answer.error is None}
    if good:
        yield from versions(good)
        yield clocks(good)
        yield from disks(good)
        yield memory_files(good)
        yield names(good)
        yield products(good)
    if len(good) < len(hosts) or unseen or started.state == "fail":
        yield Finding("all-reduce", "fail", "not tried", "It needs all hosts, the shared folder, the runner: see above")
    elif len(hosts) > 1:
        yield all_reduce(folder, backend)


# ---------------------------------------------------------------- asking


def ask_all(folder: Path, backend: Hosts, hosts: list[str]) -> dict[str, Answer]:
    request = {"packages": list(FLOORS), "peers": hosts, "folder": str(folder.resolve()), "probe": TORCH_PROBE}
    program = shlex.join([backend.python, "-P", str(ROOT / "launcher" / "doctor_host.py")])
    with ThreadPoolExecutor(max_workers=min(64, len(hosts))) as pool:
        answers = pool.map(lambda host: ask([*backend.shell(host), f"exec {program}"], request), hosts)
        return dict(zip(hosts, answers, strict=True))


def ask(command: list[str], request: Facts) -> Answer:
    """One host: its clock by some exchanges, then its facts."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
        )
    except OSError as error:
        return Answer(error=f"{command[0]} cannot be started ({error.strerror})")
    with ThreadPoolExecutor(max_workers=1) as pool:
        talk = pool.submit(_talk, process, request)
        try:
            return talk.result(timeout=HOST_SECONDS)
        except TimeoutError:
            return Answer(error=f"no answer within {HOST_SECONDS:.0f} s")
        except (OSError, ValueError, KeyError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GIVE_UP_SECONDS)
            process.kill()
            assert process.stderr is not None
            lines = process.stderr.read().strip().splitlines()
            return Answer(error=lines[-1][:200] if lines else f"ended with status {process.returncode}")
        finally:
            process.kill()
            process.wait()


def _talk(process: subprocess.Popen[str], request: Facts) -> Answer:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    _hear(process, "ready")
    best = Answer(bound=float("inf"))
    for _ in range(EXCHANGES):
        sent = time.time()
        process.stdin.write("clock\n")
        process.stdin.flush()
        theirs, back = float(_hear(process, "clock")["clock"]), time.time()
        if (back - sent) / 2 < best.bound:
            best = Answer(offset=theirs - (sent + back) / 2, bound=(back - sent) / 2)
    process.stdin.close()
    best.facts = _hear(process, "host")
    return best


def _hear(process: subprocess.Popen[str], key: str) -> Facts:
    """The next line with ``key``; what a login script prints is passed over."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            facts: Facts = json.loads(line)
            if key in facts:
                return facts
    raise ValueError("no answer")


# ---------------------------------------------------------------- findings


def _listed(found: Mapping[str, object]) -> str:
    return ", ".join(f"{host}: {what}" for host, what in found.items())


def _same(what: str, found: Mapping[str, object], remedy: str) -> Finding:
    """All hosts must say the same; those that differ from the first one are named."""
    first = next(iter(found.values()))
    if all(value == first for value in found.values()):
        return Finding(what, "ok", f"{first or 'none'} on all {len(found)} hosts")
    return Finding(what, "fail", _listed({host: value or "none" for host, value in found.items()}), remedy)


def reached(answers: Mapping[str, Answer]) -> Iterator[Finding]:
    silent = {host: answer.error for host, answer in answers.items() if answer.error is not None}
    for host, why in silent.items():
        remedy = f"`ssh {host} true` must work without a password, and this installation be there under the same path"
        yield Finding(f"ssh {host}", "fail", str(why), remedy)
    if len(silent) < len(answers):
        yield Finding("ssh", "ok", f"{len(answers) - len(silent)} of {len(answers)} hosts answer")


def shared_folder(folder: Path, unseen: Mapping[str, str]) -> Finding:
    if not unseen:
        return Finding("run folder", "ok", f"{folder.resolve()} is the same one on all hosts")
    remedy = f"Mount one file system on all hosts at {folder.resolve()}, or choose another folder: output=..."
    return Finding("run folder", "fail", _listed(unseen), remedy)


def runner(folder: Path, backend: Hosts) -> Finding:
    """What carries the agents of a run, as the cluster file says; the all-reduce is carried by it, too."""
    said = backend.cluster.runner
    try:
        backend.check_runner(replace(backend.job(folder, 1), mark="doctor"))
    except ConfigError as error:
        return Finding("runner", "fail", str(error), "What is said there")
    return Finding("runner", "ok", f"{said}{'' if said == 'ssh' else ', by pdsh'}")


def versions(answers: Mapping[str, Answer]) -> Iterator[Finding]:
    """Python, packages and driver; equal packages make one line."""
    yield _same("python", {h: a.facts["python"] for h, a in answers.items()}, "The same Python on all: `python`")
    differing = [
        finding
        for name in FLOORS
        if (
            finding := _same(
                name, {h: a.facts["packages"][name] for h, a in answers.items()}, "make install on all, the same commit"
            )
        ).state
        != "ok"
    ]
    yield from differing
    if not differing:
        yield Finding("packages", "ok", f"{len(FLOORS)} packages have the same versions on all {len(answers)} hosts")
    drivers = {h: a.facts["driver"] for h, a in answers.items()}
    yield _same("NVIDIA driver", drivers, "The same driver on all: NCCL is tested so")


def clocks(answers: Mapping[str, Answer]) -> Finding:
    """Against this machine's, and so between any two: a bound by the round trips."""
    low = {h: a.offset - a.bound for h, a in answers.items()}
    high = {h: a.offset + a.bound for h, a in answers.items()}
    apart = max(0.0, max(low.values()) - min(high.values()))  # surely at least so much
    found = _listed({h: f"{a.offset:+.3f} ± {a.bound:.3f} s" for h, a in answers.items()})
    state: State = "fail" if apart > CLOCK_FAIL else "warn" if apart > CLOCK_WARN else "ok"
    return Finding("clocks", state, found, "" if state == "ok" else "Start a time service (chrony) on all hosts")


def disks(answers: Mapping[str, Answer]) -> Iterator[Finding]:
    broken = {h: a.facts["disk"]["error"] for h, a in answers.items() if "error" in a.facts["disk"]}
    if broken:
        remedy = "All hosts must be able to write the run folder, as the same user"
        yield Finding("disk", "fail", _listed(broken), remedy)
        return
    free = min(a.facts["disk"]["free"] for a in answers.values())
    room: State = "ok" if free > 2 * GIGABYTE else "warn"
    yield Finding("disk", room, f"{free / GIGABYTE:.1f} GB free", "" if room == "ok" else "Free some space")
    speeds = {h: (a.facts["disk"]["write"], a.facts["disk"]["read"]) for h, a in answers.items()}
    slow = min(min(pair) for pair in speeds.values()) < SLOW_DISK
    found = _listed(
        {h: f"writes {write / 1e6:,.0f}, reads {read / 1e6:,.0f} MB/s" for h, (write, read) in speeds.items()}
    )
    remedy = "Checkpoints will take long: a faster file system, or fewer of them (training.checkpoint)"
    yield Finding("disk speed", "warn" if slow else "ok", found, remedy if slow else "")


def memory_files(answers: Mapping[str, Answer]) -> Finding:
    sizes = {h: a.facts["shm"] for h, a in answers.items()}
    small = {h: "none" if s is None else f"{s / 1e6:.0f} MB free" for h, s in sizes.items() if s is None or s < 64e6}
    if small:
        return Finding("/dev/shm", "warn", _listed(small), "Ranks of a host talk over it: mount a larger tmpfs there")
    least = min(size for size in sizes.values() if size is not None)
    return Finding("/dev/shm", "ok", f"{least / GIGABYTE:.2f} GB or more free")


def names(answers: Mapping[str, Answer]) -> Finding:
    """Each host must know each other one by an address that reaches it, and not by 127.0.1.1."""
    unknown, loopback = [], []
    for host, answer in answers.items():
        for peer, addresses in answer.facts["resolved"].items():
            if peer == host:
                continue
            if not addresses:
                unknown.append(f"{host} does not know {peer}")
            elif all(ipaddress.ip_address(address.split("%")[0]).is_loopback for address in addresses):
                loopback.append(f"{host} takes {peer} for {addresses[0]}")
    if loopback:
        return Finding("names", "fail", "; ".join(loopback), "Correct /etc/hosts there: a peer is not this machine")
    if unknown:
        # The agents tell each other addresses, so that this does no harm where the default route is the right one.
        return Finding("names", "warn", "; ".join(unknown), "DNS or /etc/hosts, or set `interface` in the cluster file")
    return Finding("names", "ok", "each host knows each other one")


def products(answers: Mapping[str, Answer]) -> Finding:
    """A matrix product in bf16 on each host's device."""
    broken = {h: a.facts["torch"]["error"] for h, a in answers.items() if "error" in a.facts["torch"]}
    if broken:
        return Finding("matrix product", "fail", _listed(broken), "make install on these hosts")
    speeds = {h: float(a.facts["torch"]["bfloat16"]) for h, a in answers.items()}
    devices = {h: str(a.facts["torch"]["device"]) for h, a in answers.items()}
    found = _listed({h: f"{speed:,.0f} GFLOP/s in bf16 on {devices[h]}" for h, speed in speeds.items()})
    if len(set(devices.values())) > 1:
        return Finding("matrix product", "fail", found, "Ranks must run on the same kind of device")
    slow = min(speeds.values()) < SLOW_HOST * max(speeds.values())
    remedy = "All ranks wait for the slowest: is something else running there?" if slow else ""
    return Finding("matrix product", "warn" if slow else "ok", found, remedy)


# ---------------------------------------------------------------- the all-reduce


def all_reduce(folder: Path, backend: Hosts, run: Callable[[Job], None] | None = None) -> Finding:
    """One rank on each host, by our own agents and the runner: ports, interfaces and variables, as a run uses them."""
    place = folder / f".doctor-{uuid.uuid4().hex}"
    hosts, result = backend.nodes(), place / "result.json"
    command = [backend.python, "-P", "-m", "launcher.doctor_rank", str(result.resolve())]
    try:
        # With all variables of a run: NCCL_* and GLOO_* decide how ranks talk.
        job = replace(backend.job(place, 1), command=command, timeouts=REDUCE_TIMEOUTS, mark="doctor")
        place.mkdir()
        (run or backend.run)(job)
        facts = json.loads(result.read_text(encoding="utf-8"))
    except ZhengliuError as error:
        where = f"{error.host}: " if isinstance(error, LaunchError) and error.host else ""
        remedy = "Is there a firewall between the hosts? `interface` in the cluster file chooses another network"
        return Finding("all-reduce", "fail", f"{where}{error}", remedy)
    except (OSError, ValueError) as error:
        return Finding("all-reduce", "fail", str(error), "Can all hosts write the run folder?")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    found = f"{facts['bandwidth'] / GIGABYTE:.2f} GB/s among {len(hosts)} hosts by {facts['backend']}"
    return Finding("all-reduce", "ok", f"{found} ({1e3 * facts['seconds']:.0f} ms for 16.8 MB)")

"""Doctor over hosts, by an ``ssh`` that carries a command out here, in an environment of the host's own."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from configs.cluster import ClusterConfig, HostsCluster
from configs.errors import ConfigError, LaunchError
from launcher import doctor_host, doctor_hosts
from launcher.cli import app
from launcher.doctor import Finding
from launcher.doctor_hosts import Answer
from launcher.job import Job

SSH = """#!/bin/sh
# Options up to --, then the host, then the command for its shell.
while [ "$1" != -- ]; do shift; done
host="$2"; shift 2
echo "$host $*" >> {folder}/asked
[ -d {folder}/"$host" ] || {{ echo "ssh: Could not resolve hostname $host" >&2; exit 255; }}
PATH={folder}/"$host":"$PATH" PYTHONPATH={folder}/"$host" exec sh -c "$*"
"""
PROBE = "import json; print(json.dumps(dict(device='cpu', bfloat16=100.0)))"
AS = {
    "python": "import platform; platform.python_version = lambda: '3.14.0'",
    "package": "import importlib.metadata as m; real = m.version; "
    "m.version = lambda name: '2.99' if name == 'torch' else real(name)",
    "no package": "import importlib.metadata as m\ndef none(name): raise m.PackageNotFoundError(name)\n"
    "m.version = none",
    "clock": "import time; real = time.time; time.time = lambda: real() + 90",
    "late clock": "import time; real = time.time; time.time = lambda: real() - 8",
    "full": "import shutil, collections; U = collections.namedtuple('U', 'total used free'); "
    "shutil.disk_usage = lambda path: U(9, 9, 1000)",
    "slow": "import os, time; os.fsync = lambda number: time.sleep(1.5)",
    "read-only": "import os\ndef no(number): raise OSError(30, 'Read-only file system')\nos.fsync = no",
    "loopback": "import socket; socket.getaddrinfo = lambda *a, **k: [(0, 0, 0, '', ('127.0.1.1', 0))]",
    "unknown": "import socket\ndef none(*a, **k): raise socket.gaierror(-2, 'unknown')\nsocket.getaddrinfo = none",
    "crash": "import json\ndef broken(*a): raise RuntimeError('a broken installation')\njson.loads = broken",
}
"""What a host's Python does before anything else (sitecustomize)."""
KNOWN = """
import socket
_resolve = socket.getaddrinfo
def known(name, *rest, **more): return _resolve("10.0.0.9" if name in ("a", "b") else name, *rest, **more)
socket.getaddrinfo = known
"""


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes hosts ``a`` and ``b``, ``b`` with a peculiarity."""
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "ssh").write_text(SSH.format(folder=shlex.quote(str(folder))))
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(doctor_hosts, "TORCH_PROBE", PROBE)
    monkeypatch.setattr(doctor_hosts, "GIVE_UP_SECONDS", 1.0)

    def make(peculiar: str = "", **files: str) -> Path:
        for host in ("a", "b"):
            (folder / host).mkdir()
            code = KNOWN + (AS[peculiar] if peculiar and host == "b" else "")
            (folder / host / "sitecustomize.py").write_text(code)
        for name, text in files.items():
            path = folder / "b" / name.replace("_", "-")
            path.write_text(text)
            path.chmod(0o755)
        return folder

    return make


def hosts(**facts: Any) -> doctor_hosts.Hosts:
    said = HostsCluster.model_validate({"kind": "hosts", "hosts": ["a", "b"], "runner": "ssh", **facts})
    return doctor_hosts.backend_of(said)


def examined(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Finding]:
    monkeypatch.setattr(doctor_hosts, "all_reduce", lambda *_: Finding("all-reduce", "ok", "as expected"))
    return {finding.what: finding for finding in doctor_hosts.examine(folder, hosts())}


def test_hosts_that_agree(tmp_path: Path, ssh: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    net = ssh()
    run = tmp_path / "my $(touch x) run"
    found = examined(run, monkeypatch)
    assert {what for what, finding in found.items() if finding.state != "ok"} <= {"disk speed", "disk"}
    assert {"ssh", "run folder", "python", "packages", "NVIDIA driver", "clocks", "names", "/dev/shm"} <= set(found)
    assert {"disk", "disk speed", "matrix product", "all-reduce"} <= set(found)
    assert list(run.iterdir()) == [], "nothing is left"
    programs = [line for line in (net / "asked").read_text().splitlines() if "doctor_host" in line]
    assert sorted(line.split()[0] for line in programs) == ["a", "b"]
    assert not any("touch" in line for line in programs), "the folder goes over standard input"


@pytest.mark.parametrize(
    ("peculiar", "what", "state", "said"),
    [
        ("python", "python", "fail", "b: 3.14.0"),
        ("package", "torch", "fail", "b: 2.99"),
        ("no package", "deepspeed", "fail", "b: none"),
        ("clock", "clocks", "fail", "b: +90."),
        ("late clock", "clocks", "warn", "b: -8."),
        ("full", "disk", "warn", "0.0 GB free"),
        ("full", "/dev/shm", "warn", "b: 0 MB free"),
        ("slow", "disk speed", "warn", "b: writes"),
        ("read-only", "disk", "fail", "Read-only file system"),
        ("loopback", "names", "fail", "b takes a for 127.0.1.1"),
        ("unknown", "names", "warn", "b does not know a"),
        ("crash", "ssh b", "fail", "a broken installation"),
    ],
)
def test_each_disagreement(
    peculiar: str,
    what: str,
    state: str,
    said: str,
    tmp_path: Path,
    ssh: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ssh(peculiar)
    finding = examined(tmp_path / "run", monkeypatch)[what]
    assert finding.state == state, finding
    assert said in finding.found
    assert finding.remedy


def test_a_driver_of_its_own(tmp_path: Path, ssh: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    ssh(nvidia_smi="#!/bin/sh\necho 570.1\n")
    finding = examined(tmp_path / "run", monkeypatch)["NVIDIA driver"]
    assert finding.state == "fail"
    assert "b: 570.1" in finding.found


def test_a_folder_that_one_host_does_not_see(
    tmp_path: Path, ssh: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh(cat="#!/bin/sh\necho 'cat: No such file or directory' >&2; exit 1\n")
    found = examined(tmp_path / "run", monkeypatch)
    assert found["run folder"].state == "fail"
    assert found["run folder"].found == "b: cat: No such file or directory"
    assert found["all-reduce"].found == "not tried"


def test_a_host_that_is_not_there(tmp_path: Path, ssh: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    net = ssh()
    (net / "b").rename(net / "gone")
    found = examined(tmp_path / "run", monkeypatch)
    assert found["ssh b"].found == "ssh: Could not resolve hostname b"
    assert found["ssh"].found == "1 of 2 hosts answer"
    assert found["python"].state == "ok", "the others are examined all the same"
    assert found["all-reduce"].state == "fail"


def test_a_host_that_says_nothing(tmp_path: Path, ssh: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_hosts, "HOST_SECONDS", 0.5)
    assert doctor_hosts.ask(["sleep", "60"], {}).error == "no answer within 0 s"
    assert "cannot be started" in str(doctor_hosts.ask([str(tmp_path / "none")], {}).error)


def test_a_login_script_that_talks_is_passed_over(tmp_path: Path) -> None:
    program = f"echo Welcome; echo '{{\"news\": 1}}'; exec {shlex.quote(sys.executable)} -P {doctor_host.__file__}"
    request = {"packages": ["pytest"], "peers": ["127.0.0.1"], "folder": str(tmp_path), "probe": PROBE}
    answer = doctor_hosts.ask(["sh", "-c", program], request)
    assert answer.error is None
    assert answer.facts["resolved"] == {"127.0.0.1": ["127.0.0.1"]}
    assert answer.facts["packages"] == {"pytest": pytest.__version__}
    assert abs(answer.offset) <= answer.bound + 0.01, "the same clock"


def test_clocks_are_believed_within_the_round_trips() -> None:
    slow = {"a": Answer(offset=0.0, bound=0.1), "b": Answer(offset=5.0, bound=6.0)}
    assert doctor_hosts.clocks(slow).state == "ok", "they may be equal"
    assert doctor_hosts.clocks(slow | {"c": Answer(offset=-3.0, bound=0.1)}).state == "warn"


@pytest.mark.parametrize(
    ("b", "state"),
    [
        ({"device": "cpu", "bfloat16": 80.0}, "ok"),
        ({"device": "cpu", "bfloat16": 60.0}, "warn"),
        ({"device": "H200", "bfloat16": 100.0}, "fail"),
        ({"error": "ImportError: libtorch.so"}, "fail"),
    ],
)
def test_matrix_products(b: dict[str, Any], state: str) -> None:
    facts = {"a": {"device": "cpu", "bfloat16": 100.0}, "b": b}
    assert doctor_hosts.products({h: Answer({"torch": f}) for h, f in facts.items()}).state == state


# ---------------------------------------------------------------- the all-reduce


@pytest.mark.ranks
def test_an_all_reduce_by_real_agents(tmp_path: Path, ssh: Callable[..., Path]) -> None:
    ssh()
    found = doctor_hosts.all_reduce(tmp_path, hosts(interface="lo", variables={"OMP_NUM_THREADS": "1"}))
    assert found.state == "ok", found
    assert "GB/s among 2 hosts by" in found.found
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_the_runner_of_the_cluster_file_is_the_one_that_is_tried(
    tmp_path: Path, ssh: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = ssh()
    monkeypatch.setenv("PATH", f"{net}:/nowhere")
    monkeypatch.setattr(doctor_hosts, "ask_all", lambda folder, backend, hosts: {h: Answer(error="no") for h in hosts})
    monkeypatch.setattr(doctor_hosts.shared, "unseen", lambda folder, shells: {})
    found = {one.what: one for one in doctor_hosts.examine(tmp_path, hosts(runner="deepspeed"))}
    assert found["runner"].state == "fail" and "needs pdsh" in found["runner"].found
    assert found["all-reduce"].found == "not tried"
    (net / "pdsh").write_text("")
    (net / "pdsh").chmod(0o755)
    assert doctor_hosts.runner(tmp_path, hosts(runner="deepspeed")).found == "deepspeed, by pdsh"
    assert doctor_hosts.runner(tmp_path, hosts(pass_variables=["NOT_SET"])).state == "fail"
    (tmp_path / "hostfile").write_text("a\nb\n")
    assert doctor_hosts.of_hostfile(tmp_path / "hostfile").runner == "deepspeed"
    (net / "pdsh").unlink()
    assert doctor_hosts.of_hostfile(tmp_path / "hostfile").runner == "ssh", "nobody has chosen"


def test_the_all_reduce_has_the_variables_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong NCCL_IB_HCA is what it is to find."""
    monkeypatch.setenv("NCCL_IB_HCA", "mlx5_0")
    monkeypatch.setenv("NAMED", "x")
    seen: list[Job] = []
    doctor_hosts.all_reduce(tmp_path, hosts(variables={"GLOO_A": "1"}, pass_variables=["NAMED"]), seen.append)
    assert {"NCCL_IB_HCA": "mlx5_0", "NAMED": "x", "GLOO_A": "1"}.items() <= seen[0].environment.items()
    assert (seen[0].followed, seen[0].mark, seen[0].timeouts) == (True, "doctor", doctor_hosts.REDUCE_TIMEOUTS)


def test_ranks_that_cannot_meet(tmp_path: Path) -> None:
    def run(job: Job) -> None:
        assert (job.nodes, job.ranks, job.hosts) == (2, 1, ["a", "b"])
        error = LaunchError("cannot reach the first node at 10.0.0.1 port 4242.")
        error.host = "b"
        raise error

    found = doctor_hosts.all_reduce(tmp_path, hosts(), run)
    assert found.state == "fail"
    assert found.found.startswith("b: cannot reach")
    assert "firewall" in found.remedy
    assert doctor_hosts.all_reduce(tmp_path, hosts(), lambda job: None).state == "fail", "no result"
    assert doctor_hosts.all_reduce(tmp_path / "none", hosts()).state == "fail"


# ---------------------------------------------------------------- the command


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hostfile").write_text("a slots=2\nb slots=2\n")
    (tmp_path / "cluster.yaml").write_text(json.dumps({"kind": "hosts", "hosts": ["a", "b"]}))
    seen: list[list[str]] = []

    def examine(folder: Path, backend: doctor_hosts.Hosts) -> list[Finding]:
        seen.append(backend.nodes())
        return [Finding("clocks", "fail" if len(seen) > 1 else "ok", "x")]

    monkeypatch.setattr(doctor_hosts, "examine", examine)
    fit = CliRunner().invoke(app, ["doctor", "--hosts", "hostfile"])
    unfit = CliRunner().invoke(app, ["doctor", "--cluster", "cluster.yaml"])
    assert (fit.exit_code, unfit.exit_code) == (0, 1)
    assert "These hosts are fit for a run." in fit.output
    assert "These hosts are not fit for a run." in unfit.output
    assert seen == [["a", "b"], ["a", "b"]]
    both = CliRunner().invoke(app, ["doctor", "--hosts", "hostfile", "--cluster", "cluster.yaml"])
    assert isinstance(both.exception, ConfigError)


def test_clusters_without_hosts() -> None:
    with pytest.raises(ConfigError, match="kind slurm has none"):
        doctor_hosts.backend_of(ClusterConfig(kind="slurm"))

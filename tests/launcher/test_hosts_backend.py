"""What the hosts backend starts; the hosts themselves are in ``tests/clusters``."""

from __future__ import annotations

import base64
import json
import shlex
import stat
import sys
from pathlib import Path

import pytest

from configs.cluster import HostsCluster
from configs.errors import ConfigError, LaunchError
from configs.passing import passed_on
from launcher import shared
from launcher.backends.hosts import Hosts
from launcher.job import ROOT, Job
from launcher.node import encoded, node_number


def job(folder: Path) -> Job:
    return Job(folder, 2, nodes=2, hosts=["node1", "node2"], mark="m", followed=True)


def backend(**facts: object) -> Hosts:
    return Hosts(HostsCluster.model_validate({"kind": "hosts", "hosts": ["node1", "node2"], **facts}))


def test_ssh_gets_one_quoted_word_for_each_host(tmp_path: Path) -> None:
    found = backend(runner="ssh", python="/opt/a b/$(touch x)/python").commands(job(tmp_path))
    assert [name for name, _ in found] == ["node1", "node2"]
    for number, (name, words) in enumerate(found):
        assert words[-3:-1] == ["--", name]
        remote = shlex.split(words[-1])
        assert remote[:4] == ["exec", "/opt/a b/$(touch x)/python", "-P", str(ROOT / "launcher" / "node.py")]
        assert base64.urlsafe_b64decode(remote[4]).decode() == str(tmp_path / "launch" / "m" / "job.json")
        assert remote[5:] == ["--node", str(number)]


def test_deepspeeds_runner_starts_one_agent_for_each_host(tmp_path: Path) -> None:
    one = backend(python="/opt/python", ssh_config="/etc/ssh/mine")
    place = tmp_path / "launch" / "m"
    ((name, words),) = one.commands(job(tmp_path))
    assert name == "DeepSpeed's runner"
    text = shlex.join(words)
    assert text == (
        f"/opt/python -P -m deepspeed.launcher.runner --hostfile {place}/hostfile --launcher pdsh --force_multi "
        "--no_ssh_check --master_addr node1 --master_port 1 --no_python --no_local_rank /usr/bin/env "
        "-u CUDA_VISIBLE_DEVICES -u PYTHONPATH -u MASTER_ADDR -u MASTER_PORT -u CROSS_RANK -u CROSS_SIZE -u LOCAL_SIZE "
        f"/opt/python -P {ROOT}/launcher/node.py {encoded(place / 'job.json')} --node RANK"
    )
    described = one.describe(job(tmp_path))
    assert text in described
    assert "#   node1 slots=1\n#   node2 slots=1\n" in described
    assert "DS_ENV_FILE=/dev/null" in described
    assert "PDSH_SSH_ARGS_APPEND='-F /etc/ssh/mine -o BatchMode=yes" in described


def test_deepspeeds_runner_is_told_no_variable_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would write those that begin with PYTHON, NCCL, MLFLOW or UCX on the remote command line, unquoted."""
    for name in ("PYTHONSTARTUP", "NCCL_DEBUG", "MLFLOW_TRACKING_TOKEN", "UCX_TLS", "HF_TOKEN"):
        monkeypatch.setenv(name, "canary-$(touch x)")
    assert not [name for name, value in backend().environment().items() if "canary" in value]
    assert "canary" not in backend().describe(job(tmp_path))


@pytest.mark.parametrize("python", ["/opt/a b/python", "/opt/$(touch x)/python", "/opt/%h/python", "/opt/;x/python"])
def test_words_that_deepspeeds_runner_would_not_quote_are_refused(tmp_path: Path, python: str) -> None:
    with pytest.raises(ConfigError, match=r"without quoting it. Set `runner: ssh`"):
        backend(python=python).commands(job(tmp_path))


def test_the_run_folders_path_never_reaches_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "运行 $(touch x); 'a'"
    ((_, words),) = backend(python="/opt/python").commands(job(folder))
    program = words[words.index("/usr/bin/env") :]
    assert "touch" not in " ".join(program)


def test_without_pdsh_the_other_runner_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs pdsh, and it is not installed here.*runner: ssh"):
        backend().check(job(tmp_path))


def test_an_ipv6_address_goes_by_ssh(tmp_path: Path) -> None:
    six = Job(tmp_path, 1, nodes=2, hosts=["fd00::1", "node2"], mark="m")
    with pytest.raises(ConfigError, match=r"IPv6 address fd00::1"):
        backend().commands(six)
    assert backend(runner="ssh").commands(six)[0][1][-2] == "fd00::1"


def test_a_job_in_its_file_is_private_and_the_same(tmp_path: Path) -> None:
    path = job(tmp_path).save()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Job.open(path)
    assert (again.folder, again.hosts, again.argv()) == (tmp_path, ["node1", "node2"], job(tmp_path).argv())
    assert json.loads(path.read_text())["followed"] is True


def test_the_nodes_number_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert node_number("RANK") == 3
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(ConfigError, match="RANK is not set"):
        node_number("RANK")


# ---------------------------------------------------------------- the shared folder


def test_hosts_that_do_not_see_the_folder_are_named_with_the_reason(tmp_path: Path) -> None:
    here = ["sh", "-c"]
    shells = {
        "good": here,
        "blind": ["sh", "-c", "echo something else #"],
        "broken": ["sh", "-c", "echo no route to host >&2; exit 255 #"],
        "absent": [str(tmp_path / "no-such-program")],
        "slow": ["sh", "-c", "sleep 20 #"],
    }
    folder = tmp_path / "a 'run' $(touch x)"
    found = shared.unseen(folder, shells, seconds=2.0)
    assert found == {
        "blind": "what it reads there is not what was written here",
        "broken": "no route to host",
        "absent": f"{tmp_path}/no-such-program cannot be started (No such file or directory)",
        "slow": "no answer within 2 s",
    }
    assert list(folder.iterdir()) == []
    assert not Path("x").exists()
    with pytest.raises(LaunchError, match=r"is not shared by all hosts") as error:
        shared.check(folder, {"good": here, "broken": shells["broken"]})
    assert error.value.host == "broken"
    shared.check(folder, {"good": here})


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    from configs.errors import OutputError

    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        shared.check(tmp_path / "file" / "run", {"here": [sys.executable]})


NAMES = ["ZHENGLIU_token", "NCCL_Auth", "TORCH_COOKIE", "HF_HUB_PWD", "OMP_DSN", "GLOO_wandb_api"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_called_like_a_secret_goes_only_by_its_name(tmp_path: Path, name: str) -> None:
    """However it is written."""
    base = {name: "canary", "NCCL_DEBUG": "INFO"}
    assert passed_on(base) == {"NCCL_DEBUG": "INFO"}
    assert passed_on(base, [name]) == base
    assert "canary" not in Job(tmp_path, 1, environment=base).shown()

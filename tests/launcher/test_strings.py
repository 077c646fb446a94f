"""R22: a thousand generated strings arrive unchanged, as arguments and as variables, and nothing is carried out on the
way. Here through stand-ins that need no rights; through real ssh, pdsh, Slurm and mpirun in ``tests/clusters``.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs import loader
from configs.cluster import HostsCluster, KubernetesCluster, SlurmCluster, load_cluster
from configs.errors import ConfigError
from launcher import manifests
from launcher.backends.hosts import Hosts
from launcher.backends.slurm import Slurm
from launcher.job import ROOT, Job
from launcher.node import encoded
from tests.launcher import stand_ins
from tests.launcher.strings import make, strings

FOLDER = "运行 $(touch zhengliu-trap) `id` 'a' \"b\"; $(RANK) %h\\ *\ntouch zhengliu-trap\n"
"""A run folder's name that no shell may see."""


@pytest.fixture(autouse=True)
def nothing_is_touched(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nor by the run folder's name, in whatever folder a shell might be."""
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))
    yield
    assert list(here.iterdir()) == []
    assert not Path("/zhengliu-trap").exists()


# ---------------------------------------------------------------- carried


def test_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(tmp_path, FOLDER, monkeypatch, {"kind": "local"})
    made.backend.run(made.job)
    made.check()


def test_over_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hosts, for whose shells ssh joins its words by spaces."""
    stand_ins.ssh(tmp_path, monkeypatch)
    facts: dict[str, object] = {"kind": "hosts", "hosts": ["node1", "node2"], "runner": "ssh", "interface": "lo"}
    made = make(tmp_path, FOLDER, monkeypatch, facts)
    made.backend.check(made.job)
    made.backend.run(made.job)
    made.check()


def test_in_slurms_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.slurm(tmp_path, monkeypatch)
    made = make(tmp_path, FOLDER, monkeypatch, {"kind": "slurm", "partition": "p", "interface": "lo"})
    assert isinstance(made.backend, Slurm)
    script = made.job.save().with_name("slurm.sh")
    script.write_bytes(os.fsencode(made.backend.script(made.job)))
    subprocess.run(["bash", script], check=True)
    made.check()


@pytest.mark.parametrize("kind", ["job", "pytorchjob", "volcano"])
def test_in_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What is applied is read as Kubernetes reads it: YAML, then $(NAME) in the command."""
    volumes = [{"claim": "c", "mount": str(tmp_path)}]
    facts = {"kind": "kubernetes", "job": kind, "image": "i", "volumes": volumes, "python": sys.executable}
    made = make(tmp_path, FOLDER, monkeypatch, facts)
    cluster, job = made.backend.cluster, replace(made.job, followed=False, hosts=())
    assert isinstance(cluster, KubernetesCluster)
    said = list(yaml.safe_load_all(manifests.to_yaml(manifests.manifests(job, cluster))))
    container = only_container(said[-1])
    variables = {manifests.INDEX[cluster.job]: "0", "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    job.save()
    subprocess.run([expanded(word, variables) for word in container["command"]], env=variables, check=True)
    made.check()


def only_container(said: Any) -> Any:
    spec = said["spec"]
    if "tasks" in spec:
        template = spec["tasks"][0]["template"]
    elif "pytorchReplicaSpecs" in spec:
        template = spec["pytorchReplicaSpecs"]["Master"]["template"]
    else:
        template = spec["template"]
    (container,) = template["spec"]["containers"]
    assert "args" not in container and "env" not in container
    return container


def expanded(word: str, variables: dict[str, str]) -> str:
    """As the API says of a container's command: $(NAME) of a known name is replaced, $$ is one $."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([-._a-zA-Z][-._a-zA-Z0-9]*)\)", value, word)


@pytest.mark.ranks
def test_by_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torchrun starts the ranks, arguments and variables are those that it was given; but $$ it takes for $."""
    made = make(tmp_path, FOLDER, monkeypatch, {"kind": "local"})
    how = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    command = [*how, *(word.replace("$", "$$") for word in made.job.command[3:])]
    subprocess.run(command, env=os.environ | made.job.environment, check=True, cwd=tmp_path, capture_output=True)
    made.check()


def test_what_a_dry_run_prints_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(tmp_path, FOLDER, monkeypatch, {"kind": "local"})
    script = tmp_path / "pasted"
    script.write_bytes(os.fsencode(made.backend.describe(made.job)))
    subprocess.run(["bash", script], check=True, env={"PATH": os.environ["PATH"]})
    made.check()


def test_the_comments_of_a_dry_run_stay_comments(tmp_path: Path) -> None:
    job = Job(tmp_path / FOLDER, 1, nodes=2, hosts=["node1", "node2"], mark="m1")
    said = Hosts(HostsCluster(kind="hosts", hosts=["node1", "node2"], runner="ssh")).describe(job)
    lines = [line[:5] for line in said.split("\n")]
    assert (lines[:3], lines[-2:]) == (["# " + str(tmp_path)[:3], "# tou", "# /la"], ["ssh -"] * 2)
    assert not [line for line in said.split("\n") if line.startswith("touch")]


# ---------------------------------------------------------------- what carries them, string by string


def test_a_job_in_its_file_is_the_same(tmp_path: Path) -> None:
    words = strings(tmp_path)
    job = Job(tmp_path, 1, command=words, environment={f"A{n}": text for n, text in enumerate(words)}, mark="m1")
    again = Job.open(job.save())
    assert (list(again.command), again.environment) == (words, job.environment)


def test_any_path_is_one_word_of_plain_letters(tmp_path: Path) -> None:
    for text in strings(tmp_path):
        path = Path("/runs") / text / "launch/m1/job.json"
        word = encoded(path)
        assert re.fullmatch(r"[A-Za-z0-9_=-]+", word)
        assert os.fsdecode(base64.urlsafe_b64decode(word)) == str(path.resolve())


def test_any_python_is_one_word_for_a_remote_shell(tmp_path: Path) -> None:
    job = Job(tmp_path, 1, nodes=1, hosts=["node1"], mark="m1")
    for text in strings(tmp_path):
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            continue  # refused by the cluster file's own check
        cluster = HostsCluster.model_validate(
            {"kind": "hosts", "hosts": ["node1"], "runner": "ssh", "python": f"/opt/{text}/python"}
        )
        ((_, words),) = Hosts(cluster).commands(job)
        assert shlex.split(words[-1])[:3] == ["exec", f"/opt/{text}/python", "-P"]


def test_what_goes_into_a_batch_script_is_one_word(tmp_path: Path) -> None:
    """Paths with any letters are quoted for bash; what else the user gives is refused unless it is plain."""
    backend = Slurm(SlurmCluster(kind="slurm", partition="p"))
    for text in strings(tmp_path)[::10]:
        job = Job(tmp_path / f"x{text}", 1, mark="m1", scheduled=True)
        script = backend.script(job)
        head, rest = script.split("\n\nplace=", 1)
        first = os.fsencode("place=" + rest[: rest.index("\n# The Python")])
        said = subprocess.run(["bash"], input=first + b'\nprintf %s "$place"', capture_output=True, check=True).stdout
        assert said == os.fsencode(job.place.resolve())
        assert all(re.fullmatch(r"#SBATCH --[\x20-\x7e]+", line) for line in head.split("\n")[1:])


class Texts(loader.Config):
    texts: list[str]


def test_overrides_reach_the_ranks_configuration(tmp_path: Path) -> None:
    """The first leg of every path: a word of the command line, the run folder's config.yaml, a rank."""
    path, words = tmp_path / "run.yaml", strings(tmp_path)
    path.write_text("texts: []")
    given = yaml.safe_dump(words, default_flow_style=True, width=1 << 30).strip()
    config = loader.load(path, [f"texts={given}"], Texts)
    assert config.texts == words
    path.write_text(loader.to_yaml(config), encoding="utf-8")
    assert loader.load(path, [], Texts).texts == words


# ---------------------------------------------------------------- what cannot be carried


@pytest.mark.parametrize("text", ["a\0b", "\0", "\ud800"])
def test_what_no_process_can_be_given_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"Word 1 of the command.*(NUL|encoding)"):
        Job(tmp_path, 1, command=["x", text])
    with pytest.raises(ConfigError, match=r"The environment variable A .*(NUL|encoding)") as error:
        Job(tmp_path, 1, environment={"A": f"canary{text}"})
    assert "canary" not in str(error.value)
    with pytest.raises(ConfigError, match=r"The run folder.*(NUL|encoding)"):
        Job(tmp_path / text, 1)


def test_a_nul_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text('kind: local\nvariables: {A: "x\\0y"}\n')
    with pytest.raises(ConfigError, match=r"cluster.yaml is not valid YAML: .*holds a NUL"):
        load_cluster(path)
    path.write_text("kind: local\n")
    with pytest.raises(ConfigError, match=r"holds a NUL"):
        load_cluster(path, ['variables.A="\\0"'])

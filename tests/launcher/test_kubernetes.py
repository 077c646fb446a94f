"""Manifests of all three kinds: by golden file, by schema, and against a kubectl that plays the cluster."""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import os
import re
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.cluster import LABEL, KubernetesCluster, Timeouts, load_cluster
from configs.errors import ConfigError, LaunchError, Requeue
from launcher import manifests, node
from launcher.backends import kubernetes as backend
from launcher.backends.kubernetes import Kubernetes
from launcher.job import Job
from launcher.signals import Stopped
from launcher.verdict import Verdict

GOLDEN = Path(__file__).parent / "golden"
KINDS = ["job", "pytorchjob", "volcano"]
FACTS: dict[str, Any] = {
    "kind": "kubernetes",
    "nodes": 3,
    "image": "registry.example:5000/zhengliu:0.1.0",
    "volumes": [
        {"claim": "zhengliu-runs", "mount": "/runs"},
        {"claim": "models", "mount": "/models", "read_only": True},
    ],
    "resources": {"cpu": "32", "memory": "256Gi", "gpus": 8, "shm": "32Gi"},
    "secrets": {"HF_TOKEN": {"secret": "hugging-face", "key": "token"}},
    "namespace": "distillation",
    "context": "lab",
    "account": {"user": 1000, "group": 100},
    "node_selector": {"gpu": "h200"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "priority_class": "batch",
    "variables": {"NCCL_DEBUG": "WARN", "PASSPHRASE": "canary-secret"},
    "supervision": {"restarts": 2, "timeouts": {"stop": 120.5}},
}


def cluster(kind: str = "job", **changes: Any) -> KubernetesCluster:
    queue = {"queue": "night"} if kind == "volcano" else {}
    return KubernetesCluster(**{**FACTS, "job": kind, **queue, **changes})


def job_of(said: KubernetesCluster, folder: Path = Path("/runs/学生_Small")) -> Job:
    return Job(
        folder,
        ranks=8,
        nodes=said.nodes,
        hosts=[f"node-{n}" for n in range(said.nodes)],
        mark="20300102-030405-abcdef",
        environment=said.variables,
        timeouts=said.supervision.timeouts,
        followed=True,
    )


def rendered(kind: str, **changes: Any) -> list[manifests.Manifest]:
    said = cluster(kind, **changes)
    return manifests.manifests(job_of(said), said)


def templates(objects: list[manifests.Manifest]) -> list[Any]:
    spec = objects[-1]["spec"]
    if "template" in spec:
        return [spec["template"]]
    parts = spec["tasks"] if "tasks" in spec else spec["pytorchReplicaSpecs"].values()
    return [part["template"] for part in parts]


# ---------------------------------------------------------------- what is rendered


@pytest.mark.parametrize("kind", KINDS)
def test_golden(kind: str) -> None:
    """``UPDATE_GOLDEN=1 pytest ...`` writes them anew; look at the difference."""
    said = Kubernetes(cluster(kind)).describe(job_of(cluster(kind))) + "\n"
    path = GOLDEN / f"kubernetes-{kind}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(said, encoding="utf-8")
    assert said == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_pods_keep_the_schema_of_kubernetes(kind: str) -> None:
    """``kubernetes-validate`` carries the API's own schemas; strict: unknown fields are errors."""
    for one in rendered(kind):
        if one["apiVersion"] in ("v1", "batch/v1"):
            kubernetes_validate.validate(one, "1.31", strict=True)
    for template in templates(rendered(kind)):
        metadata = {"name": "pod", **template["metadata"]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        kubernetes_validate.validate(pod, "1.31", strict=True)
    broken = rendered("job")[-1]
    broken["spec"]["backoffLimits"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.31", strict=True)


def through_the_models_of_the_operator(document: manifests.Manifest) -> Any:
    """The document read into kubeflow-training's models, which know all fields and which are required."""
    models = importlib.import_module("kubeflow.training")
    api = importlib.import_module("kubeflow.training.api_client").ApiClient()

    class Response:
        data = json.dumps(document)

    return api.sanitize_for_serialization(api.deserialize(Response, models.KubeflowOrgV1PyTorchJob))


def test_the_pytorchjob_keeps_the_schema_of_the_training_operator() -> None:
    (document,) = rendered("pytorchjob")
    assert through_the_models_of_the_operator(document) == document, "a field that the operator does not know is lost"
    document["spec"]["pytorchReplicaSpecs"]["Master"]["replica"] = 1
    assert through_the_models_of_the_operator(document) != document
    del document["spec"]["pytorchReplicaSpecs"]
    with pytest.raises(ValueError, match="pytorch_replica_specs"):
        through_the_models_of_the_operator(document)


def test_volcano_keeps_its_documented_rules() -> None:
    """No package carries its schema: the fields and admission rules of batch.volcano.sh/v1alpha1, written out."""
    (document,) = rendered("volcano")
    spec = document["spec"]
    assert set(spec) <= {
        "schedulerName", "minAvailable", "volumes", "tasks", "policies", "plugins", "runningEstimate", "queue",
        "maxRetry", "ttlSecondsAfterFinished", "priorityClassName", "minSuccess",
    }  # fmt: skip
    assert spec["minAvailable"] <= sum(task["replicas"] for task in spec["tasks"])
    assert set(spec["plugins"]) <= {"svc", "env", "ssh", "pytorch", "tensorflow", "mpi"}
    events = {"*", "PodFailed", "PodEvicted", "PodPending", "JobUnknown", "TaskCompleted", "TaskFailed", "OutOfSync"}
    actions = {"AbortJob", "RestartJob", "RestartTask", "TerminateJob", "CompleteJob", "ResumeJob", "SyncJob"}
    said = [policy.get("event", policy.get("exitCode")) for policy in spec["policies"]]
    assert len(set(said)) == len(said), "admission refuses a policy that is there twice"
    for policy in spec["policies"]:
        assert policy["action"] in actions
        assert ("event" in policy) != ("exitCode" in policy), "admission wants one of the two"
        assert policy.get("exitCode") != 0
        assert policy.get("event", "*") in events


@pytest.mark.parametrize("kind", KINDS)
def test_what_every_kind_has(kind: str) -> None:
    objects = rendered(kind)
    text = manifests.to_yaml(objects)
    assert "canary-secret" not in text, "variables travel in job.json"
    assert list(yaml.safe_load_all(text)) == objects
    for template in templates(objects):
        (container,) = template["spec"]["containers"]
        words = container["command"]
        assert base64.urlsafe_b64decode(words[4]).decode() == "/runs/学生_Small/launch/20300102-030405-abcdef/job.json"
        assert words[words.index("--node") + 1] == manifests.INDEX[kind]
        assert template["spec"]["terminationGracePeriodSeconds"] == 121 + manifests.GRACE_MARGIN
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert sum(
        part.get("replicas", 0)
        for part in [
            *objects[-1]["spec"].get("tasks", []),
            *objects[-1]["spec"].get("pytorchReplicaSpecs", {}).values(),
        ]
    ) in (0, 3)


@pytest.mark.parametrize(
    ("kind", "statuses"), [("job", "FailJob"), ("volcano", "TerminateJob")], ids=["job", "volcano"]
)
def test_what_starting_again_cannot_mend_ends_the_job(kind: str, statuses: str) -> None:
    spec = rendered(kind)[-1]["spec"]
    if kind == "job":
        rules = spec["podFailurePolicy"]["rules"]
        codes = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {}).get("values", [])}
        assert spec["backoffLimit"] == 6
    else:
        codes = {rule["exitCode"]: rule["action"] for rule in spec["policies"] if "exitCode" in rule}
        assert rendered(kind, supervision={})[-1]["spec"]["policies"][-1]["action"] == "TerminateJob"
    assert {code for code, action in codes.items() if action == statuses} == {64, 65, 70, 74}
    assert codes[75] == {"job": "Ignore", "volcano": "RestartJob"}[kind]
    assert 69 not in codes


@given(folder=st.text(max_size=80).filter(lambda t: "/" not in t and "\0" not in t), mark=st.from_regex(r"[\d-]{1,16}"))
def test_names_are_dns_labels(folder: str, mark: str) -> None:
    for each in (mark.strip(), "20300102-030405-abcdef"):
        name = manifests.job_name(Job(Path("/runs") / folder, 1, mark=each))
        assert re.fullmatch(LABEL, name), name
        assert name[0].isalpha()
        assert len(name) <= manifests.NAME_LENGTH


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "changes",
    [
        {"namespace": "Not_A_Label"},
        {"namespace": "-x"},
        {"image": "--privileged"},
        {"image": "a b"},
        {"kubectl": "-x"},
        {"context": "--as=root"},
        {"python": "python3; id"},
        {"volumes": []},
        {"volumes": [{"claim": "a_b", "mount": "/runs"}]},
        {"volumes": [{"claim": "a", "mount": "runs"}]},
        {"volumes": [{"claim": "a", "mount": "/runs"}, {"claim": "b", "mount": "/runs"}]},
        {"secrets": {"HF_TOKEN": "hf_abc"}},
        {"secrets": {"A=B": {"secret": "x", "key": "y"}}},
        {"resources": {"memory": "lots"}},
        {"queue": "night"},
        {"supervision": {"min_nodes": 1}},
    ],
    ids=str,
)
def test_what_is_no_cluster(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        cluster("job", **changes)


@pytest.mark.parametrize("folder", ["/tmp/run", "/models/run", "/runs-2/run"])
def test_a_run_folder_that_pods_cannot_write(folder: str) -> None:
    with pytest.raises(ConfigError, match=r"lies on none of the volumes that pods can write \(/runs\)"):
        Kubernetes(cluster()).describe(job_of(cluster(), Path(folder)))


def test_ranks_of_a_pod() -> None:
    assert Kubernetes(cluster()).ranks(None) == 8
    assert Kubernetes(cluster()).ranks(4) == 4
    assert Kubernetes(cluster(processes=2)).ranks(4) == 2
    assert Kubernetes(cluster(resources={})).ranks(None) == 1


# ---------------------------------------------------------------- kubectl

KUBECTL = """#!/bin/sh
# Notes its arguments, keeps what it is given, and answers with what the test has put there.
cd {folder}
echo "$@" >> asked
case "$*" in
    *apply*) cat > applied; [ ! -f refuses ] || {{ echo "error: no such cluster" >&2; exit 1; }} ;;
    *" get "*) cat status ;;
    *delete*) touch deleted ;;
esac
"""


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a ``kubectl``."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    program = folder / "kubectl"
    program.write_text(KUBECTL.format(folder=folder))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(backend, "ASK_SECONDS", 0.05)
    (folder / "status").write_text("{}")
    return folder


def started(tmp_path: Path, **changes: Any) -> tuple[Kubernetes, Job]:
    volumes = [{"claim": "runs", "mount": str(tmp_path.resolve())}]
    said = cluster("job", volumes=volumes, **changes)
    return Kubernetes(said), job_of(said, tmp_path / "run")


def condition(word: str) -> str:
    return json.dumps({"status": {"conditions": [{"type": word, "status": "True"}]}})


@contextlib.contextmanager
def meanwhile(act: Any) -> Iterator[None]:
    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def await_file(path: Path, word: str = "") -> None:
    deadline = time.monotonic() + 20
    while not (path.exists() and word in path.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_run_that_is_done(tmp_path: Path, kubectl: Path) -> None:
    program, job = started(tmp_path)

    def pods() -> None:
        await_file(kubectl / "asked")
        Verdict("done").save(job.place)
        (kubectl / "status").write_text(condition("Complete"))

    with meanwhile(pods):
        program.run(job)
    (applied,) = [one for one in yaml.safe_load_all((kubectl / "applied").read_text()) if one["kind"] == "Job"]
    asked = (kubectl / "asked").read_text().splitlines()
    name = applied["metadata"]["name"]
    assert asked[0] == "--context=lab --namespace=distillation apply -f -"
    assert asked[-1].endswith(f"get jobs.batch {name} --ignore-not-found -o json")
    saved = Job.open(job.place / "job.json")
    assert (saved.followed, saved.hosts, saved.nodes) == (False, [], 3)
    assert stat.S_IMODE((job.place / "job.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("word", ["Complete", "Failed"])
def test_kubernetes_is_not_believed_without_a_verdict(tmp_path: Path, kubectl: Path, word: str) -> None:
    program, job = started(tmp_path)
    (kubectl / "status").write_text(condition(word))
    with pytest.raises(LaunchError, match=f"{word}, and its agents without a word"):
        program.run(job)


def test_the_verdict_of_the_agents_is_the_runs(tmp_path: Path, kubectl: Path) -> None:
    program, job = started(tmp_path)
    job.place.mkdir(parents=True)
    Verdict("failed", "Rank 3 on small-1: a bad shard.", 65).save(job.place)
    (kubectl / "status").write_text(condition("Failed"))
    with pytest.raises(LaunchError, match="a bad shard") as raised:
        program.run(job)
    assert raised.value.exit_code == 65


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Requeue), (signal.SIGINT, Stopped)])
def test_a_signal_deletes_the_job_and_waits_for_the_checkpoint(
    tmp_path: Path, kubectl: Path, number: signal.Signals, error: type[BaseException]
) -> None:
    program, job = started(tmp_path)

    def pods() -> None:
        await_file(kubectl / "asked", " get ")  # whoever asks for the job's state heeds signals
        os.kill(os.getpid(), number)
        await_file(kubectl / "deleted")
        Verdict.stopped("SIGTERM", complete=True).save(job.place)

    with meanwhile(pods), pytest.raises(error):
        program.run(job)
    assert (kubectl / "deleted").exists()


def test_a_job_that_somebody_deletes(tmp_path: Path, kubectl: Path) -> None:
    timeouts: Any = Timeouts(stop=0.1).model_dump()
    program, job = started(tmp_path, supervision={"timeouts": timeouts})
    (kubectl / "status").write_text("")
    backend.manifests.GRACE_MARGIN, before = 0, backend.manifests.GRACE_MARGIN
    try:
        with pytest.raises(LaunchError, match="deleted by somebody"):
            program.run(job)
    finally:
        backend.manifests.GRACE_MARGIN = before


def test_an_api_server_that_is_silent(tmp_path: Path, kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, job = started(tmp_path)
    monkeypatch.setattr(backend, "SILENT_SECONDS", 0.2)
    (kubectl / "status").unlink()
    with pytest.raises(LaunchError, match="has stopped following"):
        program.run(job)


def test_manifests_that_are_refused(tmp_path: Path, kubectl: Path) -> None:
    program, job = started(tmp_path)
    (kubectl / "refuses").touch()
    with pytest.raises(LaunchError, match="ended with status 1: error: no such cluster"):
        program.run(job)


def test_without_kubectl_the_manifests_are_left_with_the_command(tmp_path: Path) -> None:
    program, job = started(tmp_path, kubectl=str(tmp_path / "none" / "kubectl"))
    with pytest.raises(ConfigError, match=r"apply -f \S+/manifests\.yaml"):
        program.run(job)
    left = list(yaml.safe_load_all((job.place / "manifests.yaml").read_text()))
    assert [one["kind"] for one in left] == ["Service", "Job"]
    assert (job.place / "job.json").is_file()


def test_the_example() -> None:
    said = load_cluster("clusters/kubernetes")
    assert isinstance(said, KubernetesCluster)
    for kind in KINDS:
        one = said.model_copy(update={"job": kind})
        assert templates(manifests.manifests(job_of(one), one))


# ---------------------------------------------------------------- the agent's program


def test_an_agent_that_is_started_again_forgets_its_first_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says 143 for 75, where the scheduler wants that."""
    job = Job(tmp_path, 1)
    job.save()
    for number in (None, 0, 1):
        Verdict("failed", "of the first try", 69).save(job.place, number)

    def stopped(*_: object) -> None:
        assert sorted(path.name for path in job.place.iterdir()) == ["job.json", "node-1.json"]
        raise Requeue("Stopped by SIGTERM.")

    monkeypatch.setattr(node.agent, "run", stopped)
    monkeypatch.setenv("RANK", "0")
    words = ["node.py", node.encoded(job.place / "job.json"), "--node", "RANK"]
    monkeypatch.setattr("sys.argv", [*words, "--requeue-status", "143"])
    assert node.main() == 143
    monkeypatch.setattr("sys.argv", words)
    assert node.main() == 75

"""Kubernetes manifests of a job: one pod for each node, in it one agent.

Neither arguments nor variables of the run stand in them: the agent finds those in ``job.json``, in the run folder on
the mounted claim. Field names: Kubernetes API reference (batch/v1, v1), Kubeflow training operator
(kubeflow.org/v1 PyTorchJob), Volcano (batch.volcano.sh/v1alpha1 Job).
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import yaml

from configs.cluster import KubernetesCluster, PodResources
from configs.errors import ConfigError, DataError, OutputError, Requeue, TrainingError
from launcher.job import Job
from launcher.node import encoded

Manifest = dict[str, Any]
NAME_LENGTH = 40
"""With the start's mark and the names that the controllers add, still under the 63 characters of a DNS label."""
GRACE_MARGIN = 30
"""Seconds between the ranks' own time to stop and the pod's end."""
PERMANENT = [kind.exit_code for kind in (ConfigError, DataError, TrainingError, OutputError)]
"""Starting again would end the same way."""
RETRYABLE = 143
"""What the training operator (``restartPolicy: ExitCode``) takes for a preemption: it wants 128 or more."""
REQUEUES = 100
"""Of Volcano, whose count has no room for a difference between preemptions and failures."""
RESOURCE = {"job": "jobs.batch", "pytorchjob": "pytorchjobs.kubeflow.org", "volcano": "jobs.batch.volcano.sh"}
INDEX = {"job": "JOB_COMPLETION_INDEX", "pytorchjob": "RANK", "volcano": "VC_TASK_INDEX"}
"""Where each controller says a pod's number."""


def job_name(job: Job) -> str:
    """A DNS label (RFC 1123) from the run's name and the start's mark; a new one for each start."""
    words = re.sub(r"[^a-z0-9]+", "-", job.folder.name.lower()).strip("-")
    words = words if words[:1].isalpha() else f"run-{words}"  # a Service's name begins with a letter
    mark = re.sub(r"[^a-z0-9]+", "-", job.mark.lower())
    return f"{words[: NAME_LENGTH - len(mark) - 1].strip('-')}-{mark}".strip("-")


def manifests(job: Job, cluster: KubernetesCluster) -> list[Manifest]:
    """All objects of this start; that which is to be waited for is the last one."""
    return {"job": _indexed, "pytorchjob": _pytorch, "volcano": _volcano}[cluster.job](job, cluster)


class _Plain(yaml.SafeDumper):
    """Without anchors: people read this."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(objects: list[Manifest]) -> str:
    return yaml.dump_all(objects, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=1000)


# ---------------------------------------------------------------- the three kinds


def _indexed(job: Job, cluster: KubernetesCluster) -> list[Manifest]:
    name = job_name(job)
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(name, cluster),
        "spec": {"clusterIP": "None", "selector": _labels(name), "publishNotReadyAddresses": True},
    }
    pod = _pod(job, cluster)
    pod["spec"] = {"subdomain": name, "restartPolicy": "Never", **pod["spec"]}
    spec = {
        "completionMode": "Indexed",
        "completions": job.nodes,
        "parallelism": job.nodes,
        # One lost rank ends the pods of all nodes, and each of them is counted.
        "backoffLimit": cluster.supervision.restarts * job.nodes,
        "podReplacementPolicy": "Failed",  # never two agents of one node at the same time
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": _codes(*PERMANENT)},
                {"action": "Ignore", "onExitCodes": _codes(Requeue.exit_code)},
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": pod,
    }
    return [service, {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(name, cluster), "spec": spec}]


def _pytorch(job: Job, cluster: KubernetesCluster) -> list[Manifest]:
    name = job_name(job)
    replica = {"restartPolicy": "ExitCode", "template": _pod(job, cluster, "--requeue-status", str(RETRYABLE))}
    replicas = {"Master": {"replicas": 1, **replica}}
    if job.nodes > 1:
        replicas["Worker"] = {"replicas": job.nodes - 1, **replica}
    spec = {
        "runPolicy": {"cleanPodPolicy": "None", "schedulingPolicy": {"minAvailable": job.nodes}},
        "pytorchReplicaSpecs": replicas,
    }
    metadata = _metadata(name, cluster)
    return [{"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": metadata, "spec": spec}]


def _volcano(job: Job, cluster: KubernetesCluster) -> list[Manifest]:
    name = job_name(job)
    restarts = cluster.supervision.restarts
    pod = _pod(job, cluster)
    pod["spec"] = {"restartPolicy": "Never", **pod["spec"]}
    spec = {
        "schedulerName": "volcano",
        "minAvailable": job.nodes,
        "maxRetry": restarts or REQUEUES,
        **({"queue": cluster.queue} if cluster.queue else {}),
        **({"priorityClassName": cluster.priority_class} if cluster.priority_class else {}),
        "plugins": {"svc": [], "env": []},
        "policies": [  # the first that fits
            *({"exitCode": code, "action": "TerminateJob"} for code in PERMANENT),
            {"exitCode": Requeue.exit_code, "action": "RestartJob"},
            {"event": "PodEvicted", "action": "RestartJob"},
            {"event": "PodFailed", "action": "RestartJob" if restarts else "TerminateJob"},
        ],
        "tasks": [{"name": "node", "replicas": job.nodes, "template": pod}],
    }
    metadata = _metadata(name, cluster)
    return [{"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "metadata": metadata, "spec": spec}]


# ---------------------------------------------------------------- what they have in common


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "zhengliu", "app.kubernetes.io/instance": name}


def _metadata(name: str, cluster: KubernetesCluster) -> Manifest:
    namespace = {"namespace": cluster.namespace} if cluster.namespace else {}
    return {"name": name, **namespace, "labels": _labels(name)}


def _codes(*values: int) -> Manifest:
    return {"containerName": "pytorch", "operator": "In", "values": list(values)}


def _pod(job: Job, cluster: KubernetesCluster, *options: str) -> Manifest:
    account = cluster.account
    user, group = (os.getuid(), os.getgid()) if account is None else (account.user, account.group)
    memory = {"medium": "Memory", "sizeLimit": cluster.resources.shm}
    volumes = [
        {
            "name": f"claim-{number}",
            "persistentVolumeClaim": {"claimName": v.claim, **({"readOnly": True} if v.read_only else {})},
        }
        for number, v in enumerate(cluster.volumes)
    ]
    spec: Manifest = {
        "terminationGracePeriodSeconds": math.ceil(job.timeouts.stop) + GRACE_MARGIN,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {"runAsUser": user, "runAsGroup": group},
        **({"nodeSelector": cluster.node_selector} if cluster.node_selector else {}),
        **({"tolerations": cluster.tolerations} if cluster.tolerations else {}),
        **({"priorityClassName": cluster.priority_class} if cluster.priority_class else {}),
        "containers": [_container(job, cluster, options)],
        "volumes": [*volumes, {"name": "shm", "emptyDir": memory}],
    }
    return {"metadata": {"labels": _labels(job_name(job))}, "spec": spec}


def _container(job: Job, cluster: KubernetesCluster, options: tuple[str, ...]) -> Manifest:
    where = encoded(job.place / "job.json")
    agent = [cluster.python, "-P", "-m", "launcher.node", where, "--node", INDEX[cluster.job], "--show", *options]
    mounts = [
        {"name": f"claim-{number}", "mountPath": v.mount, **({"readOnly": True} if v.read_only else {})}
        for number, v in enumerate(cluster.volumes)
    ]
    secrets = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": said.secret, "key": said.key}}}
        for name, said in cluster.secrets.items()
    ]
    return {
        "name": "pytorch",  # the name by which the training operator knows it
        "image": cluster.image,
        "command": agent,
        **({"env": secrets} if secrets else {}),
        "resources": _resources(cluster.resources),
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": [*mounts, {"name": "shm", "mountPath": "/dev/shm"}],
    }


def _resources(said: PodResources) -> Manifest:
    gpus = {said.gpu_resource: str(said.gpus)} if said.gpus else {}
    wanted = {"cpu": said.cpu, "memory": said.memory, **gpus}
    return {"requests": dict(wanted), "limits": dict(wanted)}


def check_folder(folder: Path, cluster: KubernetesCluster) -> None:
    """Raises ConfigError: the run folder is on none of the claims that can be written."""
    mounts = [volume.mount for volume in cluster.volumes if not volume.read_only]
    if not any(folder.resolve().is_relative_to(mount) for mount in mounts):
        raise ConfigError(
            f"The folder {folder.resolve()} lies on none of the volumes that pods can write ({', '.join(mounts)}). "
            "Choose one there with `output` (or data.folder), or correct `volumes` in the cluster file."
        )

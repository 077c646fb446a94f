"""Pods of a Kubernetes cluster: manifests are rendered, applied by kubectl, and followed through the run folder."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from dataclasses import replace
from typing import Any

from configs.cluster import KubernetesCluster
from configs.errors import ConfigError, LaunchError, output_error
from launcher import manifests
from launcher.agent import POLL_SECONDS, Asked
from launcher.backends.base import BACKENDS, Backend, comment
from launcher.job import Job, write_private
from launcher.signals import Stopped
from launcher.verdict import read_verdict
from launcher.watch import Watch

ASK_SECONDS = 5.0
"""Between two questions to the API server."""
SILENT_SECONDS = 600.0
"""In which the API server may answer nothing before the launcher gives up following; the pods go on."""
KUBECTL_SECONDS = 60.0
ENDED = {"Complete", "Failed", "Succeeded", "Completed", "Aborted", "Terminated"}
"""Conditions of a Job (the first two) and of a PyTorchJob, and phases of Volcano."""
DELETED = "deleted by somebody"


@BACKENDS.add("kubernetes")
class Kubernetes(Backend):
    """``job: job``, ``pytorchjob`` or ``volcano``."""

    cluster: KubernetesCluster
    passes_on = ()

    def __init__(self, cluster: KubernetesCluster) -> None:
        super().__init__(cluster)
        self.restarts = cluster.job != "pytorchjob"  # the training operator has no count for this

    def nodes(self) -> list[str]:
        return [f"node-{number}" for number in range(self.cluster.nodes)]

    def ranks(self, wanted: int | None) -> int:
        """Whoever starts this need not have the pods' GPUs."""
        return self.cluster.processes or wanted or self.cluster.resources.gpus or 1

    def preparing(self) -> Kubernetes:
        """Pods without GPUs."""
        resources = self.cluster.resources.model_copy(update={"gpus": 0})
        return Kubernetes(self.cluster.model_copy(update={"resources": resources}))

    def check(self, job: Job) -> None:
        manifests.check_folder(job.folder, self.cluster)

    def describe(self, job: Job) -> str:
        text = manifests.to_yaml(self._manifests(job))
        said = f"{comment(job.place / 'job.json')}\n{self._held(job).shown()}"
        return f"{said}\n# {shlex.join(self._apply())} <<'END'\n{text}# END"

    def run(self, job: Job) -> None:
        text = manifests.to_yaml(self._manifests(job))
        self._held(job).save()
        path = job.place / "manifests.yaml"
        try:
            write_private(path, text)
        except OSError as error:
            raise output_error(path, error) from error
        try:
            self._kubectl("apply", "-f", "-", given=text)
        except FileNotFoundError:
            command = shlex.join([*self._apply()[:-1], str(path)])
            raise ConfigError(
                f"There is no {self.cluster.kubectl} here. Apply the manifests where there is one: {command}"
            ) from None
        print(f"{self.kind} {manifests.job_name(job)} is submitted; kubectl logs shows its pods.", flush=True)
        self._follow(job)

    @property
    def kind(self) -> str:
        return manifests.RESOURCE[self.cluster.job]

    def _manifests(self, job: Job) -> list[manifests.Manifest]:
        manifests.check_folder(job.folder, self.cluster)
        return manifests.manifests(self._held(job), self.cluster)

    def _held(self, job: Job) -> Job:
        """Kubernetes holds the job, whatever becomes of the launcher; nodes are called as their pods are."""
        return replace(job, followed=False, hosts=())

    # ------------------------------------------------------------ kubectl

    def _words(self) -> list[str]:
        cluster = self.cluster
        context = [f"--context={cluster.context}"] if cluster.context else []
        namespace = [f"--namespace={cluster.namespace}"] if cluster.namespace else []
        return [cluster.kubectl, *context, *namespace]

    def _apply(self) -> list[str]:
        return [*self._words(), "apply", "-f", "-"]

    def _kubectl(self, *words: str, given: str = "") -> str:
        """Raises LaunchError with what kubectl said, FileNotFoundError where there is none."""
        command = [*self._words(), *words]
        try:
            done = subprocess.run(
                command, input=given, capture_output=True, text=True, check=False, timeout=KUBECTL_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise LaunchError(f"`{shlex.join(command)}` has not answered within {KUBECTL_SECONDS:.0f} s.") from None
        except PermissionError as error:
            raise ConfigError(f"{self.cluster.kubectl} cannot be started ({error.strerror}).") from None
        if done.returncode:
            raise LaunchError(f"`{shlex.join(command)}` ended with status {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    # ------------------------------------------------------------ following

    def _follow(self, job: Job) -> None:
        """Show rank 0's lines until Kubernetes says that the job has ended; how, only the agents' verdict says.

        Raises:
            LaunchError, Requeue: the verdict.
            Stopped: Ctrl-C, after the pods have ended.
        """
        asked = Asked()
        log = job.folder / "logs" / "rank-0.log"
        began_at = log.stat().st_size if log.exists() else 0
        with asked.heeded(), Watch(log, began_at, job.folder / "logs" / "progress.json") as watch:
            state = self._until_ended(job, asked, watch)
        verdict = read_verdict(job)
        if verdict is None:
            raise LaunchError(
                f"{self.kind} {manifests.job_name(job)}: {state}, and its agents without a word. See "
                f"`kubectl describe` and `kubectl logs` of its pods: is the image right, and {job.folder} mounted?"
            )
        if asked.interrupted is not None and verdict.kind == "stopped":
            raise Stopped(asked.interrupted)
        verdict.raise_unless_done()

    def _until_ended(self, job: Job, asked: Asked, watch: Watch) -> str:
        """Kubernetes' own word for the end. A signal deletes the job: its pods get SIGTERM, and checkpoint."""
        heard = last = time.monotonic()
        deadline: float | None = None
        state = "nothing is known of it"
        while True:
            watch.refresh()
            now = time.monotonic()
            if asked.who is not None and deadline is None:
                self._kubectl("delete", self.kind, manifests.job_name(job), "--wait=false", "--ignore-not-found")
                state, deadline = f"deleted after {asked.who}", now + job.timeouts.stop + manifests.GRACE_MARGIN
            if deadline is not None:  # there is nothing left to ask about
                if read_verdict(job) is not None or asked.at_once or now > deadline:
                    return state
            elif now - last > ASK_SECONDS:
                last = now
                try:
                    state, heard = self._state(job), now
                except LaunchError as error:
                    if now - heard > SILENT_SECONDS:
                        raise LaunchError(f"{error} The pods may go on: this launcher has stopped following.") from None
                if state in ENDED:
                    return state
                if state == DELETED:
                    deadline = now + job.timeouts.stop + manifests.GRACE_MARGIN
            time.sleep(POLL_SECONDS)

    def _state(self, job: Job) -> str:
        said = self._kubectl("get", self.kind, manifests.job_name(job), "--ignore-not-found", "-o", "json")
        if not said.strip():
            return DELETED
        facts: dict[str, Any] = json.loads(said)
        status = facts.get("status", {})
        phase = status.get("state", {}).get("phase")
        true = [c["type"] for c in status.get("conditions") or [] if c.get("status") == "True"]
        return str(next((word for word in (phase, *true) if word in ENDED), phase or (true or ["pending"])[-1]))

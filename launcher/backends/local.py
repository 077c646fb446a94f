"""All ranks on this machine."""

from __future__ import annotations

import shlex

from launcher import agent
from launcher.backends.base import BACKENDS, Backend
from launcher.job import Job, rank_environment
from launcher.ranks import guarded


@BACKENDS.add("local")
class Local(Backend):
    """The agent in this very process."""

    def describe(self, job: Job) -> str:
        job = job.for_show()
        rendezvous = f"file://{job.folder.resolve()}/logs/.rendezvous-ID"
        lines = []
        for rank in range(job.ranks):
            environment = rank_environment(job, rank, rendezvous, {}, pulse="FILE")
            words = [f"{key}={shlex.quote(value)}" for key, value in environment.items()]
            log = shlex.quote(str(job.folder / "logs" / f"rank-{rank}.log"))
            *front, _ = guarded([], "")
            # $$ is the shell into which this is pasted: the rank dies with it, as it does with its agent.
            command = f"{shlex.join(front)} $$ {shlex.join(job.argv())}"
            lines.append(" \\\n    ".join([*words, f"{command} >> {log} 2>&1"]))
        return "\n".join(lines)

    def run(self, job: Job) -> None:
        agent.run(job)

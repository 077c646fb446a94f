"""Slurm: one job for the whole run, one agent on each of its nodes.

The launcher submits and goes. What is left to the batch script: pass the notice before the time limit on to the agents,
ask for another turn when the run was stopped with a checkpoint, and end with the run's own exit status.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys

from configs.cluster import SlurmCluster
from configs.errors import ConfigError, LaunchError, output_error
from configs.passing import BY_SLURM
from launcher.backends.base import BACKENDS, Backend, comment
from launcher.job import HOSTS, ROOT, Job, write_private
from launcher.node import encoded

SCRIPT = """\
#!/bin/bash
{options}

place={place}
{environment}
agent=({agent})

asked= agents=
pass_on() {{
    asked=1
    [ -z "$agents" ] || kill -USR1 "$agents" 2> /dev/null
}}
trap pass_on USR1 TERM

rm -f -- "$place"/link.json "$place"/verdict.json "$place"/node-*.json  # of an earlier turn
scontrol show hostnames "$SLURM_JOB_NODELIST" > "$place"/{hosts}
if [ -z "$asked" ]; then
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=60 --export=ALL \\
        "${{agent[@]}}" --node SLURM_PROCID --show &
    agents=$!
    while kill -0 "$agents" 2> /dev/null; do wait "$agents"; done
fi
"${{agent[@]}}" --outcome
status=$?
[ -z "$asked" ] || [ -e "$place"/verdict.json ] || status=75

case $status in
    75) turns={requeues} ;; # stopped, with a checkpoint
    69) turns={restarts} ;; # a rank or a node was lost
    *) turns=0 ;;
esac
count=$(cat "$place/turns-$status" 2> /dev/null || echo 0)
# Only while it is ours to ask: a job that is cancelled stays so, and one that is preempted is in the queue already.
if [ "$count" -lt "$turns" ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
    echo $((count + 1)) > "$place/turns-$status"
    echo "Status $status: back into the queue ($((count + 1)) of $turns)."
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


@BACKENDS.add("slurm")
class Slurm(Backend):
    """``sbatch``, not waited for."""

    cluster: SlurmCluster
    scheduled = True
    restarts = True

    def nodes(self) -> list[str]:
        return [""] * self.cluster.nodes

    def ranks(self, wanted: int | None) -> int:
        """The machine where it is submitted need not have the nodes' GPUs."""
        wanted = self.cluster.processes or wanted or self.cluster.gpus or 1
        return min(wanted, self.cluster.gpus or wanted)

    def options(self, job: Job) -> list[str]:
        """Lines of the script; each of their words has been checked by the cluster file."""
        cluster, least = self.cluster, self.cluster.supervision.min_nodes
        said = {
            "job-name": "zhengliu-" + re.sub(r"[^A-Za-z0-9_.-]", "_", job.folder.name),
            "partition": cluster.partition,
            "account": cluster.account,
            "qos": cluster.qos,
            "nodes": cluster.nodes if least is None else f"{least}-{cluster.nodes}",
            "ntasks-per-node": 1,
            "gpus-per-node": cluster.gpus,
            "cpus-per-task": cluster.cpus,
            "mem": None if cluster.memory_gb is None else f"{cluster.memory_gb}G" if cluster.memory_gb else 0,
            "time": cluster.time,
            "signal": f"B:USR1@{cluster.notice}",
            "open-mode": "append",
            "requeue": "",
            "export": ",".join(BY_SLURM),
            **cluster.sbatch,
        }
        return [f"--{key}={value}" if value != "" else f"--{key}" for key, value in said.items() if value is not None]

    def script(self, job: Job) -> str:
        cluster = self.cluster
        python = sys.executable if cluster.environment is None else "python"
        path = job.place / "job.json"
        return SCRIPT.format(
            options="\n".join(f"#SBATCH {option}" for option in self.options(job)),
            place=shlex.quote(str(job.place.resolve())),
            environment=cluster.environment or "# The Python that submitted this.",
            agent=shlex.join([python, "-P", str(ROOT / "launcher" / "node.py"), encoded(path)]),
            hosts=HOSTS,
            requeues=cluster.requeues,
            restarts=cluster.supervision.restarts,
        )

    def command(self, job: Job) -> list[str]:
        """sbatch with what may hold any letter: paths."""
        log = str(job.folder.resolve() / "logs").replace("%", "%%") + "/slurm-%j.log"
        waits = [f"afterok:{':'.join(job.after)}"] if job.after else []
        waits += [f"afterany:{':'.join(job.behind)}"] if job.behind else []
        after = [f"--dependency={','.join(waits)}"] if waits else []
        after += ["--kill-on-invalid-dep=yes"] if job.after else []
        script = str(job.place.resolve() / "slurm.sh")
        return ["sbatch", "--parsable", f"--output={log}", f"--chdir={os.getcwd()}", *after, script]

    def describe(self, job: Job) -> str:
        files = {"job.json": job.shown(), "slurm.sh": self.script(job)}
        shown = [f"{comment(job.place.resolve() / name)}\n{text.rstrip()}\n" for name, text in files.items()]
        return "\n".join([*shown, shlex.join(self.command(job))])

    def run(self, job: Job) -> str:
        """Submit; returns when the job is in the queue."""
        job.save()
        try:
            (job.folder / "logs").mkdir(parents=True, exist_ok=True)
            write_private(job.place / "slurm.sh", self.script(job))
        except OSError as error:
            raise output_error(job.place, error) from error
        number = submit(self.command(job))
        log = shlex.quote(str(job.folder / "logs" / f"slurm-{number}.log"))
        print(
            f"Submitted as Slurm job {number}. Its state: squeue -j {number}. Its lines: tail -F {log}. To end it: "
            f"scancel {number}. It ends with the run's own exit status.",
            flush=True,
        )
        return number


def submit(command: list[str]) -> str:
    """Call sbatch; the number of the job.

    Raises:
        ConfigError: there is none.
        LaunchError: it refuses.
    """
    if shutil.which(command[0]) is None:
        raise ConfigError("There is no sbatch on this machine. Start this on a login node of the cluster.")
    # SBATCH_* would overrule the script; SLURM_* is there when this runs in a job itself, and is not about the new one.
    kept = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or not k.startswith(("SBATCH_", "SLURM_"))}
    done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False, errors="replace")
    number = done.stdout.strip().split(";")[0]
    if done.returncode != 0 or not number.isdigit():
        raise LaunchError(f"sbatch refused the job: {(done.stderr or done.stdout).strip()}")
    return number

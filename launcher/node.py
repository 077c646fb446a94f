"""The agent's program on one of several nodes: ``python -P launcher/node.py JOB --node N``.

JOB is the path of ``job.json`` in URL-safe base64, so that no shell on the way finds anything in it; N is this node's
number, or the environment variable in which a scheduler says it. Nothing else comes over the command line. With
``--outcome`` instead of ``--node`` it says how the job's last start ended, by its exit status.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import socket
import sys
import traceback
from pathlib import Path

if __name__ == "__main__":  # as a script, the folder of this file (not with -P) is on the path instead of the project
    sys.path[: int(not sys.flags.safe_path)] = [str(Path(__file__).resolve().parent.parent)]

from configs.errors import ConfigError, LaunchError, OutputError, Requeue, ZhengliuError, explained
from launcher import agent
from launcher.job import Job
from launcher.lock import folder_lock
from launcher.signals import Stopped
from launcher.verdict import Kind, Verdict, forget, read_verdict


def encoded(path: Path) -> str:
    return base64.urlsafe_b64encode(os.fsencode(path.resolve())).decode()


def node_number(words: str) -> int:
    """``3``, or the name of a variable that holds it."""
    text = words if words.isdigit() else os.environ.get(words, "")
    if not text.isdigit():
        raise ConfigError(
            f"{socket.gethostname()}: {words} is not set to this node's number by what started it. Is the cluster "
            "file of the right kind (`launcher: openmpi` or `mpich`, say)?"
        )
    return int(text)


def take_part(job: Job, node: int, show: bool) -> None:
    """This node's part; how it ended stays in the launch's folder."""
    forget(job.place, node)
    try:
        # Where no launcher stays that holds the run folder, the first node does; the launcher may just be leaving.
        with folder_lock(job.folder, job.timeouts.join) if job.scheduled and node == 0 else contextlib.nullcontext():
            agent.run(job, node, show)
    except Exception as caught:
        error = explained(caught) or _defect(caught)
        kind: Kind = "stopped" if isinstance(error, Requeue) else "failed"
        with contextlib.suppress(OutputError):  # a full disk is already the message; the exit status says it, too
            Verdict(kind, str(error), error.exit_code, getattr(error, "host", None)).save(job.place, node)
        raise error from None


def _defect(error: Exception) -> ZhengliuError:
    traceback.print_exception(error)
    return ZhengliuError(
        f"{socket.gethostname()}: this is a defect of distill's agent: {type(error).__name__}: {error}. Please report "
        "it with the traceback that it printed."
    )


def outcome(job: Job) -> Verdict:
    """How the last start ended; exit statuses of what carried the agents are not believed."""
    silent = "The agents ended without a word: see what the scheduler says of the job and its nodes."
    return read_verdict(job) or Verdict("failed", silent, LaunchError.exit_code)


def main() -> int:
    parser = argparse.ArgumentParser(prog="node.py", description=__doc__)
    parser.add_argument("job")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--node")
    what.add_argument("--outcome", action="store_true", help="say how the job ended")
    parser.add_argument("--show", action="store_true", help="rank 0's log lines on standard output")
    parser.add_argument(
        "--requeue-status", type=int, default=Requeue.exit_code, help="instead of 75, for the scheduler"
    )
    # DeepSpeed's launcher adds an option of its own to every program.
    arguments, _ = parser.parse_known_args()
    path = Path(os.fsdecode(base64.urlsafe_b64decode(arguments.job)))
    try:
        job = Job.open(path)
        if arguments.outcome:
            outcome(job).raise_unless_done()
        else:
            take_part(job, node_number(arguments.node), arguments.show)
        return 0
    except ZhengliuError as error:
        print(error, file=sys.stderr, flush=True)
        return arguments.requeue_status if isinstance(error, Requeue) else error.exit_code
    except Stopped as stopped:
        return stopped.exit_code


if __name__ == "__main__":
    sys.exit(main())

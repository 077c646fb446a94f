"""The agent's program on one of several nodes: ``python -P launcher/node.py JOB --node N``.

JOB is the path of ``job.json`` in URL-safe base64, so that no shell on the way finds anything in it; N is this node's
number, or the environment variable in which a scheduler says it. Nothing else comes over the command line.
"""

from __future__ import annotations

import argparse
import base64
import os
import socket
import sys
from pathlib import Path

if __name__ == "__main__":  # as a script, the folder of this file is on the path instead of the project
    sys.path[0:1] = [str(Path(__file__).resolve().parent.parent)]

from configs.errors import LaunchError, Requeue, ZhengliuError
from launcher import agent
from launcher.job import Job
from launcher.signals import Stopped
from launcher.verdict import Kind, Verdict, forget


def encoded(path: Path) -> str:
    return base64.urlsafe_b64encode(str(path.resolve()).encode()).decode()


def node_number(words: str) -> int:
    """``3``, or the name of a variable that holds it."""
    text = words if words.isdigit() else os.environ.get(words, "")
    if not text.isdigit():
        raise LaunchError(f"{socket.gethostname()}: the scheduler has not set {words} to this node's number.")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(prog="node.py", description=__doc__)
    parser.add_argument("job")
    parser.add_argument("--node", required=True)
    parser.add_argument("--show", action="store_true", help="rank 0's log lines on standard output")
    parser.add_argument(
        "--requeue-status", type=int, default=Requeue.exit_code, help="instead of 75, for the scheduler"
    )
    # DeepSpeed's launcher adds an option of its own to every program.
    arguments, _ = parser.parse_known_args()
    path = Path(base64.urlsafe_b64decode(arguments.job).decode())
    try:
        node = node_number(arguments.node)
        job = Job.open(path)
        forget(path.parent, node)
        try:
            agent.run(job, node, arguments.show)
        except ZhengliuError as error:
            kind: Kind = "stopped" if isinstance(error, Requeue) else "failed"
            Verdict(kind, str(error), error.exit_code, getattr(error, "host", None)).save(path.parent, node)
            raise
        return 0
    except ZhengliuError as error:
        print(error, file=sys.stderr, flush=True)
        return arguments.requeue_status if isinstance(error, Requeue) else error.exit_code
    except Stopped as stopped:
        return stopped.exit_code


if __name__ == "__main__":
    sys.exit(main())

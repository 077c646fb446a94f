"""``guard.py PARENT_PID COMMAND...``: become COMMAND, and die with the parent.

A small program of its own, because the kernel is asked between fork and exec, and Python code run there
(``preexec_fn``) may deadlock in a parent that has threads. PR_SET_PDEATHSIG survives the exec, so a rank does
not outlive a launcher that was killed with SIGKILL and could clean nothing up.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux only; elsewhere the agent's own clean-up has to do
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent died before we could ask
        sys.exit(1)
    try:
        os.execvp(command[0], command)  # noqa: S606  # no shell
    except OSError as error:
        sys.exit(f"{command[0]} cannot be started: {error.strerror}")


if __name__ == "__main__":
    main()

"""The program of one rank for tests/ranks.py: ``python -m distill_core.run``, started as a file."""

from __future__ import annotations

import os
import sys

from distill_core.run import main

if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

"""The program of one rank in test_meter_ranks.py: ``distill_core.run`` with a second rank that is late in each step.

Usage: python meter_program.py FOLDER LATE READ: seconds that rank 1 sleeps before its step, and that rank 0's loader
sleeps over each of its batches.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from distill_core import stage
from distill_core.data import CorpusSource
from distill_core.run import main

if __name__ == "__main__":
    slow_read, late = float(sys.argv.pop()), float(sys.argv.pop())
    step, batch = stage.train_step, CorpusSource.batch
    first = os.environ["RANK"] == "0"

    def late_step(*given: Any) -> Any:
        time.sleep(0.0 if first else late)
        return step(*given)

    def slow_batch(*given: Any) -> Any:
        time.sleep(slow_read if first else 0.0)
        return batch(*given)

    stage.train_step = late_step
    CorpusSource.batch = slow_batch  # type: ignore[method-assign]
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

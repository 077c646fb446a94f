"""The program behind test_gpu.py: the GPU table's logic on tiny models, as without DeepSpeed and TextBrewer."""

from __future__ import annotations

import os
import sys

for missing in ("deepspeed", "textbrewer"):
    sys.modules[missing] = None  # type: ignore[assignment]

from benchmarks.gpu import __main__ as gpu  # noqa: E402 - after the packages are hidden

if __name__ == "__main__":
    sys.argv[1:] = ["--tiny", "--rounds", "1", *sys.argv[1:]]
    status = gpu.main()
    sys.stdout.flush()
    os._exit(status)

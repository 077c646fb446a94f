"""The program whose time and memory ``processes.py`` measures: one preparation, begun and ended as ``distill prep`` is.

python -m benchmarks.prep.child VOCABULARY FILE FOLDER PROCESSES (0: one, with the blocks of the memory bar)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from launcher.startup import collect_less


def child(vocabulary: str, source: str, out: str, workers: int) -> dict[str, float]:
    """Prepare ``source`` in this process (and its workers); the MiB that this one held at most."""
    from data_prep.config import DataConfig, MaskConfig, SourceConfig, TokenizerConfig
    from data_prep.pipeline import prepare

    config = DataConfig(
        sources=[SourceConfig(path=source)],
        tokenizer=TokenizerConfig(vocab=vocabulary),
        masks=MaskConfig(mode="dynamic"),
        block_megabytes=16 if workers else 64,
        workers=workers or 1,
    )
    prepare(config, Path(out))
    return {"mebibytes": peak()}


def peak() -> float:
    """MiB that this process has held at most. (Its ``ru_maxrss`` would count what its parent held when it forked.)"""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


if __name__ == "__main__":
    collect_less()
    print(json.dumps(child(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))))

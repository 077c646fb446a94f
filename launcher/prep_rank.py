"""The program of one rank of a preparation: ``python -m launcher.prep_rank DATA PHASE --where FOLDER [--workers N]``.

There is one on each node. It works on its share of the phase's blocks, with a process for each core, and tells its
agent how many are finished. Asked to stop, it ends at once: finished blocks are kept, and begun ones may take hours.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib
import os
import sys
import traceback
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy comes: a process without threads can be forked

from configs.errors import Requeue, ZhengliuError, explained
from distill_core.failing import note_failure
from distill_core.pulse import pulse
from launcher import devices
from launcher.signals import Stopped, stop_signals
from launcher.startup import collect_less


def work(folder: Path, phase: str, workers: int) -> None:
    """This rank's share of ``phase`` in the data ``folder``."""
    from data_prep.executors.ranks import carry_out_share

    for done in carry_out_share(folder, phase, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), workers):
        pulse.at("prepare", step=done)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m launcher.prep_rank", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("phase")
    parser.add_argument("--where", type=Path, required=True, help="where relative paths of sources start")
    parser.add_argument("--workers", type=int, help="processes; default: one for each core")
    said = parser.parse_args()
    collect_less()
    faulthandler.enable()
    if os.environ.get("ZHENGLIU_PULSE"):
        pulse.open(os.environ["ZHENGLIU_PULSE"], living=False)
        pulse.at("prepare", stage=said.phase)
    with contextlib.suppress(OSError):  # not there: then no source may be relative, or it will be missed by its name
        os.chdir(said.where)
    note = said.folder / "execution" / said.phase / "logs" / f"rank-{os.environ['RANK']}.error.json"
    try:
        # Before signals raise: one in the midst of numpy's import would be told as a broken installation.
        importlib.import_module("data_prep.executors.ranks")
        with stop_signals():
            work(said.folder, said.phase, said.workers or devices.cores())
        return 0
    except Stopped as stopped:
        print(f"Stopped by {stopped}; finished blocks are kept.", file=sys.stderr, flush=True)
        return Requeue.exit_code
    except ZhengliuError as error:
        print(error, file=sys.stderr, flush=True)
        note_failure(note, said.phase, error, error.exit_code)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        known = explained(error)
        code = 70 if known is None else known.exit_code
        note_failure(note, said.phase, known or error, code)
        return code


if __name__ == "__main__":
    sys.exit(main())

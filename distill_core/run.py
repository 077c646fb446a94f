"""The pipeline: which stage is next, what it reads, where it writes. Also the program of one rank.

``python -m distill_core.run RUN_FOLDER [--only STAGE]`` is started once per rank by the launcher.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist

from configs.errors import ConfigError, LaunchError, Requeue, ZhengliuError, explained, out_of_memory
from configs.loader import load
from data_prep.corpus import Corpus
from distill_core.beside import groups
from distill_core.config import RunConfig, sources
from distill_core.engine import Rank, pulse_file, rank_number, start_ranks, stop_ranks
from distill_core.failing import note_failure
from distill_core.finish import finish_run
from distill_core.precision import settle
from distill_core.pulse import pulse
from distill_core.record import read_done
from distill_core.stage import run_stages
from distill_core.stopping import stopping


def run_chain(config: RunConfig, rank: Rank, only: str | None = None) -> bool:
    """Run the stages in order (or just ``only``), skipping those that are done; True when all are done."""
    corpus = Corpus.open(config.data_folder, config.data.verify)
    for group in groups(config.stages):
        wanted = [index for index in group if only is None or config.stages[index].name == only]
        if wanted:
            current_stage.name = ", ".join(config.stages[index].name for index in wanted)
            pulse.at("load", stage=current_stage.name)
            for index in wanted:
                check_sources_are_ready(config, index)
            run_stages(config, wanted, corpus, rank)
    return all(read_done(config.stage_folder(i)) is not None for i in range(len(config.stages)))


def check_sources_are_ready(config: RunConfig, index: int) -> None:
    """Raise :class:`ConfigError` when an earlier stage that this one starts from has not finished."""
    stage = config.stages[index]
    for source in sources(stage):
        earlier = config.stage_index(source)
        if earlier is not None and read_done(config.stage_folder(earlier)) is None:
            raise ConfigError(
                f"Stage {stage.name!r} starts from stage {source!r}, and that one is not finished. Run it first "
                "(without --only, stages run in order)."
            )


class current_stage:
    """Where this rank is, for its error file."""

    name: str | None = None


def main() -> int:
    """The program of one rank; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m distill_core.run", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only")
    arguments = parser.parse_args()

    return rank_program(arguments.folder, lambda: run_ranks(arguments.folder, arguments.only))


def run_ranks(folder: Path, only: str | None) -> None:
    """This rank's part of the run in ``folder``, from joining the others to the report."""
    config = load(folder / "config.yaml", [], RunConfig)
    rank = start_ranks()
    config = settle(config, folder, rank)
    complete = run_chain(config, rank, only)
    stop_ranks()
    if rank.is_first and complete:
        current_stage.name = "the end of the run"
        pulse.at("end", stage=current_stage.name)
        finish_run(config, config.folder)


def rank_program(folder: Path, work: Callable[[], None]) -> int:
    """Do a rank's ``work``; its exit status, with an error told to the launcher in the run ``folder``."""
    faulthandler.enable()
    note = folder / "logs" / f"rank-{rank_number()}.error.json"
    if pulse_file():
        pulse.open(pulse_file())
    stopping.heed()
    try:
        work()
        return 0
    except Requeue as error:  # no failure: the state is kept, and the status says so
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    except ZhengliuError as error:
        print(error, file=sys.stderr, flush=True)
        note_failure(note, current_stage.name, error, error.exit_code)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        known = explained(error) or of_torch(error)
        code = 70 if known is None else known.exit_code
        note_failure(note, current_stage.name, known or error, code)
        return code


BROKEN = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
"""How gloo says that another rank, or the network, is gone; it has no class of errors of its own."""


def of_torch(error: Exception) -> ZhengliuError | None:
    """What an error of torch's means to the user; None: a defect of ours."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in text:
        return out_of_memory(text)
    if isinstance(error, dist.DistError) or ("gloo" in text and any(words in text for words in BROKEN)):
        said = (text.strip().splitlines() or [type(error).__name__])[0]
        return LaunchError(
            f"The connection to another rank broke ({said}). The run continues from its last checkpoint."
        )
    return None


def leave(status: int) -> NoReturn:
    """End a rank's process.

    Not by sys.exit: with the process group gone, DeepSpeed's and gloo's threads now and then abort the interpreter's
    shutdown ("terminate called without an active exception") after all work is done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main())

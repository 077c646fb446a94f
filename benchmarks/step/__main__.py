"""Our distillation step and published ones in one table: python -m benchmarks.step [--vocabulary VOCAB.txt] [FILES...]

All of them do the same work on the same text, in turns, step by step, in one process; figures are medians of ratios of
processor seconds (GPU: of the wall). Nobody's data loading is measured but ours: peers get ready batches.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.step import record
from benchmarks.step.bars import MEMORY, NUMERICS, PEERS, PEERS_SEQUENCES, SETTINGS, VARIANTS
from benchmarks.step.bench import Bench, Unavailable
from benchmarks.step.measure import Budget, Outcome, failure, interleaved, memory_alone, quiet
from benchmarks.step.numerics import BOUNDS, Check, check, check_peer
from benchmarks.step.ours import start_alone
from benchmarks.step.text import prepared
from distill_core.engine import Rank
from distill_core.meter import resident_gigabytes

NUMERICS_SHARE, MEMORY_SHARE = 0.3, 0.45
"""Of the time: after so much of it no check, or no process for memory, is begun."""
VOCABULARY = 21128
"""Entries of BERT's Chinese one, and at most of one that is trained on the text."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("files", nargs="*", default=["builtin:sample"], help="text, JSON lines; default: our sample")
    parser.add_argument("--vocabulary", type=Path, help="vocab.txt; default: one trained on the text")
    parser.add_argument("--tinybert", type=Path, help="checkout of TinyBERT (the folder with general_distill.py)")
    parser.add_argument("--distilbert", type=Path, help="checkout of DistilBERT (the folder with distiller.py)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=780.0, help="for all of it; settings share what is left (default 780)"
    )
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), help="settings")
    parser.add_argument("--without", nargs="*", default=[], choices=["numerics", "memory", "speed"])
    parser.add_argument("--record", type=Path, help="append the tables to this Markdown file")
    parser.add_argument("--work", type=Path, help="keep prepared text and random teachers here")
    parser.add_argument("--alone", nargs=2, metavar=("SETTING", "VARIANT"), help="two steps; prints its peak memory")
    return parser.parse_args()


class Run:
    """One call of the program."""

    def __init__(self, given: argparse.Namespace, work: Path) -> None:
        self.given, self.work, self.began = given, work, time.monotonic()
        self.rank: Rank = start_alone(work)

    def bench(self, name: str) -> Bench:
        setting = SETTINGS[name]
        vocabulary = self.given.vocabulary or VOCABULARY
        corpus = prepared(setting.text, self.given.files, vocabulary, self.work / "corpora")
        peers = {peer: path for peer in ("tinybert", "distilbert") if (path := getattr(self.given, peer)) is not None}
        return Bench(setting, corpus, self.work, self.rank, peers, self.given.rounds + 1)

    def late(self, share: float) -> bool:
        """Whether this share of the time is over."""
        return time.monotonic() - self.began > share * self.given.seconds

    def alone(self, setting: str, variant: str) -> None:
        with quiet():
            runner = self.bench(setting).runner(variant)
            runner.step()
            runner.step()
        print(json.dumps({"gigabytes": resident_gigabytes("VmHWM")}), flush=True)

    def numerics(self) -> list[Check]:
        found = []
        for name in NUMERICS:
            if name in self.given.only and not self.late(NUMERICS_SHARE):
                bench = self.bench(name)
                for precision in BOUNDS:
                    with quiet():
                        where = (bench.setting, bench.corpus, bench.teacher, self.work, self.rank)
                        found.append(check(*where, precision))
        return found

    def peers(self) -> list[Check]:
        found = []
        for name, variants in PEERS.items():
            for variant in variants:
                if not self.late(NUMERICS_SHARE):
                    bench = self.bench(name)
                    few = replace(bench.setting, name=f"{name}-still", sequences=PEERS_SEQUENCES)
                    try:
                        with quiet():
                            found.append(check_peer(replace(bench, setting=few.without_dropout(), steps=1), variant))
                    except Unavailable:  # said with the speeds
                        continue
                    except Exception as error:  # of whatever code
                        print(f"loss of {variant}, {name}: {failure(error)}", flush=True)
        return found

    def outcomes(self, done: Callable[[list[Outcome]], None]) -> list[Outcome]:
        """``done``: is given all that there are whenever there is one more."""
        found = list[Outcome]()
        work = {
            name: SETTINGS[name].sequences * SETTINGS[name].length * len(VARIANTS[name]) for name in self.given.only
        }
        budget = Budget(self.given.seconds - (time.monotonic() - self.began), work.values())
        for name in work:
            seconds = budget.next()
            if budget.left <= 0:
                print(f"{name}: left out, {self.given.seconds:g} seconds are over", flush=True)
                continue
            with quiet():
                found.append(interleaved(self.bench(name), VARIANTS[name], self.given.rounds, seconds))
            print(record.measured(found[-1:], "CPU second") + "\n", flush=True)
            done(found)
        return found

    def memory(self) -> dict[tuple[str, str], float]:
        found = {}
        passed = [*self.given.files, "--work", str(self.work)]
        for name in ("vocabulary", "tinybert", "distilbert"):
            path = getattr(self.given, name)
            passed += [] if path is None else [f"--{name}", str(path)]
        for setting, variants in MEMORY.items():
            for variant in variants:
                if not self.late(MEMORY_SHARE):
                    value = memory_alone(passed, setting, variant)
                    if isinstance(value, str):
                        print(f"memory of {setting}, {variant}: {value}", flush=True)
                    else:
                        found[setting, variant] = value
        return found


def main() -> int:
    """Prints the tables; 1 when a gradient or loss is out of its bound, or a variant has failed."""
    given = arguments()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with contextlib.ExitStack() as stack:
        work = given.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zhengliu-step-")))
        work.mkdir(parents=True, exist_ok=True)
        run = Run(given, work)
        if given.alone is not None:
            run.alone(*given.alone)
            return 0
        section = record.Section(given.record, "The distillation step on one core", "make bench")
        # The speeds last: when time runs out, rows of theirs are missing, and not what makes them comparable.
        checks = [] if "numerics" in given.without else [*run.numerics(), *run.peers()]
        memory = {} if "memory" in given.without else run.memory()

        def tables(outcomes: list[Outcome]) -> dict[str, str]:
            return {
                "Against the bars": record.against_bars(outcomes, memory),
                "Measured": record.measured(outcomes, "CPU second"),
                "Peak memory, each in a process of its own": record.memory_table(memory),
                "Our gradient, and all losses, against plain fp32 autograd, without dropout": record.numerics(checks),
            }

        section.write(tables([]))
        outcomes = [] if "speed" in given.without else run.outcomes(lambda found: section.write(tables(found)))
        section.publish(tables(outcomes))
    return 0 if all(one.ok for one in checks) and not any(one.failed for one in outcomes) else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # as distill_core.run does: threads of gloo now and then abort the interpreter's end

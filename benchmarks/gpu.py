"""The whole GPU table in one command, in less than ten minutes: python -m benchmarks.gpu [FILES...]

    python -m benchmarks.gpu --vocabulary vocab.txt corpus.jsonl.gz [--tinybert PATH] [--distilbert PATH]

Four pairs of models at 128 and 512 tokens, packed and ragged: tokens a second, useful FLOPs as a share of the card's
matrix peak, memory, and the peers under bf16 autocast, in turns in one process by the clock, the device synchronised at
each end of a step. Without DeepSpeed the bare step stands for ours, without TextBrewer plain Hugging Face code for the
peers; what is missing is said. ``--tiny`` goes through all of it with models of no use, on a CPU too.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.step import record
from benchmarks.step.bench import Bench, clock_of
from benchmarks.step.flops import matrix_peak
from benchmarks.step.measure import Outcome, interleaved, quiet
from benchmarks.step.numerics import Check, check
from benchmarks.step.ours import start_alone
from benchmarks.step.settings import BASE, H256, H288, LARGE, RBT6, Setting, Shape
from benchmarks.step.text import prepared
from distill_core.engine import Rank

NOMINAL = 788e12
"""FLOP/s of an 8192-cube product in bf16 as read on an H200; other cards are held against what is measured."""
TOKENS = 131_072
"""Of a step: below that, launching kernels takes a good part of the time."""
PEERS_TOKENS = 16_384
"""Of a step that peers do too: they keep [tokens, vocabulary] in fp32 several times."""
PAIRS = {"base-h256": (BASE, H256), "rbt6-h256": (RBT6, H256), "base-rbt6": (BASE, RBT6), "large-h256": (LARGE, H256)}
PEERS = ["ours bf16", "bare bf16", "hf bf16", "textbrewer bf16"]
TINY = (Shape(4, 32, 2, 64), Shape(2, 16, 2, 32))
BARS = {"base-h256": (0.40, 0.52), "rbt6-h256": (0.35, 0.47), "base-rbt6": (0.45, 0.55), "large-h256": (0.50, 0.60)}
"""Floor and aim of the share of the matrix peak, packed."""
RATIOS = {"packed": (2.0, 3.0), "documents": (2.0, 5.0), "lines": (2.0, 5.0)}
"""Floor and aim against TextBrewer under bf16 autocast."""


def settings(tiny: bool) -> list[Setting]:
    """Pairs of models at each kind of text. No dropout on attention, for nobody: kernels for ragged text have none."""
    pairs = {
        "base-h256": (BASE, H256),
        "rbt6-h256": (RBT6, H256),
        "base-rbt6": (BASE, RBT6),
        "large-h256": (LARGE, H256),
    }
    texts, tokens = ["packed-128", "lines-128", "packed-512", "documents-512"], TOKENS
    if tiny:
        pairs = dict.fromkeys(list(pairs)[:2], TINY)
        texts, tokens = ["packed-32", "lines-32"], 128
    return [
        Setting(f"{name}-{text}", *pair, "minirbt", text, tokens // int(text.rsplit("-", 1)[1]), attention_dropout=0.0)
        for name, pair in pairs.items()
        for text in texts
    ]


def of_checkouts(like: Setting) -> dict[str, Setting]:
    """By peer: what is measured of those that are given as checkouts."""
    student = H288 if like.student == H256 else like.student
    return {
        "distilbert": replace(like, name=f"{like.name}-distilbert", recipe="distilbert"),
        "tinybert": replace(like, name=f"{like.name}-tinybert", recipe="tinybert", student=student),
    }


def small(setting: Setting, tiny: bool) -> Setting:
    """The same with a step that peers can hold."""
    share = 1 if tiny else TOKENS // PEERS_TOKENS
    return replace(setting, name=f"{setting.name}-small", sequences=max(1, setting.sequences // share))


class Table:
    """One call of the program."""

    def __init__(self, given: argparse.Namespace, work: Path) -> None:
        self.given, self.work, self.began = given, work, time.monotonic()
        self.rank: Rank = start_alone(work)
        self.peak = matrix_peak(self.rank.device, clock_of(self.rank.device))

    @property
    def late(self) -> bool:
        return time.monotonic() - self.began > self.given.seconds

    def bench(self, setting: Setting) -> Bench:
        vocabulary = self.given.vocabulary or (600 if self.given.tiny else 21128)
        megabytes = 0.2 if self.given.tiny else 8.0
        corpus = prepared(setting.text, self.given.files, vocabulary, self.work / "corpora", megabytes)
        peers = {peer: path for peer in ("tinybert", "distilbert") if (path := getattr(self.given, peer)) is not None}
        return Bench(setting, corpus, self.work, self.rank, peers, self.given.rounds + 1, {"log_every": 10})

    def run(self, chosen: Sequence[Setting], variants: list[str]) -> list[Outcome]:
        found = []
        for setting in chosen:
            if self.late:
                print(f"{setting.name}: left out, {self.given.seconds:g} seconds are over", flush=True)
                continue
            try:
                with quiet():
                    seconds = self.given.seconds / 40
                    bench = self.bench(setting)
                    found.append(interleaved(bench, variants, self.given.rounds, seconds, lambda: self.peak))
            except torch.OutOfMemoryError as error:
                print(f"{setting.name}: {str(error).splitlines()[0]}", flush=True)
            else:
                print(record.measured(found[-1:], "s") + "\n", flush=True)
            if self.rank.device.type == "cuda":
                torch.cuda.empty_cache()
        return found

    def of_checkouts(self, like: Setting) -> list[Outcome]:
        """Peers whose code was given."""
        wanted = {
            name: setting for name, setting in of_checkouts(like).items() if getattr(self.given, name) is not None
        }
        return [
            one
            for name, setting in wanted.items()
            for one in self.run([setting], ["ours bf16", "bare bf16", f"{name} bf16"])
        ]

    def checks(self, setting: Setting) -> list[Check]:
        bench = self.bench(setting)
        with quiet():
            where = (setting, bench.corpus, bench.teacher, self.work, self.rank)
            return [check(*where, precision) for precision in ("fp32", "bf16")]


def shares(outcomes: Sequence[Outcome], peak: float) -> str:
    """Useful FLOPs of ours, or of the bare step, against the peak as measured and the nominal one."""
    rows = []
    for outcome in outcomes:
        ours = outcome.found[0]
        pair = "-".join(outcome.name.split("-")[:2])
        floor, aim = BARS.get(pair, (0.0, 0.0))
        nominal = ours.share * peak / NOMINAL
        cells = (f"{ours.speed:,.0f}", f"{ours.share:.1%}", f"{nominal:.1%}", f"{floor:.0%} / {aim:.0%}")
        rows.append([f"{outcome.name}, {ours.variant}", *cells])
    return record.table(["setting", "tokens/s", "of the measured peak", "of 788 TFLOP/s", "floor / aim"], rows)


def ratios(outcomes: Sequence[Outcome]) -> str:
    """Peers' seconds over ours."""
    rows = []
    for outcome in outcomes:
        kind = next((kind for kind in RATIOS if f"-{kind}-" in outcome.name), "packed")
        floor, aim = RATIOS[kind]
        for found in outcome.found[1:]:
            limits = f"{floor:g} x / {aim:g} x" if found.variant.startswith("textbrewer") else ""
            rows.append([outcome.name, found.variant, f"{found.behind:.2f} x", limits])
    return record.table(["setting", "against", "ours is faster by", "floor / aim"], rows)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("files", nargs="*", default=["builtin:sample"], help="text, JSON lines; default: our sample")
    parser.add_argument("--vocabulary", type=Path, help="vocab.txt; default: one trained on the text")
    parser.add_argument("--tinybert", type=Path, help="checkout of TinyBERT")
    parser.add_argument("--distilbert", type=Path, help="checkout of DistilBERT")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=520.0, help="no setting begins after them")
    parser.add_argument("--tiny", action="store_true", help="the whole logic on models of no use")
    parser.add_argument("--record", type=Path, help="append the tables to this Markdown file")
    return parser.parse_args(given)


def main() -> int:
    """Prints the tables; 1 when a gradient is out of its bound."""
    given = arguments()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory(prefix="zhengliu-gpu-") as folder:
        tables = Table(given, Path(folder))
        if tables.rank.device.type != "cuda" and not given.tiny:
            print("There is no GPU here. --tiny runs the logic on a CPU; benchmarks.step measures one.")
            return 2
        print(f"{record.hardware()}; {record.versions()}; {tables.peak / 1e12:.4g} TFLOP/s measured\n", flush=True)
        every = settings(given.tiny)
        checks = tables.checks(small(every[1], given.tiny))
        alone = tables.run(every, ["ours bf16", "bare bf16"])
        beside = tables.run([small(setting, given.tiny) for setting in every], PEERS)
        beside += tables.of_checkouts(small(every[0], given.tiny))
        parts = {
            "Share of the matrix peak": shares([one for one in alone if one.found], tables.peak),
            "Against peers under bf16 autocast": ratios([one for one in beside if one.found]),
            "Measured": record.measured([*alone, *beside], "s"),
            "Gradient against plain fp32 autograd, without dropout": record.numerics(checks),
        }
        record.publish(parts, given.record, "The distillation step on a GPU", "python -m benchmarks.gpu")
    return 0 if all(one.ok for one in checks) else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # as distill_core.run does

"""The whole GPU table in one command, in less than ten minutes: python -m benchmarks.gpu [FILES...]

    python -m benchmarks.gpu --vocabulary vocab.txt corpus.jsonl.gz [--tinybert PATH] [--distilbert PATH]

Four pairs of models at 128 and 512 tokens, packed and ragged: tokens a second, useful FLOPs as a share of the card's
matrix peak, memory, where the step's time goes, and the peers under bf16 autocast, in turns in one process by the
clock, the device synchronised at each end of a step. The first pair also compiled, and with its teacher in fp8. Without
DeepSpeed the bare step stands for ours, without TextBrewer plain Hugging Face code for the peers; what is missing or
fails is named, and the rest goes on. What matters most comes first, and each setting is printed and recorded when it is
done. ``--tiny`` goes through all of it with models of no use, on a CPU too.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from benchmarks.step import record
from benchmarks.step.bench import Bench, Unavailable, clock_of
from benchmarks.step.flops import matrix_peak
from benchmarks.step.measure import Budget, Outcome, failure, interleaved, quiet
from benchmarks.step.numerics import BOUNDS, Check, check, check_peer
from benchmarks.step.ours import Precision, alone, start_alone
from benchmarks.step.settings import BASE, H256, H288, LARGE, RBT6, Setting, Shape
from benchmarks.step.text import prepared
from distill_core.engine import Rank

NOMINAL = 788e12
"""FLOP/s of an 8192-cube product in bf16 as read on an H200; other cards are held against what is measured."""
TOKENS = 131_072
"""Of a step: below that, launching kernels takes a good part of the time."""
PEERS_TOKENS = 16_384
"""Of a step that peers do too: they keep [tokens, vocabulary] in fp32 several times."""
CHECKED = 64
"""Sequences of a step whose gradient is checked."""
PAIRS = {"base-h256": (BASE, H256), "rbt6-h256": (RBT6, H256), "base-rbt6": (BASE, RBT6), "large-h256": (LARGE, H256)}
OURS = ["ours bf16", "bare bf16"]
"""Beside one another where the loop's own cost is asked for; elsewhere the first, or without DeepSpeed the second."""
OPTIONS = ["ours bf16", "ours bf16 compile", "ours bf16 fp8-teacher"]
PEERS = ["ours bf16", "bare bf16", "hf bf16", "textbrewer bf16"]
LOG_EVERY = 4
"""Steps: so a line of the loop's own parts has no unmeasured step in it, but the first line."""
TINY = (Shape(4, 32, 2, 64), Shape(2, 16, 2, 32))
BARS = {"base-h256": (0.40, 0.52), "rbt6-h256": (0.35, 0.47), "base-rbt6": (0.45, 0.55), "large-h256": (0.50, 0.60)}
"""Floor and aim of the share of the matrix peak, packed."""
RATIOS = {"packed": (2.0, 3.0), "documents": (2.0, 5.0), "lines": (2.0, 5.0)}
"""Floor and aim against TextBrewer under bf16 autocast."""


@dataclass(frozen=True)
class Work:
    """One setting, what takes turns on it, and of which table its rows are. ``weight``: its share of the time."""

    setting: Setting
    variants: list[str]
    table: Literal["alone", "beside"]
    weight: float = 1.0


def settings(tiny: bool) -> list[Setting]:
    """Pairs of models at each kind of text. No dropout on attention, for nobody: kernels for ragged text have none."""
    pairs = dict(PAIRS)
    texts, tokens = ["packed-128", "lines-128", "packed-512", "documents-512"], TOKENS
    if tiny:
        pairs = dict.fromkeys(list(pairs)[:2], TINY)
        texts, tokens = ["packed-32", "lines-32"], 128
    return [
        Setting(f"{name}-{text}", *pair, "minirbt", text, tokens // int(text.rsplit("-", 1)[1]), attention_dropout=0.0)
        for name, pair in pairs.items()
        for text in texts
    ]


def schedule(tiny: bool, real_loop: bool) -> list[Work]:
    """What matters most first: each pair on packed text, the peers, then ragged and long text, then options.

    ``real_loop``: whether there is DeepSpeed; else the bare step stands for it.
    """
    every, (first, second) = settings(tiny), ("packed-32", "lines-32") if tiny else ("packed-128", "lines-128")

    def of(text: str) -> list[Setting]:
        return [setting for setting in every if setting.text == text]

    ours = OURS[:1] if real_loop else OURS[1:]
    first_pair = of(first)[0]
    both = Work(first_pair, OURS, "alone", 2.0)
    packed = [Work(setting, ours, "alone") for setting in of(first)[1:]]
    peers = [Work(small(setting, tiny), PEERS, "beside", 2.0) for text in (first, second) for setting in of(text)]
    rest = [Work(s, ours, "alone") for text in ("packed-512", second, "documents-512") for s in of(text)]
    named = replace(first_pair, name=f"{first_pair.name}-options")
    options = [Work(named, OPTIONS, "alone", 3.0)] if real_loop else []
    return [both, *packed, *peers, *options, *rest]


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
        self.found: dict[str, list[Outcome]] = {"alone": [], "beside": []}
        self.checks: list[Check] = []
        self.failed: list[str] = []

    def bench(self, setting: Setting) -> Bench:
        vocabulary = self.given.vocabulary or (600 if self.given.tiny else 21128)
        megabytes = 0.2 if self.given.tiny else 8.0
        corpus = prepared(setting.text, self.given.files, vocabulary, self.work / "corpora", megabytes)
        peers = {peer: path for peer in ("tinybert", "distilbert") if (path := getattr(self.given, peer)) is not None}
        training = {"log_every": LOG_EVERY}
        return Bench(setting, corpus, self.work, self.rank, peers, self.given.rounds + 1, training)

    def run(self, works: Sequence[Work], done: Callable[[], None]) -> None:
        """``done``: is called whenever a setting is."""
        budget = Budget(self.given.seconds - (time.monotonic() - self.began), [work.weight for work in works])
        for work in works:
            seconds = budget.next()
            if budget.left <= 0:
                print(f"{work.setting.name}: left out, {self.given.seconds:g} seconds are over", flush=True)
                continue
            self._guarded(work.setting.name, lambda work=work, seconds=seconds: self._measure(work, seconds))
            done()

    def _measure(self, work: Work, seconds: float) -> None:
        with quiet():
            bench = self.bench(work.setting)
            found = interleaved(bench, work.variants, self.given.rounds, seconds, lambda: self.peak)
        self.found[work.table].append(found)
        print(record.measured([found], "s") + "\n", flush=True)

    def _guarded(self, name: str, do: Callable[[], None]) -> None:
        """A setting that fails is named, and the next one's turn comes."""
        try:
            do()
        except Unavailable as error:
            print(f"{name}: {error}", flush=True)
        except Exception as error:
            self.failed.append(f"{name}: {failure(error)}")
            print(self.failed[-1], flush=True)
        gc.collect()
        if self.rank.device.type == "cuda":
            torch.cuda.empty_cache()

    def of_checkouts(self, like: Setting) -> list[Work]:
        """Peers whose code was given."""
        wanted = {name: one for name, one in of_checkouts(like).items() if getattr(self.given, name) is not None}
        return [Work(one, ["ours bf16", "bare bf16", f"{name} bf16"], "beside", 2.0) for name, one in wanted.items()]

    def check(self, setting: Setting) -> None:
        """Our gradient in both precisions; the peers' losses."""
        few = replace(setting.without_dropout(), sequences=min(setting.sequences, CHECKED))

        def ours(precision: Precision) -> None:
            with quiet():
                bench = self.bench(few)
                self.checks.append(check(few, bench.corpus, bench.teacher, self.work, self.rank, precision))

        def theirs(variant: str) -> None:
            with quiet():
                self.checks.append(check_peer(replace(self.bench(few), steps=1), variant))

        for precision in BOUNDS:
            self._guarded(f"gradient in {precision}", lambda precision=precision: ours(precision))
        for variant in PEERS[2:]:
            self._guarded(f"loss of {variant}", lambda variant=variant: theirs(variant))

    def parts(self) -> dict[str, str]:
        """The tables, as far as there is anything for them."""
        alone, beside = ([one for one in self.found[name] if one.found] for name in ("alone", "beside"))
        tables = {
            "Share of the matrix peak": shares(alone, self.peak),
            "Against peers under bf16 autocast": ratios(beside),
            "Where our step's time goes": record.of_parts(alone),
            "Measured": record.measured([*self.found["alone"], *self.found["beside"]], "s"),
            "Our gradient, and all losses, against plain fp32 autograd, without dropout": record.numerics(self.checks),
        }
        return tables | ({"Failed": "\n".join(f"- {text}" for text in self.failed)} if self.failed else {})


def shares(outcomes: Sequence[Outcome], peak: float) -> str:
    """Useful FLOPs of ours, or of the bare step, against the peak as measured and the nominal one."""
    rows = []
    for outcome in outcomes:
        floor, aim = BARS.get("-".join(outcome.name.split("-")[:2]), (0.0, 0.0))
        for ours in outcome.found:
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
    parser.add_argument("--seconds", type=float, default=520.0, help="for all of it (default 520)")
    parser.add_argument("--tiny", action="store_true", help="the whole logic on models of no use")
    parser.add_argument("--record", type=Path, help="append the tables to this Markdown file")
    return parser.parse_args(given)


def main() -> int:
    """Prints the tables; 1 when a gradient or loss is out of its bound, or anything has failed."""
    given = arguments()
    threads = 1 if given.tiny else min(16, os.cpu_count() or 1)  # models are made on the CPU
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", str(threads))))
    with tempfile.TemporaryDirectory(prefix="zhengliu-gpu-") as folder:
        table = Table(given, Path(folder))
        if table.rank.device.type != "cuda" and not given.tiny:
            print("There is no GPU here. --tiny runs the logic on a CPU; benchmarks.step measures one.")
            return 2
        print(f"{record.hardware()}; {record.versions()}; {table.peak / 1e12:.4g} TFLOP/s measured\n", flush=True)
        section = record.Section(given.record, "The distillation step on a GPU", "python -m benchmarks.gpu")
        ragged = next(setting for setting in settings(given.tiny) if setting.text.startswith("lines"))
        table.check(ragged)
        section.write(table.parts())
        works = [*schedule(given.tiny, alone.engine is None), *table.of_checkouts(small(ragged, given.tiny))]
        table.run(works, lambda: section.write(table.parts()))
        section.publish(table.parts())
    outcomes = [*table.found["alone"], *table.found["beside"]]
    broken = table.failed or any(one.failed for one in outcomes)
    return 0 if all(one.ok for one in table.checks) and not broken else 1

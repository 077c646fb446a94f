"""What preparation must reach, and the table of what it did."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.prep.timing import Row


@dataclass(frozen=True)
class Bar:
    """``row``: how the rows begin that measure it (of several the worst counts); ``least``: of which less is better."""

    number: int
    text: str
    row: str
    floor: float
    aim: float
    least: bool = False
    ending: str = ""
    """And how they end."""

    def value(self, rows: list[Row]) -> float | None:
        """None where it was not measured."""
        found = [value for name, value, _ in rows if name.startswith(self.row) and name.endswith(self.ending)]
        return None if not found else (max(found) if self.least else min(found))

    def reached(self, value: float) -> str:
        better = [value <= limit if self.least else value >= limit for limit in (self.floor, self.aim)]
        return "aim" if better[1] else "floor" if better[0] else "missed"


BARS = [
    Bar(1, "end to end, times a Megatron-like preprocess", "1 end to end (dynamic)", 18, 30),
    Bar(2, "end to end, times MiniRBT's path", "2 end to end (dynamic)", 200, 500),
    Bar(3, "end to end, share of the speed of bytes.decode", "3 end to end (dynamic)", 0.10, 0.16),
    Bar(4, "WordPiece, times tokenizers", "WordPiece / tokenizers", 80, 120),
    Bar(4, "lines that it cuts differently", "WordPiece: lines that differ", 0, 0, least=True),
    Bar(5, "precision of boundaries, against jieba", "precision of boundaries with HMM", 0.9999, 1),
    Bar(5, "recall of boundaries, against jieba", "recall of boundaries with HMM", 0.9999, 1),
    Bar(6, "gather and stored mask, times two copies", "6 gather + stored", 1.4, 1.1, True, "used memory"),
    Bar(6, "gather and dynamic mask, times two copies", "6 gather + dynamic", 1.4, 1.1, True, "used memory"),
    Bar(7, "random reads of ids and bits, times Arrow's", "7 batched random reads (ids and word bits) /", 25, 50),
    Bar(8, "two processes, times one, by the clock", "8 two processes / one", 1.9, 1.97),
    Bar(9, "peak memory of a worker, MiB", "9 peak memory", 300, 200, least=True),
    Bar(11, "near-duplicate signatures, times datatrove's", "signatures, against datatrove", 25, 200),
    Bar(12, "dearest variant, % of the preparation", "12 ", 5, 1, True, "whole preparation"),
]
"""By the numbers of the plan. 10 (killed and started again) and 13 (the same bytes from all executors) are tests:
``make test-prep-kill`` and ``tests/data_prep/test_cluster.py``."""


def table(rows: list[Row]) -> str:
    """One line a bar: what was measured, and what it had to be."""
    lines = [f"{'bar':<49} {'measured':>9} {'floor':>8} {'aim':>8}  reached"]
    for bar in BARS:
        value = bar.value(rows)
        measured, reached = ("-", "not measured") if value is None else (f"{value:.4g}", bar.reached(value))
        lines.append(f"{bar.number:>2} {bar.text:<46} {measured:>9} {bar.floor:>8g} {bar.aim:>8g}  {reached}")
    return "\n".join(lines)

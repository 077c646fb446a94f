"""The tables as Markdown, and the dated record in docs/benchmarks.md."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.step.bars import BARS, Bar
from benchmarks.step.measure import Found, Outcome
from benchmarks.step.numerics import Check

PACKAGES = ("torch", "transformers", "deepspeed", "textbrewer", "numpy")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; all columns but the first are numbers."""
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def measured(outcomes: Sequence[Outcome], unit: str) -> str:
    """Every variant that ran, and a line for each that could not."""
    rows = []
    for outcome in outcomes:
        for found in outcome.found:
            memory = "" if found.gigabytes is None else f"{found.gigabytes:.2f}"
            cells = (f"{found.speed:,.0f}", f"{found.behind:.2f}", f"{found.share:.0%}", memory)
            rows.append([f"{outcome.name} (fill {outcome.fill:.2f})", found.variant, *cells])
    head = ["setting", "variant", f"tokens / {unit}", "seconds over ours", "of the bf16 peak", "GB"]
    missing = sorted({text for outcome in outcomes for text in outcome.missing})
    failed = [f"{outcome.name}: {text}" for outcome in outcomes for text in outcome.failed]
    lines = [f"Not run: {text.rstrip('.')}." for text in missing] + [f"**Failed:** {text}" for text in failed]
    return "\n\n".join([table(head, rows), *lines])


def of_parts(outcomes: Sequence[Outcome]) -> str:
    """Where our step's time goes."""
    found = [one for outcome in outcomes for one in outcome.found if one.parts]
    names = list(dict.fromkeys(name for one in found for name in one.parts))
    rows = [[f"{one.setting}, {one.variant}", *(f"{one.parts[name]:.0%}" for name in names)] for one in found]
    return table(["share of the step", *names], rows)


def against_bars(outcomes: Sequence[Outcome], memory: dict[tuple[str, str], float]) -> str:
    """Every bar whose figures were measured."""
    everything = {(found.setting, found.variant): found for outcome in outcomes for found in outcome.found}
    rows = []
    for bar in BARS:
        value = _value(bar, everything, memory)
        if value is not None:
            shown = [_shown(bar, number) for number in (value, bar.floor, bar.aim)]
            verdict = (
                "aim" if bar.reached(value, bar.aim) else "floor" if bar.reached(value, bar.floor) else "**below**"
            )
            rows.append([bar.text, *shown, verdict])
    return table(["bar", "measured", "floor", "aim", "reached"], rows)


def _value(bar: Bar, found: dict[tuple[str, str], Found], memory: dict[tuple[str, str], float]) -> float | None:
    if bar.kind == "memory":
        pair = [memory.get((bar.setting, variant)) for variant in ("ours bf16", bar.against)]
        return None if pair[0] is None or pair[1] is None else pair[0] / pair[1]
    one = found.get((bar.setting, bar.against))
    if one is None:
        return None
    return {"share": one.share, "ratio": one.behind, "overhead": 1 / one.behind - 1}[bar.kind]


def _shown(bar: Bar, value: float) -> str:
    return f"{value:.1%}" if bar.kind in ("share", "overhead") else f"{value:.2f} x"


def numerics(checks: Sequence[Check]) -> str:
    rows = []
    for c in checks:
        gradient = "" if c.gradient is None else f"{c.gradient:.1e}"
        within = "yes" if c.ok else "**no**"
        rows.append([f"{c.setting}, {c.who}", c.precision, gradient, f"{c.loss:.1e}", f"{c.bound:.0e}", within])
    return table(["setting", "precision", "gradient", "loss", "bound", "within"], rows)


def memory_table(memory: dict[tuple[str, str], float]) -> str:
    return table(["setting", "variant", "peak GB"], [[*key, f"{value:.2f}"] for key, value in memory.items()])


def hardware() -> str:
    """What figures depend on; never the machine's name."""
    threads = torch.get_num_threads()
    text = f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"
    if torch.cuda.is_available():
        text = f"{torch.cuda.get_device_name(0)}; {text}"
    return text


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in facts.get("flags", "").split()]
    return f"{facts.get('model name', platform.machine())} ({', '.join(flags)})"


def versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)


class Section:
    """A dated section at the end of ``path``, written anew whenever there is more of it; None: nowhere."""

    def __init__(self, path: Path | None, title: str, command: str) -> None:
        self.path, self.title, self.command = path, title, command
        exists = path is not None and path.exists()
        self._before = path.read_text(encoding="utf-8").rstrip("\n") if path is not None and exists else "# Benchmarks"

    def write(self, parts: dict[str, str]) -> None:
        """All that there is so far; tables by their names."""
        if self.path is None:
            return
        date = datetime.date.today().isoformat()
        lines = [f"## {self.title}, {date}", "", f"**Command:** `{self.command}`", ""]
        lines += [f"**Hardware:** {hardware()}.", f"**Versions:** {versions()}.", ""]
        for name, text in parts.items():
            lines += [f"### {name}", "", text, ""]
        aside = self.path.with_name(f"{self.path.name}.part")
        aside.write_text(self._before + "\n\n" + "\n".join(lines), encoding="utf-8")
        aside.replace(self.path)

    def publish(self, parts: dict[str, str]) -> None:
        """Print the tables, and write them."""
        for name, text in parts.items():
            print(f"\n{name}\n\n{text}", flush=True)
        self.write(parts)

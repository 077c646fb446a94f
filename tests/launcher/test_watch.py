"""What a person sees meanwhile: in a log file and on a terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from data_prep.progress import Progress
from launcher import preparing, watch
from launcher.watch import Watch, describe, duration

FACTS = {
    "stage": "student",
    "stage_index": 1,
    "stages": 3,
    "step": 50,
    "steps": 200,
    "loss": 3.14159,
    "tokens_per_second": 12345.6,
    "seconds_left": 125,
}


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=100, color_system=None), out


def test_new_lines_are_shown_whole_and_once(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    log.write_bytes(b"old\n")
    shown, out = console(terminal=False)
    with Watch(log, 4, tmp_path / "progress.json", shown) as watch:
        text = "蒸馏 [bold]x[/bold]\n".encode()
        for part in (text[:4], text[4:9], text[9:], b"torn"):  # cut inside a character, and inside a line
            with log.open("ab") as file:
                file.write(part)
            watch.refresh()
        assert out.getvalue() == "蒸馏 [bold]x[/bold]\n"
    assert out.getvalue() == "蒸馏 [bold]x[/bold]\ntorn\n"


def test_a_log_that_is_not_there_yet(tmp_path: Path) -> None:
    shown, out = console(terminal=False)
    with Watch(tmp_path / "none", 0, tmp_path / "none.json", shown) as watch:
        watch.refresh()
    assert out.getvalue() == ""


def test_all_of_a_long_log_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MAX_READ", 10)
    log = tmp_path / "log"
    log.write_text("line\n" * 100)
    shown, out = console(terminal=False)
    with Watch(log, 0, tmp_path / "none.json", shown):
        pass
    assert out.getvalue() == "line\n" * 100


def test_a_terminal_has_a_live_line(tmp_path: Path) -> None:
    log, progress = tmp_path / "log", tmp_path / "progress.json"
    log.write_text("a line of the rank\n")
    shown, out = console(terminal=True)
    with Watch(log, 0, progress, shown) as watch:
        watch.refresh()
        progress.write_text("{ torn")
        watch.refresh()
        progress.write_text(json.dumps(FACTS))
        watch.refresh()
    text = out.getvalue()
    assert "a line of the rank" in text
    assert "student (2/3)" in text
    assert "50/200" in text
    assert "loss 3.142" in text
    assert "2:05 left" in text


def test_describe_what_is_known() -> None:
    assert describe(FACTS) == ("student (2/3)", "loss 3.142  12,346 tokens/s  2:05 left")
    assert describe({**FACTS, "utilization": 0.42})[1].split("  ")[2] == "42% of the peak"
    assert describe({"stage": "x"}) == ("x", "")
    assert describe({}) == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01"), (-1, "0:00")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ---------------------------------------------------------------- preparation


def state(blocks: int, **dropped: int) -> Progress:
    remaining = 4.0 * (4 - blocks) if blocks else None
    return Progress("shards", blocks, 4, 1000 * blocks, 8.0 * blocks, 4.0 * blocks, remaining, dropped)


def corpus() -> Any:
    splits = {"train": {"sequences": 1234}, "held_out": {"sequences": 56}}
    manifest = {"splits": splits, "dropped": {"undecodable": 2}}
    return SimpleNamespace(manifest=manifest, vocab_size=4000, has_text=True, folder=Path("runs/[x]/data"))


def test_preparation_in_a_log_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "LINE_SECONDS", 0.0)
    shown, out = console(terminal=False)
    with preparing.Preparing(shown) as line:
        line.update(state(1))
        line.done(corpus())
    first, last = out.getvalue().splitlines()
    assert first == "data: shards 1/4 blocks, 1,000 documents, 2.0 MB/s, 0:12 left"
    assert "prepared in 0:00" in last
    assert "1,234 train, 56 held_out" in last
    assert "documents dropped: 2 undecodable" in last
    assert "runs/[x]/data" in last


def test_prepared_data_is_only_named() -> None:
    shown, out = console(terminal=False)
    with preparing.Preparing(shown) as line:
        line.done(corpus())
    assert out.getvalue().startswith("data: ready: sequences 1,234 train")


def test_preparation_on_a_terminal() -> None:
    shown, out = console(terminal=True)
    with preparing.Preparing(shown) as line:
        line.update(state(2))
        line.update(state(4))
        line.done(corpus())
    assert "2,000 documents" in out.getvalue()
    assert "prepared in" in out.getvalue()


def test_what_is_left_is_not_guessed_at_either_end() -> None:
    assert "left" not in preparing.facts(state(4))
    assert preparing.facts(state(0)) == "0 documents, 0.0 MB/s"


def test_drops_are_counted_live_the_most_frequent_reasons_first() -> None:
    shown = preparing.facts(state(2, empty=3, no_text=1200, not_json=3, too_short=1))
    assert shown.endswith("dropped: 1,200 no_text, 3 empty, 3 not_json, ...")
    assert preparing.facts(state(2, empty=3)).endswith("left, dropped: 3 empty")

"""Where ranks are: what they write is what the agent reads, and who is to blame for a standstill."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.cluster import Timeouts
from distill_core import pulse as written
from launcher import pulses as read
from launcher.pulses import PulseFile, Stillness, Whereabouts

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file() -> Iterator[PulseFile]:
    made = PulseFile()
    yield made
    made.close()
    assert not made.path.exists()


def test_both_sides_say_the_same_layout() -> None:
    assert written.SIZE == read.SIZE
    assert written.FACTS.format == read.FACTS.format
    assert read.HEAD.size == written.LIFE.size + written.CHANGES.size == 16


def test_a_rank_is_found_where_it_is(file: PulseFile) -> None:
    assert file.read().section == "start"
    pulse = written.Pulse()
    pulse.open(str(file.path))
    pulse.at("load", stage="第一阶段, teacher")
    where = file.read()
    assert (where.stage, where.step, where.section) == ("第一阶段, teacher", None, "load")
    pulse.at("backward", 12)
    where = file.read()
    assert (where.stage, where.step, where.section) == ("第一阶段, teacher", 12, "backward")
    assert where.unchanged < 5
    assert where.words() == "stage '第一阶段, teacher', step 12, section backward"


def test_the_file_outlives_a_killed_rank(file: PulseFile) -> None:
    code = (
        "import os, signal, sys; from distill_core.pulse import pulse; pulse.open(sys.argv[1]);"
        "pulse.at('optimizer', 7, 'student'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(file.path)], cwd=ROOT, check=False)
    where = file.read()
    assert (where.stage, where.step, where.section) == ("student", 7, "optimizer")


def test_life_signs_go_on_while_the_section_stays(file: PulseFile) -> None:
    pulse = written.Pulse()
    pulse.open(str(file.path))
    pulse.at("data", 1)
    file.read()
    time.sleep(3 * written.LIFE_SECONDS)
    where = file.read()
    assert where.lifeless < where.unchanged
    assert where.unchanged >= 3 * written.LIFE_SECONDS


@pytest.mark.parametrize(
    ("section", "limit"),
    [("start", 1), ("load", 1), ("data", 2), ("backward", 2), ("evaluate", 3), ("checkpoint", 4), ("end", 5)],
)
def test_each_section_has_its_limit(section: str, limit: float) -> None:
    timeouts = Timeouts(load=1, step=2, evaluate=3, checkpoint=4, end=5)
    assert Whereabouts(section=section).limit(timeouts) == limit
    assert not Whereabouts(section=section, unchanged=limit).stuck(timeouts)
    assert Whereabouts(section=section, unchanged=limit + 0.1).stuck(timeouts)
    assert Whereabouts(section=section, lifeless=limit + 0.1).stuck(timeouts)


def test_who_is_to_blame_for_a_standstill() -> None:
    waiting = Whereabouts("s", 5, "backward", 60.0, 0.1)
    behind = Whereabouts("s", 5, "teacher", 60.0, 0.1)
    a_step_behind = Whereabouts("s", 4, "optimizer", 60.0, 0.1)
    stopped = Whereabouts("s", 5, "backward", 61.0, 60.0)
    everyone = [waiting, behind, a_step_behind, stopped]
    assert sorted(everyone, key=Whereabouts.progress) == [stopped, a_step_behind, behind, waiting]


@pytest.mark.parametrize("section", read.ORDER)
def test_a_stopped_rank_is_stuck_in_any_section(section: str) -> None:
    """Before its section's limit; one that only gives no life signs may be at work."""
    timeouts = Timeouts(node=5)
    assert Whereabouts(section=section, stopped=5.1).stuck(timeouts)
    assert not Whereabouts(section=section, stopped=4.9, lifeless=100, unchanged=100).stuck(timeouts)
    others = [Whereabouts("s", 1, "load", 60.0, 0.1), Whereabouts("s", 9, section, 60.0, 0.0, 5.1)]
    assert min(others, key=Whereabouts.progress) is others[1]


def test_what_the_kernel_says_of_a_process() -> None:
    """One whose name looks like the end of what is read."""
    code = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'x) R (', 0, 0, 0); print(flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        still = Stillness(process.pid)
        assert still.seconds() == 0.0
        process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 20
        while (first := still.seconds()) == 0.0:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.2)
        assert first + 0.2 <= still.seconds() < first + 10
        still._looked -= 3600  # the agent itself was stopped for an hour
        assert still.seconds() < first + 10 + read.LOOK_SECONDS
        process.send_signal(signal.SIGCONT)
        while still.seconds() > 0.0:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.stdin.close()
        process.wait()
        assert still.seconds() == 0.0  # not reaped by an agent, it would be a zombie

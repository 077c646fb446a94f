"""A thousand strings that a shell, an option parser or a decoder would like to change, and a job that carries them.

Each of them is an argument of the ranks' program and the value of an environment variable; ``echo_rank.py`` says what
arrived. A string that were carried out anywhere would leave a file in the trap, a folder that must stay empty.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from configs.cluster import load_cluster
from configs.passing import passed_on
from launcher.backends import BACKENDS, Backend
from launcher.job import Job

PROGRAM = Path(__file__).with_name("echo_rank.py")
COUNT = 1000
TRAP = "@"
NASTY = [
    *("", " ", "  a  b ", "\t", "\n", "\r\n", "a\nb\n", "\\", "a\\", "\\n", "'", '"', "\\'", "''", '""', "#", "# x"),
    *("-", "--", "-rf", "--node", "--help", "-oProxyCommand=touch @", "-c", "-n", "=", "a=b", "A=$(touch @)", ","),
    *("$(touch @)", "`touch @`", "\\$(touch @)", "'$(touch @)'", '"$(touch @)"', "' ; touch @ ; '", '" ; touch @ ; "'),
    *("; touch @", "& touch @ &", "| touch @", "|| touch @", "&& touch @", "\ntouch @\n", "(touch @)", "{ touch @; }"),
    *("> @", ">> @", "2>@", "< /dev/null", "<(touch @)", "eval touch @", "exec touch @", "time touch @", "!touch @"),
    *("$HOME", "${IFS}", "$$", "$0", "$@", "$*", "$((1+1))", "$'\\x41'", "~", "~root", "*", "?", "[a-z]*", "{a,b}"),
    *("!!", "!$", "%h", "%n", "%u", "%%", "%j", "{{x}}", "$(RANK)", "$$(RANK)", "$(JOB_COMPLETION_INDEX)", "{0}"),
    *("中文 空格", "蒸馏", "\u00e9", "e\u0301", "\u2028", "\x85", "\ufeff", "\u202e", "🀄", "\x1b[31m", "\x7f", "\x01"),
    *("null", "~", "yes", "1e3", "- a", "{a: b}", "[a]", "&a", "*a", "!!python/object/apply:os.system ['touch @']"),
]
"""``@``: the path of a file in the trap."""
SIGNS = "$`'\"\\;&|<>(){}[]*?!#~=%^@-+ \n\t\r,.:/aA0中é"
STRINGS = st.one_of(
    st.sampled_from(NASTY),
    st.lists(st.sampled_from(NASTY), min_size=2, max_size=4).map("".join),
    st.text(SIGNS, max_size=20),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
    st.binary(max_size=12).map(lambda data: os.fsdecode(data.replace(b"\0", b""))),  # also bytes that are no UTF-8
)


@functools.cache
def drawn() -> tuple[str, ...]:
    """The same ones each time."""
    found: list[str] = []

    @settings(
        max_examples=2 * COUNT,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(STRINGS)
    def draw(text: str) -> None:
        found.append(text)

    draw()
    all_of_them = dict.fromkeys((*NASTY, *found))
    assert len(all_of_them) >= COUNT
    return tuple(all_of_them)[:COUNT]


def strings(trap: Path) -> list[str]:
    return [text.replace(TRAP, str(trap / "sprung")) for text in drawn()]


@dataclass
class Carried:
    """A job of all strings, and the trap."""

    place: Path
    job: Job
    backend: Backend
    trap: Path

    def check(self) -> None:
        """All strings have arrived at all ranks, byte by byte, and nothing was done on the way."""
        words = [os.fsencode(text) for text in strings(self.trap)]
        for rank in range(self.job.world_size):
            said = json.loads((self.place / f"said-{rank}.json").read_text())
            assert [bytes.fromhex(text) for text in said["words"]] == words
            found = {int(name.rsplit("_", 1)[1]): bytes.fromhex(text) for name, text in said["variables"].items()}
            assert [found.get(number) for number in range(len(words))] == words
        assert list(self.trap.iterdir()) == []


def make(place: Path, name: str, monkeypatch: pytest.MonkeyPatch, facts: dict[str, object]) -> Carried:
    """By a cluster file of these ``facts``, as ``launch.plan_job`` makes a job; ``name``: of its run folder.

    Variables reach it in each way that there is: of an allowed name, named in ``pass_variables``, written in the
    cluster file.
    """
    trap, folder = place / "trap", place / name
    trap.mkdir()
    words = strings(trap)
    third = len(words) // 3
    allowed = {f"ZHENGLIU_STRING_{n}": text for n, text in enumerate(words[:third])}
    passed = {f"STRING_{n}": text for n, text in enumerate(words[third : 2 * third], third)}
    written = {f"STRING_{n}": text for n, text in enumerate(words[2 * third :], 2 * third)}
    facts = facts | {"variables": written, "pass_variables": list(passed)}
    (place / "cluster.yaml").write_text(yaml.safe_dump(facts), encoding="utf-8")
    cluster = load_cluster(place / "cluster.yaml")
    with monkeypatch.context() as context:
        for variable, text in (allowed | passed).items():
            context.setenv(variable, text)
        environment = cluster.variables | passed_on(os.environ, cluster.pass_variables)
    backend = BACKENDS[cluster.kind](cluster)
    nodes = backend.nodes()
    (folder / "logs").mkdir(parents=True)
    job = Job(
        folder,
        ranks=1,
        command=[sys.executable, "-I", "-S", str(PROGRAM), str(place), *words],
        nodes=len(nodes),
        hosts=nodes if any(nodes) else (),
        environment=environment,
        interface=cluster.interface,
        timeouts=cluster.supervision.timeouts,
        mark="m1",
        followed=not backend.scheduled and cluster.kind != "local",
        scheduled=backend.scheduled,
    )
    return Carried(place, job, backend, trap)

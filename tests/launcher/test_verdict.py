"""From what node 0 has written to the status that the command ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from launcher.cli import status_of
from launcher.job import Job
from launcher.verdict import Verdict, read_verdict

Kind = Literal["done", "failed", "stopped"]


@pytest.mark.parametrize("node", [None, 1], ids=["node 0's word", "another node's"])
@pytest.mark.parametrize(
    ("kind", "code", "status"),
    [
        ("failed", 64, 64),  # usage
        ("failed", 65, 65),  # bad data
        ("failed", 69, 69),  # a rank killed or hung, a node lost
        ("failed", 70, 70),  # a defect
        ("failed", 74, 74),  # a full disk
        ("failed", 0, 69),
        ("failed", 256, 69),
        ("failed", -9, 69),
        ("stopped", 75, 75),
        ("stopped", 0, 75),
    ],
)
def test_no_failure_ends_with_0(tmp_path: Path, kind: Kind, code: int, status: int, node: int | None) -> None:
    job = Job(tmp_path, 1, nodes=2, hosts=("a", "b"), mark="m")
    job.place.mkdir(parents=True)
    Verdict(kind, "why", code, "b").save(job.place, node)
    found = read_verdict(job)
    assert found is not None
    assert status_of(found.raise_unless_done) == status


def test_done_is_node_0_s_word_alone(tmp_path: Path) -> None:
    job = Job(tmp_path, 1, nodes=2, hosts=("a", "b"), mark="m")
    job.place.mkdir(parents=True)
    Verdict("done").save(job.place, 1)
    assert read_verdict(job) is None
    Verdict("done").save(job.place)
    found = read_verdict(job)
    assert found is not None
    assert status_of(found.raise_unless_done) == 0


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"kind": "done"}', '{"kind": "done", "message": "", "exit_code": "x"}']
)
def test_a_torn_verdict_is_none(tmp_path: Path, text: str) -> None:
    job = Job(tmp_path, 1, mark="m")
    job.place.mkdir(parents=True)
    (job.place / "verdict.json").write_text(text)
    assert read_verdict(job) is None

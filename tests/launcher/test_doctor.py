"""Each finding, fit and unfit; the slow probes once, for real."""

from __future__ import annotations

import importlib.metadata
import io
import re
import resource
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from distill_core.precision import here
from launcher import devices, doctor
from launcher.doctor import Finding

ROOT = Path(__file__).parents[2]
TORCH = {"cuda": False, "device": "cpu", "threads": 2, "bf16": True, "float32": 100.0, "bfloat16": 200.0}
TORCH["precision"] = "bf16"


def test_this_machine_is_examined_for_real(tmp_path: Path) -> None:
    findings = {finding.what: finding for finding in doctor.examine(tmp_path / "runs" / "x")}
    assert {"python", "torch", "cores", "memory", "output folder", "jieba", "accelerator", "bf16", "two ranks"} <= set(
        findings
    )
    assert not [f for f in findings.values() if f.state == "fail"]
    assert findings["bf16"].found.endswith(f"precision: auto is {here()}")
    assert list(tmp_path.iterdir()) == []


def test_floors_are_those_of_setup_py() -> None:
    text = (ROOT / "setup.py").read_text()
    stated = dict(re.findall(r'"([a-zA-Z]+)>=([\d.]+)', text))
    assert {name: stated[name] for name in doctor.FLOORS} == doctor.FLOORS


@pytest.mark.parametrize(
    ("floors", "state"), [({"torch": "2.11"}, "ok"), ({"torch": "99.1"}, "fail"), ({"nothere": "1"}, "fail")]
)
def test_packages(floors: dict[str, str], state: str) -> None:
    (finding,) = doctor.packages(floors)
    assert finding.state == state
    assert bool(finding.remedy) == (state != "ok")


@pytest.mark.parametrize(("text", "parsed"), [("2.13.0+cpu", (2, 13, 0)), ("5.23.0rc1", (5, 23, 0)), ("0.19", (0, 19))])
def test_versions_are_compared_as_numbers(text: str, parsed: tuple[int, ...]) -> None:
    assert doctor.version(text) == parsed
    assert doctor.version("2.9") < doctor.version("2.11")


def test_disk(tmp_path: Path) -> None:
    assert doctor.disk(tmp_path / "not" / "there").state == "ok"
    assert doctor.disk(tmp_path, needed=1e18).state == "warn"
    assert doctor.disk(Path("/proc/nowhere")).state == "fail"
    assert list(tmp_path.iterdir()) == []


def test_small_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cores", lambda: 1)
    monkeypatch.setattr(devices, "memory_bytes", lambda: 10**9)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    assert [doctor.cores().state, doctor.memory().state, doctor.open_files().state] == ["warn"] * 3
    assert doctor.shared_memory(Path("/no/shm")).state == "warn"
    assert doctor.shared_memory(needed=1e18).state == "warn"


def test_no_segmenter(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert doctor.segmenter().state == "fail"


def test_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: 0)
    assert doctor.accelerator(TORCH).state == "ok"
    monkeypatch.setattr(devices, "gpus", lambda: 1)
    assert doctor.accelerator(TORCH).state == "warn"
    assert doctor.accelerator(TORCH | {"cuda": True, "device": "H200"}).found == "H200 (1 visible)"


def test_bf16() -> None:
    assert doctor.bf16(TORCH).state == "ok"
    assert doctor.bf16(TORCH | {"bfloat16": 50.0}).state == "warn"
    assert doctor.bf16(TORCH | {"bf16": False}).state == "warn"


def test_a_torch_that_cannot_be_imported_ends_the_examination(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> None:
        raise subprocess.CalledProcessError(1, "python", stderr="Traceback\nImportError: libtorch.so: not found\n")

    monkeypatch.setattr(doctor, "torch_facts", broken)
    *_, last = doctor.examine(tmp_path)
    assert last == Finding("torch", "fail", "ImportError: libtorch.so: not found", "make install")


def test_ranks_that_cannot_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "GLOO_PROBE", "import sys; sys.exit('no such device: lo7')")
    finding = doctor.gloo()
    assert finding.state == "fail"
    assert finding.found == "no such device: lo7"


@pytest.mark.parametrize(("states", "status"), [(["ok", "warn"], 0), (["ok", "fail"], 1)])
def test_the_verdict(states: list[doctor.State], status: int) -> None:
    out = io.StringIO()
    findings = (Finding("thing", state, "found [it]", "do something") for state in states)
    assert doctor.show(findings, Console(file=out, width=100)) == status
    assert "found [it]" in out.getvalue()
    assert ("not fit" in out.getvalue()) == bool(status)

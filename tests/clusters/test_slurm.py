"""Runs under a real Slurm of one machine: finished, preempted, at their time limit, failed, cancelled."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.corpus import Corpus
from launcher.launch import prepare_data
from launcher.runfile import open_prep
from tests.clusters.slurm_here import PROGRAMS, SEARCH, Slurm, slurm_here
from tests.launcher.conftest import write_run
from tests.launcher.strings import make

pytestmark = [pytest.mark.clusters, pytest.mark.timeout(600)]

CLUSTER = """
kind: slurm
partition: low
processes: {processes}
nodes: {nodes}
interface: lo
notice: {notice}
time: "{time}"
variables: {{OMP_NUM_THREADS: "1"}}
prep: {{tasks: 2, memory_gb: 1, time: "1:00:00"}}
sbatch: {{{sbatch}}}
"""
MANY = ["stages.0.training.steps=600", "stages.0.training.checkpoint_every=1000"]
ENDLESS = ["stages.0.training.steps=1000000", "stages.0.training.checkpoint_every=100000"]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    missing = [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]
    if missing:  # a laptop may lack them; with CI=true a skip fails (tests/conftest.py)
        pytest.skip(f"{', '.join(missing)}: not installed (Debian: slurm-wlm, munge)")
    with slurm_here() as running:
        yield running


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a prepared corpus in ``data``; the names of all paths want quoting."""
    folder = tmp_path_factory.mktemp("slurm") / "a b'c"
    folder.mkdir()
    config = open_prep(str(write_run(folder)), [f"data.folder={folder / 'data'}"])
    prepare_data(config.data, config.data_folder)
    return folder


def cluster(
    place: Path, processes: int = 2, nodes: int = 1, notice: int = 10, time: str = "1:00:00", sbatch: str = ""
) -> Path:
    path = place / "cluster.yaml"
    path.write_text(CLUSTER.format(processes=processes, nodes=nodes, notice=notice, time=time, sbatch=sbatch))
    return path


def distill(slurm: Slurm | None, *words: str) -> str:
    command = [sys.executable, "-P", "-m", "launcher.cli", *words]
    root = Path(__file__).parents[2]
    environment = None if slurm is None else {**slurm.environment, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def submit(slurm: Slurm, place: Path, name: str, file: Path, *words: str) -> str:
    said = distill(slurm, "run", *run_words(place, name), *words, "--cluster", str(file))
    found = re.search(r"Submitted as Slurm job (\d+)", said)
    assert found, said
    return found.group(1)


def run_words(place: Path, name: str) -> list[str]:
    return [str(place / "small.yaml"), f"name={name}", f"data.folder={place / 'data'}"]


def log(place: Path, name: str, job: str) -> str:
    return (place / "runs" / name / "logs" / f"slurm-{job}.log").read_text()


def weights(folder: Path) -> dict[str, bytes]:
    """Everything that was exported, and the last state of each stage."""
    files = [*folder.glob("export/**/*.safetensors"), *folder.glob("stages/*/checkpoints/*/*.safetensors")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def steps_done(place: Path, name: str) -> int:
    path = place / "runs" / name / "logs" / "progress.json"
    found = re.search(r'"step": (\d+)', path.read_text()) if path.is_file() else None
    return 0 if found is None else int(found.group(1))


def wait_for_steps(place: Path, name: str, steps: int, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while steps_done(place, name) < steps:
        assert time.monotonic() < deadline, f"{name} has not begun"
        time.sleep(0.1)


def test_the_data_first_then_the_run(slurm: Slurm, place: Path) -> None:
    """Nothing is prepared yet: the run waits for the jobs of the preparation, which makes the same shards."""
    data = place / "by slurm" / "data"
    words = [str(place / "small.yaml"), "name=whole", f"data.folder={data}"]
    said = distill(slurm, "run", *words, "--cluster", str(cluster(place)))
    job = re.findall(r"Slurm job (\d+)", said)[0]
    facts = slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", seconds=300)
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), log(place, "whole", job)
    assert Corpus.open(data).hash == Corpus.open(place / "data").hash
    assert (place / "runs" / "whole" / "report.html").is_file()
    assert "submitted as Slurm jobs" in said


def test_preempted_and_asked_to_stop_it_ends_with_the_same_bits(slurm: Slurm, place: Path) -> None:
    """On two nodes; what disturbed it costs no step: the weights are those of a run on this machine."""
    job = submit(slurm, place, "disturbed", cluster(place, processes=1, nodes=2), *MANY)
    wait_for_steps(place, "disturbed", 20)
    high = slurm.call(
        "sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"
    )
    slurm.wait(high, "COMPLETED")
    assert int(slurm.wait(job, "RUNNING")["Restarts"]) == 1
    first = steps_done(place, "disturbed")
    wait_for_steps(place, "disturbed", first + 20)
    slurm.call("scancel", "--batch", "--signal=USR1", job)  # what the notice before a time limit is
    facts = slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", seconds=300)
    said = log(place, "disturbed", job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "2"), said
    assert "Status 75: back into the queue (1 of 1000)." in said
    distill(None, "run", *run_words(place, "undisturbed"), *MANY)
    found, expected = (weights(place / "runs" / name) for name in ("disturbed", "undisturbed"))
    assert any(name.startswith("export/") for name in expected)
    assert [name for name in expected if found.get(name) != expected[name]] == []


def test_before_its_time_limit_it_goes_back_into_the_queue(slurm: Slurm, place: Path) -> None:
    job = submit(slurm, place, "limited", cluster(place, notice=100), *ENDLESS)
    wait_for_steps(place, "limited", 20)
    hours, minutes, _ = slurm.facts(job)["RunTime"].split(":")
    limit = 60 * int(hours) + int(minutes) + 2  # so that one to two minutes are left, of which 100 s are notice
    slurm.call("scontrol", "update", f"jobid={job}", f"TimeLimit={limit}")
    facts = slurm.wait(job, "PENDING", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", seconds=180)
    slurm.call("scancel", job)
    said = log(place, "limited", job)
    assert (facts["JobState"], facts["Restarts"]) == ("PENDING", "1"), said
    assert "The state of the last step is in a checkpoint." in said
    assert "Status 75: back into the queue (1 of 1000)." in said


def test_a_failing_run_is_a_failed_job_with_our_status(slurm: Slurm, place: Path) -> None:
    """A shard is damaged between the submission, which would see it, and the start."""
    damaged = place / "damaged"
    shutil.copytree(place / "data", damaged)
    job = submit(slurm, place, "damaged", cluster(place, sbatch='hold: ""'), f"data.folder={damaged}")
    next((damaged / "shards").rglob("tokens.bin")).write_bytes(b"")
    slurm.call("scontrol", "release", job)
    facts = slurm.wait(job, "COMPLETED", "FAILED")
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "65:0", "0")
    assert "tokens.bin" in log(place, "damaged", job)


def test_a_cancelled_run_stays_so_and_can_go_on(slurm: Slurm, place: Path) -> None:
    job = submit(slurm, place, "cancelled", cluster(place), *ENDLESS)
    wait_for_steps(place, "cancelled", 20)
    slurm.call("scancel", job)
    slurm.wait(job, "CANCELLED")
    deadline = time.monotonic() + 60
    while slurm.call("squeue", "-h", "-j", job):
        assert time.monotonic() < deadline, "the job does not end"
        time.sleep(0.3)
    assert slurm.facts(job)["Restarts"] == "0"
    assert "The state of the last step is in a checkpoint." in log(place, "cancelled", job)


def test_any_string_arrives(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    monkeypatch.setenv("PATH", slurm.environment["PATH"])
    made = make(tmp_path, "a b'c; $(touch x)", monkeypatch, {"kind": "slurm", "partition": "low", "interface": "lo"})
    made.backend.run(made.job)
    job = re.findall(r"Slurm job (\d+)", capsys.readouterr().out)[0]
    facts = slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED")
    assert facts["JobState"] == "COMPLETED", (made.job.folder / "logs" / f"slurm-{job}.log").read_text()
    made.check()
    assert not [folder for folder in (Path(), Path("/"), Path.home()) if (folder / "x").exists()]


def test_runs_of_a_sweep_wait_for_each_other(slurm: Slurm, place: Path) -> None:
    """Two at once: the third waits for the end of the first, which here is no good one."""
    file = place / "sweep.yaml"
    block = f"\nsweep:\n  at_once: 2\n  grid: {{seed: [1, 2, 3]}}\n\noutput: {place / 'swept'}\n"
    text = (place / "small.yaml").read_text(encoding="utf-8")
    file.write_text(re.sub(r"\noutput: .*\n", block, text), encoding="utf-8")
    held = cluster(place, sbatch='hold: ""')
    said = distill(slurm, "run", str(file), f"data.folder={place / 'data'}", "--cluster", str(held))
    jobs = re.findall(r"Submitted as Slurm job (\d+)", said)
    assert len(jobs) == 3, said
    waits = [slurm.facts(job)["Dependency"] for job in jobs]
    assert waits[:2] == ["(null)", "(null)"] and waits[2].startswith(f"afterany:{jobs[0]}")
    slurm.call("scancel", jobs[0])
    deadline = time.monotonic() + 60
    while slurm.facts(jobs[2])["Dependency"] != "(null)":
        assert time.monotonic() < deadline, slurm.facts(jobs[2])
        time.sleep(0.3)
    slurm.call("scancel", *jobs[1:])

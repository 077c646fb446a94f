"""From a run file to ranks: what is written, checked and refused before anything starts."""

from __future__ import annotations

import errno
import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.cluster import ClusterConfig, load_cluster
from configs.errors import ConfigError, DataError, OutputError
from configs.loader import load
from distill_core.config import RunConfig
from launcher import devices, environment, launch
from launcher.backends import BACKENDS, Backend
from launcher.job import Job
from launcher.lock import folder_lock
from launcher.runfile import PrepConfig, open_prep, open_run

ROOT = Path(__file__).parents[2]


class Recorder(Backend):
    """Keeps the job instead of starting it."""

    jobs: list[Job]

    def describe(self, job: Job) -> str:
        return f"would start {job.ranks}"

    def run(self, job: Job) -> None:
        self.jobs.append(job)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Job]]:
    Recorder.jobs = []
    monkeypatch.setitem(BACKENDS._entries, "recorder", Recorder)
    monkeypatch.setattr(devices, "gpus", lambda *_, **__: 0)
    return Recorder.jobs


def test_launch_prepares_writes_and_hands_over(run_file: Path, jobs: list[Job]) -> None:
    config = open_run(str(run_file), ["launch.backend=recorder"])
    assert launch.launch(config, only="teacher") == 0
    (job,) = jobs
    assert (job.ranks, job.only, job.folder) == (2, "teacher", config.folder)
    assert (config.folder / "data" / "manifest.json").is_file()
    assert load(config.folder / "config.yaml", [], RunConfig) == config
    facts = json.loads((config.folder / "environment.json").read_text())
    assert facts["packages"]["pydantic"]
    assert facts["cores"] >= 1
    assert not list(config.folder.glob(".config*")), "nothing half-written stays"


def test_dry_run_checks_but_prepares_nothing(run_file: Path, jobs: list[Job]) -> None:
    config = open_run(str(run_file), ["launch.backend=recorder"])
    said = launch.dry_run(config)
    assert said == f"# 1 blocks into {config.data_folder}, 1 processes on this machine\n\nwould start 2"
    assert not jobs
    assert not config.folder.exists() and not config.folder.parent.exists()
    with pytest.raises(DataError):
        launch.dry_run(open_run(str(run_file), ["launch.backend=recorder", "data.sources.0.path=/none"]))


def test_prepared_data_needs_no_sources(run_file: Path, jobs: list[Job]) -> None:
    config = open_run(str(run_file), ["launch.backend=recorder"])
    launch.launch(config)
    (run_file.parent / "corpus.txt").unlink()
    launch.launch(config)
    assert len(jobs) == 2


def test_a_second_launch_in_the_same_folder_is_refused(run_file: Path, jobs: list[Job]) -> None:
    config = open_run(str(run_file), ["launch.backend=recorder"])
    with folder_lock(config.folder), pytest.raises(ConfigError, match=r"Another distill process \(pid \d+ on .+\)"):
        launch.launch(config)
    assert launch.launch(config) == 0


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from launcher.lock import folder_lock\n"
        "with folder_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(300)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(ConfigError, match=f"pid {process.pid} on "), folder_lock(tmp_path):
        pass
    process.kill()
    process.wait()
    with folder_lock(tmp_path):
        pass


def test_a_lock_in_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"), folder_lock(tmp_path / "file" / "run"):
        pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: int, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(ConfigError, match=r"file system of .*\.run\.lock cannot lock files"), folder_lock(tmp_path):
        pass


@pytest.mark.parametrize(("wanted", "gpus", "ranks"), [(None, 0, 1), (None, 4, 4), (2, 0, 2), (2, 4, 2), (4, 1, 1)])
def test_how_many_ranks(wanted: int | None, gpus: int, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: gpus)
    assert launch.ranks(wanted) == ranks


def test_the_local_backend_describes_what_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda *_, **__: 0)
    monkeypatch.setattr(devices, "cores", lambda: 4)
    monkeypatch.setattr(sys, "executable", "/venv/bin/python")
    run = tmp_path / "my run"
    said = BACKENDS["local"](ClusterConfig(kind="local")).describe(Job(run, 2, only="student"))
    golden = """\
PYTHONPATH=ROOT \\
    OMP_NUM_THREADS=2 \\
    GLOO_SOCKET_IFNAME=lo \\
    TOKENIZERS_PARALLELISM=false \\
    HF_HUB_DISABLE_PROGRESS_BARS=1 \\
    PYTHONWARNINGS=ignore::FutureWarning:torch.distributed.c10d_logger \\
    DS_ACCELERATOR=cpu \\
    RANK={rank} \\
    LOCAL_RANK={rank} \\
    WORLD_SIZE=2 \\
    LOCAL_WORLD_SIZE=2 \\
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 \\
    ZHENGLIU_RENDEZVOUS='file://RUN/logs/.rendezvous-ID' \\
    ZHENGLIU_PULSE=FILE \\
    PYTHONUNBUFFERED=1 \\
    GUARD $$ /venv/bin/python -P -m distill_core.run 'RUN' --only student >> 'RUN/logs/rank-{rank}.log' 2>&1"""
    expected = "\n".join(golden.format(rank=rank) for rank in range(2))
    expected = expected.replace("GUARD", "/venv/bin/python -I -S ROOT/launcher/guard.py")
    assert said == expected.replace("ROOT", str(ROOT)).replace("RUN/", f"{run}/").replace("'RUN'", f"'{run}'")


@pytest.mark.parametrize("name", list(BACKENDS))
def test_every_backend_describes_itself(name: str, tmp_path: Path) -> None:
    """Each has an example of its cluster file, and says all commands that it would start."""
    mounted = [f"volumes.0.mount={tmp_path}"] if name == "kubernetes" else []
    backend = BACKENDS[name](load_cluster(f"clusters/{name}", mounted))
    hosts = backend.nodes() if any(backend.nodes()) else ()
    said = backend.describe(Job(tmp_path, 2, nodes=len(backend.nodes()), hosts=hosts))
    assert "distill_core.run" in said or "launcher.node" in said or "node.py" in said
    assert str(tmp_path) in said


@pytest.mark.parametrize("name", list(BACKENDS))
def test_no_backend_shows_a_value_that_goes_by_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``pass_variables`` may name a secret that is not called like one."""
    monkeypatch.setenv("INNOCENT", "canary-secret")
    mounted = [f"volumes.0.mount={tmp_path}"] if name == "kubernetes" else []
    words = ["pass_variables=[INNOCENT]", "variables={API_TOKEN: canary-secret, TZ: UTC}"]
    backend = BACKENDS[name](load_cluster(f"clusters/{name}", [*mounted, *words]))
    job = backend.job(tmp_path, 2)
    said = backend.describe(job)
    assert "canary-secret" not in said
    assert "API_TOKEN" in said and "***" in said and "UTC" in said
    assert ("INNOCENT" in said) == (name != "local"), "here ranks inherit it"
    if name != "local":
        assert Job.open(job.save()).environment["INNOCENT"] == "canary-secret"


def test_the_script_is_the_same_command(run_file: Path) -> None:
    script = ROOT / "launcher" / "launch.py"
    command = [sys.executable, "-I", str(script), str(run_file), "stages.0.training.stepps=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=run_file.parent)
    assert done.returncode == 64
    assert "Did you mean `steps`?" in done.stderr


# ---------------------------------------------------------------- run files and run folders


def test_a_run_folder_stands_for_its_config_wherever_it_is(run_file: Path, jobs: list[Job]) -> None:
    config = open_run(str(run_file), ["launch.backend=recorder", "seed=7"])
    launch.launch(config)
    moved = run_file.parent / "elsewhere" / "small"
    moved.parent.mkdir()
    config.folder.rename(moved)
    again = open_run(str(moved), ["evaluation.latency_repeats=3"])
    assert again.folder == moved
    assert again.seed == 7
    assert again.evaluation.latency_repeats == 3
    assert open_prep(str(moved)).data_folder == moved / "data"
    renamed = moved.rename(moved.with_name("other"))
    with pytest.raises(ConfigError, match="belongs to a run called 'small'"):
        open_run(str(renamed))


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a run folder: it has no config.yaml"):
        open_run(str(tmp_path))


def test_prep_config_agrees_with_the_whole_config(run_file: Path) -> None:
    """`prep` cannot import RunConfig (that needs torch), so its three fields are said twice."""
    for name, field in PrepConfig.model_fields.items():
        theirs = RunConfig.model_fields[name]
        assert field.annotation == theirs.annotation
        assert str(field.metadata) == str(theirs.metadata)
        assert field.default == theirs.default
    for words in ([], ["data.folder=/shared"], ["output=/x", "name=y"]):
        part, whole = open_prep(str(run_file), words), open_run(str(run_file), words)
        assert (part.folder, part.data_folder, part.data) == (whole.folder, whole.data_folder, whole.data)


# ---------------------------------------------------------------- the machine


def test_environment_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-secret")
    text = environment.to_json()
    assert "canary-secret" not in text
    assert {"launched", "revision", "python", "platform", "cores", "memory_gigabytes", "packages"} <= set(
        json.loads(text)
    )


def test_the_revision_of_a_checkout(tmp_path: Path) -> None:
    assert environment.revision(tmp_path) is None
    for words in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    revision = environment.revision(tmp_path)
    assert revision is not None
    assert len(revision) == 40
    (tmp_path / "f").write_text("1")
    subprocess.run(["git", "-C", str(tmp_path), "add", "f"], check=True)
    assert environment.revision(tmp_path) == f"{revision}+changes"


def test_a_quota_of_the_container(tmp_path: Path) -> None:
    assert devices.cgroup_cores(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert devices.cgroup_cores(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert devices.cgroup_cores(tmp_path) is None


@pytest.mark.parametrize(
    ("visible", "count"), [(None, 2), ("0", 1), ("", 0), ("-1", 0), ("0,1,2,3", 2), ("1,-1,0", 1), ("GPU-abc", 1)]
)
def test_gpus_by_their_device_files(
    tmp_path: Path, visible: str | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).write_text("")
    assert devices.gpus(tmp_path, visible) == count


def test_cores_and_memory_are_those_of_a_machine() -> None:
    assert devices.cores() >= 1
    assert devices.memory_bytes() > 1e8

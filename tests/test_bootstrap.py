"""scripts/bootstrap with stub interpreters: what it says when something is missing, and that it installs once."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = [
    "bash",
    "sh",
    "dirname",
    "df",
    "awk",
    "grep",
    "tee",
    "tail",
    "tr",
    "cat",
    "rm",
    "mkdir",
    "cp",
    "chmod",
    "cut",
    "env",
    "touch",
]

# An interpreter that answers as a Python of the given kind would, and notes each installation.
STUB = """#!/bin/sh
case "$*" in
    *"version_info < (3, 11)"*) exit {too_old} ;;
    *"import venv, ensurepip"*) exit {no_venv} ;;
    --version) echo "Python {version}" ;;
    "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    "scripts/lock check"*) echo "{lock_says}" >&2; echo "xxhash==4.1.0 --hash=sha256:0"; exit {lock_status} ;;
    "-m pip install"*)
        echo "pip $*" >> pip.calls
        echo "{pip_says}"
        [ {pip_status} -eq 0 ] && touch .venv/bin/distill && chmod +x .venv/bin/distill
        exit {pip_status} ;;
    -) cat > /dev/null; cat setup.py constraints.txt requirements.lock ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the real script, and a PATH of its own in ``bin``."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "scripts" / "bootstrap", tmp_path / "scripts")
    (tmp_path / "setup.py").write_text("setup\n")
    (tmp_path / "constraints.txt").write_text("pins\n")
    (tmp_path / "requirements.lock").write_text("hashes\n")
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "bin" / tool).symlink_to(found)
    return tmp_path


def stub(project: Path, name: str = "python3", **values: object) -> None:
    facts = {"too_old": 0, "no_venv": 0, "version": "3.12.1", "pip_says": "Successfully installed", "pip_status": 0}
    facts |= {"lock_says": "", "lock_status": 0}
    path = project / "bin" / name
    path.write_text(STUB.format(**(facts | values)))
    path.chmod(0o755)


def bootstrap(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(project / "scripts" / "bootstrap")]
    paths = {"PATH": str(project / "bin"), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=paths, check=False, cwd="/")


def installations(project: Path) -> int:
    calls = project / "pip.calls"
    return sum(line.endswith("--no-deps -e .") for line in calls.read_text().splitlines()) if calls.exists() else 0


def test_the_second_call_installs_nothing(project: Path) -> None:
    stub(project)
    first, second = bootstrap(project), bootstrap(project)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "creating .venv with Python 3.12.1" in first.stdout
    chosen, hashed, itself = (project / "pip.calls").read_text().splitlines()
    assert "--dry-run --report .venv/plan.json -e .[dev] -c constraints.txt" in chosen
    assert "--no-deps --require-hashes -r .venv/plan.txt" in hashed
    assert itself.endswith("--no-deps -e .")
    assert second.stdout == "bootstrap: .venv is up to date\n"
    assert installations(project) == 1


@pytest.mark.parametrize("name", ["setup.py", "constraints.txt", "requirements.lock"])
def test_a_changed_file_installs_again_into_the_same_environment(project: Path, name: str) -> None:
    stub(project)
    bootstrap(project)
    (project / name).write_text("changed\n")
    again = bootstrap(project)
    assert again.returncode == 0
    assert "changed since the last installation" in again.stdout
    assert "creating" not in again.stdout
    assert installations(project) == 2


def test_no_python(project: Path) -> None:
    done = bootstrap(project)
    assert done.returncode == 1
    assert "no python3 was found" in done.stderr


def test_a_python_that_is_too_old(project: Path) -> None:
    stub(project, too_old=1, version="3.9.2")
    done = bootstrap(project)
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed, but python3 here is Python 3.9.2" in done.stderr
    done = bootstrap(project, PYTHON="python3")
    assert "PYTHON=python3 is older than Python 3.11" in done.stderr
    assert "not a program that can be started" in bootstrap(project, PYTHON="nothing").stderr
    assert installations(project) == 0


def test_a_newer_python_beside_an_old_one_is_taken(project: Path) -> None:
    stub(project, too_old=1)
    stub(project, name="python3.12", version="3.12.9")
    assert "creating .venv with Python 3.12.9 (python3.12)" in bootstrap(project).stdout


def test_no_venv_module(project: Path) -> None:
    stub(project, no_venv=1)
    done = bootstrap(project)
    assert done.returncode == 1
    assert "has no venv module" in done.stderr
    assert "python3-venv" in done.stderr


def test_too_little_disk(project: Path) -> None:
    stub(project)
    (project / "bin" / "df").unlink()
    (project / "bin" / "df").write_text("#!/bin/sh\necho Filesystem\necho /dev/x 9 9 102400 9% /\n")
    (project / "bin" / "df").chmod(0o755)
    done = bootstrap(project)
    assert done.returncode == 1
    assert "only 100 MB are free" in done.stderr
    assert installations(project) == 0


def test_files_that_are_not_those_of_the_lock_are_not_installed(project: Path) -> None:
    stub(project, lock_status=1, lock_says="lock: 1 file(s) are not those of requirements.lock: xxhash. Nothing was")
    done = bootstrap(project)
    assert done.returncode == 1
    assert "1 file(s) are not those of requirements.lock: xxhash. Nothing was" in done.stderr
    assert installations(project) == 0
    assert "--dry-run" in (project / "pip.calls").read_text().splitlines()[-1]
    assert not (project / ".venv" / ".installed").exists()


def test_other_builds_are_said_and_installed(project: Path) -> None:
    stub(project, lock_says="lock: not in requirements.lock, and taken as your index has it: torch 2.13.0+cu128")
    done = bootstrap(project)
    assert done.returncode == 0
    assert "taken as your index has it: torch 2.13.0+cu128" in done.stdout
    assert installations(project) == 1


@pytest.mark.parametrize(
    ("says", "said"),
    [
        ("ERROR: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: No matching distribution found for torch==2.13.0", "No matching distribution found"),
    ],
)
def test_pip_fails_and_the_next_call_tries_again(project: Path, says: str, said: str) -> None:
    stub(project, pip_status=1, pip_says=says)
    done = bootstrap(project)
    assert done.returncode == 1
    assert said in done.stderr
    stub(project)
    shutil.copy(project / "bin" / "python3", project / ".venv" / "bin" / "python")
    assert bootstrap(project).returncode == 0
    assert bootstrap(project).stdout == "bootstrap: .venv is up to date\n"


def test_a_broken_environment_is_made_anew(project: Path) -> None:
    stub(project)
    (project / ".venv" / "bin").mkdir(parents=True)
    done = bootstrap(project)
    assert done.returncode == 0
    assert "not a working environment" in done.stdout
    assert (project / ".venv" / "bin" / "python").exists()

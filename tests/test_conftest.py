"""With CI=true a skipped test fails the run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Not tests of ours: the skipped ones that conftest.py has to turn into failures, run by the pytest started below.
TESTS = """
import pytest

def test_runs(): pass

@pytest.mark.skip(reason="no reason")
def test_skipped(): pass

def test_skips_itself(): pytest.skip("a missing thing")

@pytest.mark.xfail(reason="known")
def test_known(): assert False
"""
MODULE = "import pytest\npytest.importorskip('no_such_module')\ndef test_never(): pass\n"


@pytest.mark.parametrize(
    ("ci", "status", "counts"),
    [("true", 1, "1 failed, 1 passed, 1 xfailed, 2 errors"), ("", 0, "1 passed, 3 skipped, 1 xfailed")],
)
def test_skips(tmp_path: Path, ci: str, status: int, counts: str) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_module.py").write_text(MODULE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--continue-on-collection-errors",
        str(tmp_path),
    ]
    environment = os.environ | {"CI": ci, "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path)
    assert done.returncode == status, done.stdout
    assert counts in done.stdout
    if ci:
        assert "with CI=true that is a failure" in done.stdout

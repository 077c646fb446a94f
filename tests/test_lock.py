"""requirements.lock against constraints.txt, and what scripts/lock says of a plan of pip's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "requirements.lock").read_text(encoding="utf-8")
ENTRIES = {
    re.sub(r"[-_.]+", "-", name).lower(): (version, re.findall(r"--hash=sha256:([0-9a-f]{64})\b", rest))
    for name, version, rest in re.findall(r"^([\w.-]+)==([\w.+!]+)((?:.*\\\n)*.*)", TEXT, re.MULTILINE)
}


def test_it_holds_the_tested_set() -> None:
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()]
    wanted = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins}
    assert {name: ENTRIES[name][0] for name in wanted if name in ENTRIES} == wanted
    assert all(hashes for _, hashes in ENTRIES.values())
    assert len(ENTRIES["torch"][1]) > 10 and len(ENTRIES["numpy"][1]) > 20  # of many platforms
    assert "https://" not in TEXT and "--index-url" not in TEXT


def item(name: str, version: str, digest: str | None) -> dict[str, Any]:
    hashes = {} if digest is None else {"hashes": {"sha256": digest}}
    source = {"url": f"https://somewhere/{name}-{version}-py3-none-any.whl", "archive_info": hashes}
    return {"download_info": source, "metadata": {"name": name, "version": version}}


def check(folder: Path, items: list[dict[str, Any]], others: str = "") -> subprocess.CompletedProcess[str]:
    itself = {
        "download_info": {"url": "file:///here", "dir_info": {}},
        "metadata": {"name": "zhengliu", "version": "0"},
    }
    (folder / "plan.json").write_text(json.dumps({"install": [itself, *items]}))
    command = [sys.executable, str(ROOT / "scripts" / "lock"), "check", str(folder / "plan.json")]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OTHER_BUILDS": others}, cwd="/"
    )


def test_files_of_the_lock_pass(tmp_path: Path) -> None:
    version, hashes = ENTRIES["typing-extensions"]
    done = check(tmp_path, [item("typing_extensions", version, hashes[-1])])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"typing_extensions=={version} --hash=sha256:{hashes[-1]}\n"
    assert check(tmp_path, []).stdout == ""


@pytest.mark.parametrize("name", ["numpy", "torchh", "nvidia", "never-heard-of"])
@pytest.mark.parametrize("digest", ["0" * 64, None])
def test_other_files_do_not(tmp_path: Path, name: str, digest: str | None) -> None:
    good = item("jinja2", ENTRIES["jinja2"][0], ENTRIES["jinja2"][1][0])
    done = check(tmp_path, [good, item(name, "1.0", digest)])
    assert done.returncode == 1
    assert f"1 file(s) are not those of requirements.lock: {name} 1.0" in done.stderr
    assert f"OTHER_BUILDS={name}" in done.stderr
    again = check(tmp_path, [good, item(name, "1.0", digest)], others=f" , {name}")
    assert again.returncode == (digest is None)  # without a hash there is nothing to hold pip to


def test_builds_for_devices_are_said_and_pass(tmp_path: Path) -> None:
    """Of the CPU, of another CUDA: each index has its own."""
    cpu, cuda = ENTRIES["torch"][1][0], "1" * 64
    done = check(tmp_path, [item("torch", "2.13.0+cpu", cpu)])
    assert (done.returncode, done.stderr) == (0, "")
    done = check(tmp_path, [item("torch", "2.13.0+cu128", cuda), item("nvidia-cublas-cu12", "12.8", cuda)])
    assert done.returncode == 0 and done.stderr.count("taken as your index has it") == 2
    assert f"torch==2.13.0+cu128 --hash=sha256:{cuda}" in done.stdout

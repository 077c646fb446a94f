"""Kernels that were compiled before are run again exactly while nothing they are made from has changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import kernel_cache

PACKAGE = {
    "data_prep/__init__.py": Path(kernel_cache.__file__).with_name("__init__.py").read_text(encoding="utf-8"),
    "data_prep/kernel_cache.py": Path(kernel_cache.__file__).read_text(encoding="utf-8"),
    "data_prep/constants.py": "STEP = 1\n",
    "data_prep/callee.py": """
from numba import njit
from data_prep.constants import STEP


@njit(cache=True)
def more(x):
    return x + STEP
""",
    "data_prep/caller.py": """
from numba import njit
from data_prep.callee import more


@njit(cache=True)
def twice(x):
    return 2 * more(x)
""",
    "data_prep/other.py": """
from numba import njit


@njit(cache=True)
def other(x):
    return x
""",
}
RUN = """
from data_prep.caller import twice
from data_prep.other import other
print(twice(1), other(1), *[sum(f.stats.cache_hits.values()) for f in (twice, other)], twice._cache.cache_path)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small project with this project's own way to keep kernels."""
    for name, source in PACKAGE.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return tmp_path / "project"


def run(package: Path, **environment: str) -> tuple[int, int, int, int, str]:
    """Results of ``twice`` and ``other``, how many of each came from the cache, and where that lies."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA")}
    inherited |= {"PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    command = [sys.executable, "-c", RUN]
    done = subprocess.run(command, cwd=package, env=inherited, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    a, b, hits, other_hits, where = done.stdout.split(maxsplit=4)
    return int(a), int(b), int(hits), int(other_hits), where.strip()


@pytest.mark.parametrize("own", [False, True], ids=["beside the source", "NUMBA_CACHE_DIR"])
def test_a_changed_callee_or_constant_is_seen(package: Path, tmp_path: Path, own: bool) -> None:
    chosen = {"NUMBA_CACHE_DIR": str(tmp_path / "own")} if own else {}
    where = tmp_path / "own" if own else package / "data_prep" / "__pycache__"
    *first, place = run(package, **chosen)
    assert first == [4, 1, 0, 0] and Path(place).is_relative_to(where)
    assert run(package, **chosen)[:4] == (4, 1, 1, 1)
    callee = package / "data_prep" / "callee.py"
    callee.write_text(callee.read_text().replace("x + STEP", "x - STEP"))
    assert run(package, **chosen)[:4] == (0, 1, 0, 1)  # that of the other file stays
    (package / "data_prep" / "constants.py").write_text("STEP = 3\n")
    assert run(package, **chosen)[:4] == (-4, 1, 0, 1)
    kept = sorted(path.name for path in where.rglob("*.nb?"))
    assert len(kept) == 6, kept  # an index and a kernel of each: what was stale has been written over


def test_a_folder_that_cannot_be_written_is_passed_over(package: Path, tmp_path: Path) -> None:
    (package / "data_prep" / "__pycache__").write_text("a file, so that not even root can make a folder of it")
    *first, place = run(package, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert first == [4, 1, 0, 0] and Path(place).is_relative_to(tmp_path / "cache")
    assert run(package, XDG_CACHE_HOME=str(tmp_path / "cache"))[2] == 1


def test_other_packages_are_cached_as_ever(package: Path, tmp_path: Path) -> None:
    """Their stamp is numba's, and no file of theirs is read for it."""
    elsewhere = tmp_path / "elsewhere.py"
    elsewhere.write_text("from numba import njit\n\n\n@njit(cache=True)\ndef f(x):\n    return x\n")
    code = "import data_prep, elsewhere; print(type(elsewhere.f._cache._impl.locator).__name__)"
    environment = {**os.environ, "PYTHONPATH": f"{package}:{tmp_path}"}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "InTreeCacheLocator"


def test_what_the_kernel_of_words_is_made_from() -> None:
    folder = Path(kernel_cache.__file__).parent
    found = {path.name for path in kernel_cache.sources_of(folder / "jieba_kernel.py")}
    assert {"jieba_kernel.py", "jieba_words.py", "jieba_rest.py", "jieba_trie.py"} <= found
    assert "block.py" not in found

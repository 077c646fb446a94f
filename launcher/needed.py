"""Packages that are missing or broken: said in a sentence, with the line that installs them.

Nothing but the standard library is imported here.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("configs", "data_prep", "distill_core", "launcher")
STATUS = 70


@contextmanager
def needed() -> Iterator[None]:
    """Around the imports of a program: ends it with status 70 and a sentence where a package fails them."""
    try:
        yield
    except ImportError as error:
        said = words(error)
        if said is None:
            raise
        print(f"distill: {said}", file=sys.stderr)
        sys.exit(STATUS)


def words(error: ImportError) -> str | None:
    """What is missing and what to do; None: nothing is, the import is a defect of ours."""
    package = (error.name or "").partition(".")[0]
    if not package or package in ROOMS:
        return None
    project = [str(ROOT), "-c", str(ROOT / "constraints.txt")] if (ROOT / "setup.py").is_file() else ["zhengliu"]
    line = [sys.executable, "-m", "pip", "install", *(["-e"] if len(project) > 1 else []), *project]
    if isinstance(error, ModuleNotFoundError):
        what = f"{error.name} is not installed"
    else:
        what = f"{package} is installed, but cannot be imported ({error})"
        line.insert(4, "--force-reinstall")
    makes = f" (in {ROOT} also by `make install`)" if len(project) > 1 else ""
    return f"{what}, for the Python {sys.executable}. Install what is needed: `{shlex.join(line)}`{makes}."

"""Real clusters on this machine. What it forbids is skipped; with CI=true a skip is a failure."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.clusters.slurm_here import PROGRAMS, SEARCH, Slurm, slurm_here


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    missing = [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)}: not installed (Debian: slurm-wlm, munge)")
    with slurm_here() as running:
        yield running

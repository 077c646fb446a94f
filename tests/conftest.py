"""With CI=true a skipped test is a failed one: a check that did not run must not look like one that passed.

Slow files are started first.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

CI = os.environ.get("CI") == "true"


def _fail_if_skipped(report: Any) -> None:
    if CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, and with CI=true that is a failure: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    outcome = yield
    _fail_if_skipped(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, None]:
    outcome = yield
    _fail_if_skipped(outcome.get_result())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("chain") is None and item.get_closest_marker("ranks") is None)

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


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many exploits were blocked, where ``tests/test_exploits.py`` was run, which names all of them."""
    done = {kind: [r.nodeid for r in terminalreporter.stats.get(kind, [])] for kind in ("passed", "failed", "error")}
    if not any(name.startswith("tests/test_exploits.py::") for names in done.values() for name in names):
        return
    from tests.test_exploits import THREATS

    exploits = {exploit for names in THREATS.values() for exploit in names}
    tried = {kind: [name for name in names if name.partition("[")[0] in exploits] for kind, names in done.items()}
    blocked, attempted = len(tried["passed"]), sum(map(len, tried.values()))
    threats = sum(any(name.partition("[")[0] in THREATS[t] for name in tried["passed"]) for t in THREATS)
    terminalreporter.write_line(
        f"exploits blocked / attempted: {blocked} / {attempted} ({threats} of {len(THREATS)} threats were tried)"
    )

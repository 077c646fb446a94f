"""Exit statuses and remedies."""

from __future__ import annotations

import errno

import pytest

from configs import errors


def test_exit_codes() -> None:
    codes = {name: getattr(errors, name).exit_code for name in dir(errors) if name.endswith("Error")}
    assert codes == {
        "ZhengliuError": 70,
        "ConfigError": 64,
        "DataError": 65,
        "CheckpointError": 65,
        "LaunchError": 69,
        "TrainingError": 70,
        "OutputError": 74,
    }


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "may write"), (errno.EROFS, "may write"), (errno.EIO, "Check")],
)
def test_a_failed_write_says_where_and_what_to_do(number: int, remedy: str) -> None:
    said = str(errors.output_error("/some/file", OSError(number, "reason")))
    assert said.startswith("Cannot write /some/file: reason.")
    assert remedy in said
    assert "output=" in said

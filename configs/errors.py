"""The family of errors that users are meant to read.

Each message is one paragraph: what is wrong, where (file, line, key, rank), and how to mend it.
The command prints the message alone and ends with ``exit_code`` (numbers as in ``sysexits.h``);
anything else that escapes is a defect of ours and ends with 70 and a traceback in the log.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path


class ZhengliuError(Exception):
    """Base of every error with a message for the user."""

    exit_code = 70


class ConfigError(ZhengliuError):
    """A run file, an override or a combination of settings that cannot work; ``problems``: where it lists several."""

    exit_code = 64

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems) or [message]


class DataError(ZhengliuError):
    """A source, vocabulary, shard or model folder that cannot be used."""

    exit_code = 65


class CheckpointError(ZhengliuError):
    """A checkpoint that is damaged, or that belongs to another run."""

    exit_code = 65


class LaunchError(ZhengliuError):
    """A rank that failed, or processes that could not be started. ``host``: the one that failed, when it is known."""

    exit_code = 69
    host: str | None = None


class Requeue(LaunchError):
    """Stopped from outside, with the state kept: the same command continues. Schedulers are asked to start it again."""

    exit_code = 75


class TrainingError(ZhengliuError):
    """Training that went wrong while running: a loss that is not finite, a collective that broke."""

    exit_code = 70


class OutputError(ZhengliuError):
    """A folder that cannot be written, or a full disk."""

    exit_code = 74


OF_THE_DISK = frozenset({errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS})
"""Whatever file it was: the disk is full, broken, or cannot be written."""


def explained(error: BaseException) -> ZhengliuError | None:
    """What an error means to the user, with its exit status; None: a defect of ours."""
    if isinstance(error, ZhengliuError):
        return error
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        return output_error(os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a file", error)
    if isinstance(error, MemoryError):
        return out_of_memory(str(error))
    return None


def out_of_memory(what: str) -> ConfigError:
    """Settings that ask for more memory than there is."""
    said = f" ({what.strip().splitlines()[0].rstrip('.')})" if what.strip() else ""
    return ConfigError(
        f"There is not enough memory{said}. Lower training.micro_batch_tokens, launch.processes or data.workers; "
        "`distill plan` says what is needed."
    )


def output_error(path: Path | str, error: OSError) -> OutputError:
    """Turn an ``OSError`` met while writing ``path`` into a sentence with the remedy."""
    if error.errno == errno.ENOSPC:
        remedy = "The disk is full: free some space, or choose another folder with `output=...`."
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "Choose a folder that this user may write, with `output=...`."
    else:
        remedy = "Check the folder, or choose another one with `output=...`."
    return OutputError(f"Cannot write {path}: {error.strerror or error}. {remedy}")

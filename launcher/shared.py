"""Proof that a folder is the same one on several hosts: a random word written on one, read on all."""

from __future__ import annotations

import secrets
import shlex
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from configs.errors import LaunchError, output_error

SECONDS = 60.0


def check(folder: Path, shells: Mapping[str, Sequence[str]], seconds: float = SECONDS) -> None:
    """Raise unless all hosts see ``folder``.

    Args:
        folder: written to here; made when it is not there.
        shells: for each host, the words that a command for its shell is appended to (``ssh -- HOST``).
        seconds: for each host to answer; they are asked at the same time.

    Raises:
        LaunchError: with all hosts that do not see it, or do not answer, and what they said. ``host``: the first.
    """
    found = unseen(folder, shells, seconds)
    if found:
        lines = "\n".join(f"    {host}: {why}" for host, why in found.items())
        error = LaunchError(
            f"The run folder {folder} is not shared by all hosts. It must lie on a file system that each of them "
            f"has under this path:\n{lines}"
        )
        error.host = next(iter(found))
        raise error


def unseen(folder: Path, shells: Mapping[str, Sequence[str]], seconds: float = SECONDS) -> dict[str, str]:
    """Hosts that do not see ``folder``, with the reason."""
    path, nonce = folder.resolve() / f".shared-{uuid.uuid4().hex}", secrets.token_hex(16)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(nonce)
    except OSError as error:
        raise output_error(path, error) from error
    try:
        with ThreadPoolExecutor(max_workers=min(64, max(1, len(shells)))) as pool:
            answers = pool.map(lambda host: _ask(shells[host], path, nonce, seconds), shells)
            return {host: why for host, why in zip(shells, answers, strict=True) if why is not None}
    finally:
        path.unlink(missing_ok=True)


def _ask(shell: Sequence[str], path: Path, nonce: str, seconds: float) -> str | None:
    """None when the host reads what was written here. The folder is listed first, which makes NFS look again."""
    look = f"ls -a -- {shlex.quote(str(path.parent))} >/dev/null && cat -- {shlex.quote(str(path))}"
    try:
        done = subprocess.run(
            [*shell, look], stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds:.0f} s"
    except OSError as error:
        return f"{shell[0]} cannot be started ({error.strerror})"
    if done.stdout.decode(errors="replace").strip().endswith(nonce):
        return None
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return said[-1][:300] if said else "what it reads there is not what was written here"

"""Names on the Hugging Face hub, and the commit that each stands for: ``ORG/NAME@COMMIT``.

A name alone stands for whatever its owner has put there last. So it is resolved once, to the 40 hexadecimal digits of a
commit, and everything that comes later reads that commit and no other.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from configs.errors import ConfigError, DataError

Kind = Literal["model", "dataset"]
COMMIT = re.compile(r"[0-9a-f]{40}")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)


def is_local(source: str) -> bool:
    """Whether ``source`` is, or looks like, a path of this machine."""
    return source.startswith((".", "/", "~")) or Path(source).exists()


def split(source: str) -> tuple[str, str | None]:
    """(name, commit) of ``ORG/NAME`` or ``ORG/NAME@COMMIT``.

    Raises:
        ConfigError: what stands behind the @ is no commit.
    """
    name, at, commit = source.partition("@")
    if at and COMMIT.fullmatch(commit) is None:
        raise ConfigError(
            f"{source!r}: behind @ stands a commit, all 40 hexadecimal digits of it, and not {commit!r}; branches and "
            f"tags move. `{name}` alone is resolved to its newest commit when the run is first started, which is said."
        )
    return name, commit or None


def name_of(source: str) -> str:
    """A source as it is shown: without its commit."""
    name, _, commit = source.partition("@")
    return name if COMMIT.fullmatch(commit) else source


def pin(source: str, kind: Kind, who: str) -> str:
    """``source`` with its commit: the one that it says, or the newest on the hub; without a network the newest here.

    Args:
        source: not local (:func:`is_local`).
        who: names the place for errors.

    Raises:
        ConfigError: it names a branch or a tag.
        DataError: there is no such name, or it is not in the cache and the hub cannot be reached.
    """
    name, commit = split(source)
    if commit is not None:
        return source
    if NAME.fullmatch(name) is None:
        raise DataError(f"{who}: {source!r} is neither a local folder nor a name on the hub.")
    from huggingface_hub import HfApi

    try:
        commit = HfApi().repo_info(name, repo_type=kind, timeout=20).sha
    except Exception as error:  # of many kinds: the library's own, and those of what carries it
        commit = _kept(name, kind)
        if commit is None:
            raise unreachable(source, kind, who, error) from None
    return f"{name}@{commit}"


def _kept(name: str, kind: Kind) -> str | None:
    """The commit that the name stood for when it was last fetched into this machine's cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return commit if COMMIT.fullmatch(commit) and (folder / "snapshots" / commit).is_dir() else None


def unreachable(source: str, kind: Kind, who: str, error: Exception) -> DataError:
    """That ``source`` is neither here nor could be fetched, and what to do."""
    from huggingface_hub import constants

    name, _, commit = source.partition("@")
    why = " ".join(str(error).split())[:300] or type(error).__name__
    words = (["--repo-type dataset"] if kind == "dataset" else []) + ([f"--revision {commit}"] if commit else [])
    fetch = " ".join(["hf download", name, *words])
    return DataError(
        f"{who}: {source!r} is neither an earlier stage, nor a local folder, nor whole in the cache "
        f"({constants.HF_HUB_CACHE}), and could not be fetched from the hub: {why.rstrip('.')}. Correct the name, or "
        f"where there is a network: `{fetch}` (HF_HOME says where the cache is; or with --local-dir FOLDER, and name "
        "FOLDER in the run file)."
    )

"""Folders of arrays with a manifest written last, and long work in parts that several ranks write and a crash keeps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.errors import DataError, output_error
from data_prep.atomic import sync
from data_prep.shards import file_hash, read_manifest, shard_trouble, write_manifest
from distill_core.engine import Rank

MANIFEST = "manifest.json"


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Write the manifest of a folder whose other files are complete: ``facts``, sizes and hashes."""
    files = {}
    for path in sorted(p for p in folder.iterdir() if p.name != MANIFEST):
        sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "xxh3": file_hash(path)}
    write_manifest(folder, {**facts, "files": files})


def unseal(folder: Path, thorough: bool = False) -> dict[str, Any]:
    """The facts of a sealed folder, its files' sizes checked (``thorough``: their hashes too).

    Raises:
        DataError: it is not whole.
    """
    troubles = shard_trouble(folder, thorough) if (folder / MANIFEST).is_file() else [f"{folder} has no {MANIFEST}."]
    if troubles:
        raise DataError(
            f"The references in {folder} are damaged: {troubles[0]} In a run, delete that folder and repeat the "
            "command: it is made anew. An export is to be made again with `distill export`."
        )
    return read_manifest(folder)


def is_made(folder: Path, key: str, rank: Rank) -> bool:
    """Whether ``folder`` is sealed, sound and made for ``key``; if not, it is cleared away. Collective."""
    if rank.is_first and folder.exists():
        try:
            sound = unseal(folder, thorough=True).get("key") == key
        except DataError:
            sound = False
        if not sound:
            shutil.rmtree(folder)
    rank.barrier()
    made = (folder / MANIFEST).is_file()
    rank.barrier()  # nobody begins to write before all have looked
    return made


def make_once(folder: Path, key: str, rank: Rank, make: Callable[[Path], dict[str, Any]]) -> None:
    """Let rank 0 ``make(aside)`` the files of ``folder`` unless they are there for ``key``. Collective.

    ``make`` returns the facts of the manifest.
    """
    if is_made(folder, key, rank):
        return
    if rank.is_first:
        put_together(folder, key, make)
    rank.barrier()


def put_together(folder: Path, key: str, make: Callable[[Path], dict[str, Any]]) -> None:
    """Files made aside, sealed and renamed into place."""
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        seal(aside, {**make(aside), "key": key})
        os.replace(aside, folder)
        sync(folder.parent)
    except OSError as error:
        raise output_error(folder, error) from error


class Parts:
    """``items`` things in parts of ``size``, each a file that is there once it is whole.

    Which items make a part depends on nothing else, so that a restart with other ranks goes on where it was.
    """

    def __init__(self, folder: Path, key: str, items: int, size: int) -> None:
        self.folder = folder / key
        self.items = items
        self.size = size

    @property
    def count(self) -> int:
        return -(-self.items // self.size)

    def stretch(self, number: int) -> tuple[int, int]:
        """(first, last + 1) of a part."""
        return number * self.size, min(self.items, (number + 1) * self.size)

    def read(self, number: int) -> bytes:
        return self._path(number).read_bytes()

    def write(self, rank: Rank, make: Callable[[int, int], bytes]) -> None:
        """Make the parts that are not there, each rank its own. Collective."""
        if rank.is_first:
            for other in self.folder.parent.glob("*"):
                if other != self.folder:
                    shutil.rmtree(other, ignore_errors=True)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for number in range(rank.rank, self.count, rank.world_size):
                path = self._path(number)
                if path.is_file():
                    continue
                aside = path.with_suffix(".tmp")
                aside.write_bytes(make(*self.stretch(number)))
                sync(aside)
                os.replace(aside, path)
        except OSError as error:
            raise output_error(self.folder, error) from error
        rank.barrier()

    def remove(self) -> None:
        shutil.rmtree(self.folder.parent, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.part"

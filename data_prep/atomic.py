"""Folders and files that appear under their final name only when they are whole, whoever is killed, and when."""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from configs.errors import OutputError, output_error

ASIDE = ".tmp-"
TRIES = 10


def private_folder(folder: Path) -> None:
    """Make a run's folder, for its owner alone; rights of one that is there already stay as they are.

    Raises:
        OutputError: it cannot be made, or is a symbolic link: who can put one there decides what is written over.
    """
    try:
        if folder.is_symlink():
            raise OutputError(
                f"{folder} is a symbolic link, to {os.readlink(folder)}. A run writes only into a folder of its own: "
                "name the folder itself with `output=...` and `name=...`."
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error


def aside_of(final: Path) -> Path:
    """A name beside ``final`` for what is not whole yet; it tells which process of which machine is at work on it."""
    return final.parent / f"{ASIDE}{machine()}-{os.getpid()}-{uuid.uuid4().hex}"


@functools.cache
def machine() -> str:
    """Whose process numbers are one: this machine since it was started, or this container of it.

    Neither host names nor machine ids would do: clones of one image share both.
    """
    facts = [os.uname().nodename]
    with suppress(OSError):  # Linux
        facts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return f"{facts[0]}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"


def put_into_place(aside: Path, final: Path, sound: Callable[[Path], bool]) -> None:
    """Rename a whole and synced folder to its final name, where other processes may be putting the same one.

    A sound folder that stands there already is kept, and ``aside`` removed: two workers on one block make the same
    bytes, and readers may have mapped the first ones. A folder that is not sound makes room.

    Args:
        sound: whether a folder is whole.

    Raises:
        OSError: the folder cannot be renamed.
    """
    for _ in range(TRIES):
        try:
            os.rename(aside, final)
            sync(final.parent)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if sound(final):
            shutil.rmtree(aside, ignore_errors=True)
            return
        damaged = aside_of(final)
        with suppress(FileNotFoundError):  # another process was quicker
            os.rename(final, damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))


def discard(folder: Path) -> None:
    """Remove a folder so that no part of it is ever left under its name."""
    aside = aside_of(folder)
    with suppress(FileNotFoundError):
        os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def sweep(parent: Path, everything: bool = False) -> None:
    """Remove what processes left unfinished in ``parent``: those of this machine that are gone.

    Args:
        everything: also of other machines, and what is still being made; whoever is at work on it fails.
    """
    for path in parent.glob(f"{ASIDE}*"):
        node, _, pid = path.name.removeprefix(ASIDE).rpartition("-")[0].rpartition("-")
        if everything or not node or (node == machine() and not alive(pid)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def alive(pid: str) -> bool:
    """Whether there is another process of that number here."""
    if not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return True


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write, sync and rename a small JSON file."""
    write_bytes(path, json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write, sync and rename a file."""
    aside = aside_of(path)
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync(path.parent)


def begin_sync(path: Path) -> None:
    """Have the system begin to write a file to the disk (Linux); whoever needs it there still calls :func:`sync`.

    Files that are begun before the first of them is synced share one entry of the file system's journal, for which each
    sync would wait by itself otherwise: a third of the waiting, and a tenth if there is work to be done in between.
    """
    if _write_out is not None:
        handle = os.open(path, os.O_RDONLY)
        try:
            _write_out(handle, 0, 0, 2)  # SYNC_FILE_RANGE_WRITE; where it fails, there is less to be gained
        finally:
            os.close(handle)


def _sync_file_range() -> Callable[..., int] | None:
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function


_write_out = _sync_file_range()


def sync(path: Path) -> None:
    """fsync a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """fsync everything in a folder that is about to be renamed."""
    paths = list(folder.rglob("*"))
    for path in paths:
        if path.is_file():
            begin_sync(path)
    for path in [*paths, folder]:
        sync(path)

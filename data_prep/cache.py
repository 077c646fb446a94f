"""Tables that take long to build, kept as memory-mapped files between processes."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
_HASHES = "hashes.json"


def cache_folder() -> Path:
    """``ZHENGLIU_CACHE``, else ``~/.cache/zhengliu``."""
    chosen = os.environ.get("ZHENGLIU_CACHE")
    return Path(chosen) if chosen else Path("~").expanduser() / ".cache" / "zhengliu"


def cached_arrays(name: str, key: str, build: Callable[[], Arrays]) -> dict[str, NDArray[Any]]:
    """The arrays of ``build()``, read-only, from the cache if it holds them.

    A missing, damaged, read-only or full cache folder only costs the time of ``build``. Entries are complete when
    they become visible (written aside, then renamed) and their contents are checked when they are opened.

    Args:
        name: what they are, for people who look into the folder.
        key: a hash of everything that they depend on, the code (:func:`code_hash`) included.
    """
    folder = cache_folder() / f"{name}-{key}"
    found = _read(folder)
    if found is not None:
        return found
    arrays = {part: np.ascontiguousarray(array) for part, array in build().items()}
    _write(folder, arrays)
    for array in arrays.values():
        array.setflags(write=False)
    return arrays


def code_hash(*files: str) -> str:
    """A hash of the modules that build and read the arrays: their next version does not find those of this one."""
    digest = xxhash.xxh3_64()
    for file in files:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def _hash(array: NDArray[Any]) -> str:
    return xxhash.xxh3_128_hexdigest(array.data)


def _read(folder: Path) -> dict[str, NDArray[Any]] | None:
    try:
        hashes = json.loads((folder / _HASHES).read_text(encoding="utf-8"))
        # A plain view of the mapping: kernels are compiled for arrays, not for np.memmap.
        arrays = {part: np.asarray(np.load(folder / f"{part}.npy", mmap_mode="r")) for part in hashes}
    except (OSError, ValueError, EOFError):
        return None
    return arrays if all(_hash(array) == hashes[part] for part, array in arrays.items()) else None


def _write(folder: Path, arrays: Arrays) -> None:
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        aside.mkdir(parents=True)
        for part, array in arrays.items():
            np.save(aside / f"{part}.npy", array)
        hashes = {part: _hash(array) for part, array in arrays.items()}
        (aside / _HASHES).write_text(json.dumps(hashes), encoding="utf-8")
        if folder.exists() and _read(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)  # damaged
        aside.rename(folder)
    except OSError:  # read-only, full, or another process was faster
        pass
    finally:
        shutil.rmtree(aside, ignore_errors=True)

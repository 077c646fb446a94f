"""From ``data.sources`` to documents: one reader for each concrete file, in a stable order."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from configs.errors import DataError
from configs.plugins import load_plugins
from data_prep.config import DataConfig, SourceConfig
from data_prep.readers.base import READERS, Reader
from data_prep.readers.hub import HubReader
from data_prep.readers.jsonl import JsonlReader
from data_prep.readers.mediawiki import MediaWikiReader
from data_prep.readers.parquet import ParquetReader
from data_prep.readers.text import TextReader
from data_prep.readers.warc import WarcReader

__all__ = [
    "READERS",
    "HubReader",
    "JsonlReader",
    "MediaWikiReader",
    "ParquetReader",
    "Reader",
    "TextReader",
    "WarcReader",
    "open_sources",
]

load_plugins("readers")

SAMPLE = Path(__file__).parent.parent / "sample_corpus"


def open_sources(config: DataConfig) -> list[Reader]:
    """One reader for each concrete file of ``config.sources``.

    The order is that of the sources, and inside a folder or glob that of the sorted paths, so that shard
    ordinals do not depend on the file system.

    Raises:
        DataError: a source is missing, empty of readable files, or of unknown kind.
    """
    readers: list[Reader] = []
    for source, label in zip(config.sources, labels(config.sources), strict=True):
        for path, kind in _resolve(source):
            concrete = source.model_copy(update={"path": path, "kind": kind, "label": label})
            readers.append(READERS[kind](concrete, len(readers)))
    return readers


def labels(sources: list[SourceConfig]) -> list[str]:
    """A name for each source; those that share one are numbered."""
    found: list[str] = []
    for source in sources:
        name, n = source.label or source.path, 1
        while (label := name if n == 1 else f"{name} ({n})") in found:
            n += 1
        found.append(label)
    return found


def _resolve(source: SourceConfig) -> list[tuple[str, str]]:
    """The concrete paths of ``source`` with their kinds."""
    if source.kind == "datasets":
        return [(source.path, "datasets")]
    if source.path.startswith("builtin:"):
        if source.path != "builtin:sample":
            raise DataError(f"There is no packaged corpus {source.path!r}; the only one is `builtin:sample`.")
        return [(str(path), "text") for path in sorted(SAMPLE.glob("*.txt"))]
    path = os.path.expanduser(source.path)
    if os.path.isdir(path):
        return _in_folder(path, source)
    if os.path.exists(path):
        return [(path, _kind_of(path, source))]
    if not glob.has_magic(path):
        raise DataError(
            f"There is no file or folder {source.path}: correct `path` under `data.sources` "
            "(relative paths start at the folder the command runs in)."
        )
    found = [name for name in glob.glob(path, recursive=True) if os.path.isfile(name)]
    if not found:
        raise DataError(f"No file matches {source.path}: correct `path` under `data.sources`.")
    return [(name, _kind_of(name, source)) for name in sorted(found)]


def _in_folder(folder: str, source: SourceConfig) -> list[tuple[str, str]]:
    wanted = _endings() if source.kind == "auto" else dict.fromkeys(READERS[source.kind].endings, source.kind)
    found = [name for name in _walk(folder) if name.lower().endswith(tuple(wanted))]
    if not found:
        hint = ""
        if any((Path(folder) / name).is_file() for name in ("state.json", "dataset_dict.json")):
            hint = " It was written by `save_to_disk`: set `kind: datasets`."
        raise DataError(
            f"The folder {folder} holds no file that can be read ({', '.join(sorted(wanted))}).{hint} "
            "Correct `path` or `kind` under `data.sources`."
        )
    return [(name, _kind_of(name, source)) for name in sorted(found)]


def _walk(folder: str) -> list[str]:
    """All files under ``folder``; links are followed (once each), hidden files and folders are not."""
    files: list[str] = []
    seen = {os.path.realpath(folder)}
    for root, folders, names in os.walk(folder, followlinks=True):
        fresh = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(root, name))
            if not name.startswith(".") and real not in seen:
                seen.add(real)
                fresh.append(name)
        folders[:] = fresh
        files += [os.path.join(root, name) for name in names if not name.startswith(".")]
    return files


def _endings() -> dict[str, str]:
    return {ending: kind for kind in READERS for ending in READERS[kind].endings}


def _kind_of(path: str, source: SourceConfig) -> str:
    if source.kind != "auto":
        return source.kind
    endings = _endings()
    for ending, kind in endings.items():
        if path.lower().endswith(ending):
            return kind
    raise DataError(
        f"{path}: the ending does not say what the file holds (known: {', '.join(sorted(endings))}). "
        "Rename it, or set `kind` of this source, e.g. to text or jsonl."
    )

"""Compiled kernels are kept by numba between processes, and found again only while nothing they are made from changed.

numba looks for changes in the file of the kernel alone, and would go on running a kernel whose callee in another file,
or a constant from there, is not what it was. So the cache of our kernels is stamped with a hash over the kernel's file
and all files of the project that this one imports, directly or not. Where compiled code lies stays numba's choice
(``NUMBA_CACHE_DIR`` if the user has set it, else ``__pycache__`` beside the source, else the user's cache folder), and
so does the rest: a stale entry is written over, a folder that cannot be written is passed over, several processes
write aside and rename.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import xxhash
from numba.core.caching import CacheImpl, _SourceFileBackedLocatorMixin
from numba.np import linalg

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("configs", "data_prep", "distill_core")
"""Packages beside each other in ``ROOT`` which hold kernels, and what those are made from."""


def sources_of(file: Path) -> frozenset[Path]:
    """``file`` and the files of the project that it imports at its top, and those import, and so on."""
    found, waiting = set[Path](), [file]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += _imported(one)
    return frozenset(found)


@cache
def source_stamp(file: Path) -> str:
    """A hash of what the kernels in ``file`` are made from: names and contents of :func:`sources_of`."""
    digest = xxhash.xxh3_128()
    for source in sorted(sources_of(file)):
        digest.update(f"{source.relative_to(ROOT)}\0{_hash(source)}\0".encode())
    return digest.hexdigest()


@cache
def _hash(file: Path) -> str:
    return xxhash.xxh3_128_hexdigest(file.read_bytes())


@cache
def _imported(file: Path) -> tuple[Path, ...]:
    return tuple(path for name in _names(_head(file)) if (path := _file_of(name)) is not None)


def _head(file: Path) -> str:
    """The lines before the first function or class: kernels can use nothing that is imported further down."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith(("def ", "class ", "@", "async ")):
            break
        lines.append(line)
    return "\n".join(lines)


def _names(source: str) -> Iterator[str]:
    """Dotted names of what may be modules of the project."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file_of(name: str) -> Path | None:
    if name.split(".")[0] not in ROOMS:
        return None
    path = ROOT.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def _ours(name: str) -> bool:
    file = Path(name).resolve()
    return file.is_file() and file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in ROOMS


def _stamped(locator: type[Any]) -> type[Any]:
    """A kind of numba's locators that finds a place for our kernels only, and stamps them with all their sources."""

    class Stamped(locator):  # type: ignore[misc]  # numba has no types
        @classmethod
        def from_function(cls, py_func: Any, py_file: str) -> Any:
            return super().from_function(py_func, py_file) if _ours(py_file) else None

        def get_source_stamp(self) -> str:
            return source_stamp(Path(self._py_file).resolve())

    return Stamped


def install() -> None:
    """From now on kernels are cached so. Called by ``data_prep/__init__.py``, before any kernel can be defined."""
    known = CacheImpl._locator_classes  # a list, so that packages with locators of their own can add them
    known[:0] = [_stamped(locator) for locator in known if issubclass(locator, _SourceFileBackedLocatorMixin)]
    _leave_scipy_out()


def _leave_scipy_out() -> None:
    """Load the part of numba that asks for SciPy's linear algebra, and let it find none.

    It would import it with the first kernel of every process, which takes 0.1 s and 16 MiB, only to know how to compile
    ``np.correlate`` and ``np.convolve``. What needs it (``np.dot``) looks for it again when it is compiled.
    """

    def none_here() -> None:
        raise ImportError

    kept, linalg.ensure_blas = linalg.ensure_blas, none_here
    try:
        import numba.np.arraymath  # noqa: F401
    finally:
        linalg.ensure_blas = kept

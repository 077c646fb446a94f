"""Elementwise work in few kernels, each of which reads its tensors once: by torch.compile, on a GPU.

There one operation after another is a pass over memory each: fifteen to twenty over a chunk of logits in fp32, which
take longer than the products with the decoders. Compiled, two reads and one write are left (the softmax's norms first).
A CPU's strips (``objectives/strips.py``) stay in its cache between operations and are computed as they are written.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

COMPILED_ON = {"cuda"}
"""Types of devices. TORCH_COMPILE_DISABLE=1 in the environment turns it off."""
GRAPHS = 64
"""Of one function at most: one for each choice of losses, precisions and teachers. torch's eight are soon used up, and
from then on it would go on uncompiled without a word."""

_pretended: ContextVar[bool] = ContextVar("sizes of a GPU", default=False)
P = ParamSpec("P")
R = TypeVar("R")


def few_kernels(by_rows: Callable[P, Sequence[Tensor]]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function where its tensors lie on a GPU.

    If that fails (no Triton, no compiler that it needs, a GPU too old for it), a warning says so once, and from then on
    the function runs as it is written. It must not have changed anything when it fails: no input but what it fills.

    Args:
        by_rows: of the same arguments: the tensors whose first dimension changes from call to call; one at least.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        compiled = functools.cache(lambda: torch.compile(function, fullgraph=True))
        failed: list[Exception] = []

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            rows = by_rows(*args, **kwargs)
            if failed or not _compiles(rows[0]):
                return function(*args, **kwargs)
            for tensor in rows:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
            try:
                with torch._dynamo.config.patch(recompile_limit=GRAPHS):
                    return compiled()(*args, **kwargs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a compiler and its own compilers may raise
                failed.append(error)
                warnings.warn(_failure(function.__name__, error), RuntimeWarning, stacklevel=2)
                return function(*args, **kwargs)

        return call

    return decorate


def _compiles(t: Tensor) -> bool:
    return t.device.type in COMPILED_ON and not isinstance(t, FakeTensor)  # those are asked for memory alone


def _failure(name: str, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return (
        f"torch.compile failed on elementwise work ({name}), which now runs one operation at a time: the "
        f"same numbers, but slower. On a GPU it needs Triton and a C compiler (gcc). {type(error).__name__}: {lines[0]}"
    )


@contextlib.contextmanager
def sized_for_a_gpu() -> Iterator[None]:
    """Work in here is cut into the pieces of a GPU, wherever it lies: for tensors without memory (``distill plan``)."""
    token = _pretended.set(True)
    try:
        yield
    finally:
        _pretended.reset(token)


def long_pieces(device: torch.device) -> bool:
    """Whether work is cut for long kernels, and not for a CPU's caches."""
    return device.type != "cpu" or _pretended.get()


def one_pass(t: Tensor) -> bool:
    """Whether ``t`` is worked on by compiled kernels or by a GPU's, for which plain arithmetic is best."""
    return torch.compiler.is_compiling() or long_pieces(t.device)


def row_dots(a: Tensor, b: Tensor) -> Tensor:
    """The scalar product of each pair of rows: [rows, V] -> [rows, 1]."""
    # vecdot is a batched product with one column: nothing is written between, but on a GPU it is slow, and not fused.
    return (a * b).sum(-1, keepdim=True) if one_pass(a) else torch.linalg.vecdot(a, b)[:, None]


def less_one_hot(q: Tensor, labels: Tensor) -> Tensor:
    """``q`` [rows, V] (may be written into) less 1 at each row's label, int64 [rows, 1]."""
    if one_pass(q):
        return q - (torch.arange(q.shape[1], device=q.device) == labels).to(q.dtype)
    return q.scatter_add_(-1, labels, -torch.ones_like(labels, dtype=q.dtype))

"""What the hardware can do: the speed of a plain matrix product, against which a step is measured."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from configs.errors import output_error
from distill_core.engine import Rank

SECONDS = 0.1
SIDES = {"cpu": 1024, "cuda": 8192}
"""Of the square matrices, by device."""


def product_flops(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    """FLOP/s of the fastest of the products [rows, inner] x [inner, columns] that fit into ``seconds``.

    ``shape``: rows, inner, columns.
    The fastest, since other work on the machine only adds to the time.
    """
    rows, inner, columns = shape
    a = torch.randn(rows, inner, device=device).to(dtype)
    b = torch.randn(inner, columns, device=device).to(dtype)
    a @ b  # the first one is slower: libraries make themselves ready
    fastest, until = float("inf"), time.perf_counter() + seconds
    while True:
        _wait(device)
        began = time.perf_counter()
        a @ b
        _wait(device)
        ended = time.perf_counter()
        fastest = min(fastest, ended - began)
        if ended >= until:
            return 2.0 * rows * inner * columns / fastest


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_flops(folder: Path, given: float | None, dtype: torch.dtype, rank: Rank) -> float:
    """FLOP/s of all ranks together: ``given`` TFLOP/s for each, or what a square matrix product reaches. Collective.

    Measured by all ranks at once, and once for a run folder, a kind of device, a precision and a number of ranks and
    threads: ``peak.json``.

    Raises:
        OutputError: the run folder cannot be written.
    """
    if given is not None:
        return given * 1e12 * rank.world_size
    device = rank.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    key = f"{name}, {str(dtype).removeprefix('torch.')}, {rank.world_size} ranks"
    path = folder / "peak.json"
    known = read_peaks(path) if rank.is_first else {}
    found = torch.tensor([known.get(key, 0.0)], dtype=torch.float64, device=device)
    peak = float(rank.sum(found))  # the other ranks add 0
    if peak:
        return peak
    side = SIDES.get(device.type, 1024)
    mine = product_flops((side, side, side), dtype, device, SECONDS)
    peak = float(rank.sum(torch.tensor([mine], dtype=torch.float64, device=device)))
    if rank.is_first:
        try:
            path.write_text(json.dumps({**known, key: peak}, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise output_error(path, error) from error
    return peak


def read_peaks(path: Path) -> dict[str, float]:
    """What was measured before; {} without a file, or with one that says nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): float(value) for key, value in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}

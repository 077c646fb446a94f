"""Latency of the forward pass, models side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from distill_core.batch import Batch
from distill_core.evaluate.config import EvaluationConfig
from distill_core.features import MASKED_LOGITS
from distill_core.models.attention import layout
from distill_core.models.encoder import Encoder

WARM_UPS = 2
Rows = list[dict[str, Any]]


class Work:
    """Synthetic input of one shape: ``batch_size`` sequences of ``length`` tokens, one masked row in each."""

    def __init__(self, batch_size: int, length: int, vocab_size: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(batch_size * 65536 + length)
        n = batch_size * length
        ids = torch.randint(vocab_size, (n,), generator=generator)
        rows = torch.arange(batch_size) * length + length // 2
        # All lengths are equal: one run, one unmasked attention call, on every device.
        where = layout([length] * batch_size, "runs")
        self.batch = Batch(ids, torch.arange(length).repeat(batch_size), where, rows=rows).to(device)

    def seconds(self, model: Encoder) -> float:
        """Of one forward pass, until the device has finished it."""
        _wait(self.batch.ids.device)
        began = time.perf_counter()
        model(self.batch, MASKED_LOGITS)
        _wait(self.batch.ids.device)
        return time.perf_counter() - began


def measure(model: Encoder, batch_sizes: Sequence[int], lengths: Sequence[int], repeats: int) -> Rows:
    """Latency of one model at each (batch size, length).

    Encoder and masked-LM head at one row a sequence; fp32, eval mode, no gradients, on the current device (the
    model is moved there and stays there), after a warm-up.

    Returns:
        rows {"batch_size", "length", "milliseconds_median", "milliseconds_min", "tokens_per_second" (at the median),
        "device", "threads"}.
    """
    rows = _side_by_side({"": model}, batch_sizes, lengths, repeats)
    return [{k: v for k, v in row.items() if k not in ("model", "speedup")} for row in rows]


def compare(models: Mapping[str, Encoder], config: EvaluationConfig, max_length: int) -> Rows:
    """Latency of several models, repeat by repeat in turns, so that a busy machine disturbs all of them alike.

    Args:
        models: by name; the first (the teacher) is the one the others are compared with.
        config: batch sizes, lengths and repeats.
        max_length: lengths above it are cut to it, as they are to the positions that the models have.

    Returns:
        the rows of :func:`measure` with "model" and "speedup" (the first model's median over this one's: 2.0 is twice
        as fast), by batch size, length and model.
    """
    positions = [model.config.max_length for model in models.values()]
    lengths = sorted({min(length, max_length, *positions) for length in config.latency_lengths})
    return _side_by_side(models, sorted(set(config.latency_batch_sizes)), lengths, config.latency_repeats)


@torch.no_grad()
def _side_by_side(
    models: Mapping[str, Encoder], batch_sizes: Sequence[int], lengths: Sequence[int], repeats: int
) -> Rows:
    device = current_device()
    ready = {name: model.to(device, torch.float32).eval() for name, model in models.items()}
    rows: Rows = []
    for batch_size in batch_sizes:
        for length in lengths:
            rows += _one_shape(ready, batch_size, length, repeats, device)
    return rows


def _one_shape(models: Mapping[str, Encoder], batch_size: int, length: int, repeats: int, device: torch.device) -> Rows:
    work = {name: Work(batch_size, length, model.config.vocab_size, device) for name, model in models.items()}
    for _ in range(WARM_UPS):
        for name, model in models.items():
            work[name].seconds(model)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats):
        for name, model in models.items():
            seconds[name].append(work[name].seconds(model))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first = next(iter(medians.values()))
    return [
        {
            "model": name,
            "batch_size": batch_size,
            "length": length,
            "milliseconds_median": round(1000 * medians[name], 4),
            "milliseconds_min": round(1000 * min(times), 4),
            "tokens_per_second": round(batch_size * length / medians[name], 1),
            "speedup": round(first / medians[name], 3),
            "device": device_name(device),
            "threads": torch.get_num_threads(),
        }
        for name, times in seconds.items()
    ]


def current_device() -> torch.device:
    """The GPU that this process has chosen, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""The useful work of a step on paper, and the matrix peak of the device as measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from benchmarks.step.settings import Setting, Shape
from distill_core.batch import Batch

CPU_PRODUCTS = ((1024, 768, 3072), (2048, 768, 768), (4096, 768, 3072))
"""Rows, inner and outer width of bf16 products, as in a teacher of BERT's base size."""
GPU_PRODUCTS = ((8192, 8192, 8192),)


def useful_flops(setting: Setting, batches: Sequence[Batch], vocabulary: int) -> float:
    """Of one step: what the losses need of real tokens. Backward is twice forward; a multiply-add is two."""
    tokens = sum(batch.n_tokens for batch in batches)
    mean_length = sum(batch.counts()["pairs"] for batch in batches) / tokens  # of the sequence that a token is in
    rows = {"distilbert": tokens, "tinybert": 0}.get(setting.recipe, sum(batch.n_masked for batch in batches))
    teacher, student = (
        forward_flops(shape, mean_length) + rows / tokens * head_flops(shape, vocabulary)
        for shape in (setting.teacher, setting.student)
    )
    maps = setting.student.layers + 1 if setting.recipe in ("minirbt", "tinybert") else 0
    if setting.recipe == "minirbt" and setting.student.width == setting.teacher.width:
        maps = 0
    projections = 2 * maps * setting.student.width * setting.teacher.width
    return tokens * (teacher + 3 * (student + projections))


def forward_flops(shape: Shape, mean_length: float) -> float:
    """Of one token in all layers."""
    matrices = 4 * shape.width**2 + 2 * shape.width * shape.intermediate
    return shape.layers * (2 * matrices + 4 * shape.width * mean_length)


def head_flops(shape: Shape, vocabulary: int) -> float:
    """Of one token in the masked-LM head."""
    return 2.0 * shape.width * (shape.width + vocabulary)


def matrix_peak(device: torch.device, clock: Callable[[], float] = time.process_time, repeats: int = 9) -> float:
    """FLOP/s of the fastest of some bf16 products, each the median of some repeats."""
    best = 0.0
    for rows, inner, outer in GPU_PRODUCTS if device.type == "cuda" else CPU_PRODUCTS:
        a = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
        weight = torch.randn(outer, inner, device=device, dtype=torch.bfloat16)
        seconds = []
        for repeat in range(repeats + 2):
            began = clock()
            F.linear(a, weight)
            if repeat >= 2:
                seconds.append(clock() - began)
        best = max(best, 2.0 * rows * inner * outer / statistics.median(seconds))
    return best

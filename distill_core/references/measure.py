"""What references cost: time a text with and without them, and bytes that a user of the model has to carry along."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill_core.features import FeatureRequest
from distill_core.references.files import unseal
from distill_core.references.inference import ReferencedModel
from distill_core.references.prepare import StageReferences
from distill_core.references.weights import FOLDER, WEIGHTS
from distill_core.tasks.model import TaskModel

TEXTS = 20
WARM_UPS = 2


def reference_facts(made: StageReferences | None, model_folder: Path) -> dict[str, Any] | None:
    """For DONE.json: sizes, the share of texts that have a reference, and latency; None for a plain student.

    ``milliseconds``: medians a text, one at a time, on the CPU in fp32: ``plain``: the student without references;
    ``retrieval``: finding the reference and loading its vectors; ``with_references``: the student with them (retrieval
    not counted).
    """
    if made is None:
        return None
    index_bytes = sum(int(file["bytes"]) for file in unseal(made.folder / "index")["files"].values())
    weights = (model_folder / FOLDER / WEIGHTS).stat().st_size
    return {
        "variant": made.settings.variant,
        "gate": made.settings.gate,
        "texts": len(made.index),
        "matched": made.matched,
        "store_bytes": made.store.bytes,
        "index_bytes": index_bytes,
        "bytes": made.store.bytes + index_bytes + weights,
        "milliseconds": latency(ReferencedModel.load(model_folder, made.folder), made),
    }


@torch.no_grad()
def latency(model: ReferencedModel, made: StageReferences) -> dict[str, float]:
    """Medians over some held-out texts; see :func:`reference_facts`."""
    source = made.texts["held_out"]
    request = FeatureRequest(task=True) if isinstance(model.model, TaskModel) else _LAST
    times: dict[str, list[float]] = {"plain": [], "retrieval": [], "with_references": []}
    for number in [0] * WARM_UPS + list(range(min(TEXTS, len(source)))):
        texts = source.texts(np.array([number]))
        plain, before = _timed(lambda texts=texts: model.batch(texts, references=False))  # type: ignore[misc]
        batch, seconds = _timed(lambda texts=texts: model.batch(texts))  # type: ignore[misc]
        times["retrieval"].append(seconds - before)
        times["plain"].append(_timed(lambda batch=plain: model.model(batch, request))[1])  # type: ignore[misc]
        times["with_references"].append(_timed(lambda batch=batch: model.model(batch, request))[1])  # type: ignore[misc]
    return {name: round(1000 * statistics.median(found[WARM_UPS:]), 4) for name, found in times.items()}


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


_LAST = FeatureRequest(pooled=False, logits=frozenset({"all"}))

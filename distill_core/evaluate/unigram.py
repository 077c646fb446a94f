"""What one does on masked tokens without reading: the token frequencies of the training split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def log_probabilities(counts: NDArray[Any], special_ids: Mapping[str, int]) -> Floats:
    """float64 [V]: log((count + 1) / (sum of counts + V)).

    Special tokens count as 0: [UNK] stands in texts, but is never masked.
    """
    kept = np.array(counts, np.float64)
    kept[list(special_ids.values())] = 0
    return np.asarray(np.log(kept + 1) - np.log(kept.sum() + len(kept)))


def sums(log_p: Floats, labels: NDArray[np.int64]) -> tuple[float, int]:
    """(sum of -log p over ``labels``, how many of them are the likeliest token of ``log_p``)."""
    return float(-log_p[labels].sum()), int((labels == log_p.argmax()).sum())

"""Keyed draws: every random number of preparation is a hash of what it is for, never the state of a generator.

The values are part of the format: prepared data of older versions must stay valid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True, nogil=True, inline="always")
def mix(x: Any) -> Any:
    """The finaliser of splitmix64 (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True, inline="always")
def hashed(base: Any, purpose: Any, place: Any) -> Any:
    """uint64 of (``base``: uint64, ``purpose``: uint64, ``place``: any integer)."""
    return mix(mix(base + purpose * GOLDEN) + np.uint64(place) * GOLDEN + GOLDEN)


@njit(cache=True, nogil=True, inline="always")
def unit(bits: Any) -> Any:
    """A uint64 as a number in [0, 1)."""
    return float(bits >> np.uint64(11)) * (1.0 / 9007199254740992.0)

"""The draws of data_prep/hashing.py on Python's own integers, for slow references."""

from __future__ import annotations

MASK64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK64
    return x ^ (x >> 31)


def hashed(base: int, purpose: int, place: int) -> int:
    return mix((mix((base + purpose * GOLDEN) & MASK64) + place * GOLDEN + GOLDEN) & MASK64)


def share(bits: int) -> float:
    return (bits >> 11) / 2**53

"""Large numbers for people."""

from __future__ import annotations


def amount(number: float) -> str:
    """1234567 -> ``1.23 M``."""
    for unit, scale in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:.3g}"


def size(number: float) -> str:
    return f"{amount(number)}B"

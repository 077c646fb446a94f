"""What is measured, and what it must reach: the CPU table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.step.settings import BASE, H256, H288, RBT6, Setting

PACKED_128 = Setting("packed-128", BASE, H256, "minirbt", "packed-128", 8)
LINES_128 = Setting("lines-128", BASE, H256, "minirbt", "lines-128", 16)
PACKED_512 = Setting("packed-512", BASE, H256, "minirbt", "packed-512", 4)
RBT6_512 = Setting("rbt6-512", RBT6, H256, "minirbt", "packed-512", 4)
TINY_128 = Setting("tinybert-lines-128", BASE, H288, "tinybert", "lines-128", 8)
TINY_512 = Setting("tinybert-packed-512", BASE, H288, "tinybert", "packed-512", 4)
DISTIL = {
    f"{prefix}-{base.name}": replace(base, name=f"{prefix}-{base.name}", recipe=recipe)
    for prefix, recipe in (("distilbert", "distilbert"), ("distilbert-masked", "distilbert-masked"))
    for base in (PACKED_128, PACKED_512, LINES_128)
}
MEMORY_512 = replace(PACKED_512, name="packed-512-memory", sequences=8)

SETTINGS: dict[str, Setting] = {
    s.name: s for s in (PACKED_128, LINES_128, PACKED_512, RBT6_512, *DISTIL.values(), TINY_128, TINY_512, MEMORY_512)
}

VARIANTS: dict[str, list[str]] = {
    "packed-128": ["ours bf16", "bare bf16", "hf bf16", "textbrewer bf16", "textbrewer fp32"],
    "lines-128": ["ours bf16", "textbrewer bf16", "textbrewer fp32"],
    "packed-512": ["ours bf16", "bare bf16", "textbrewer bf16"],
    "rbt6-512": ["ours bf16", "textbrewer bf16"],
    **{name: ["ours bf16", "distilbert bf16"] for name in DISTIL if "masked" not in name},
    "tinybert-lines-128": ["ours bf16", "tinybert bf16", "tinybert fp32"],
    **{name: ["ours bf16", "distilbert bf16"] for name in DISTIL if "masked" in name},
}
"""What takes turns; the first one is ours. When time runs out, the last settings are left out: variations on others."""

NUMERICS = ["packed-128", "lines-128", "distilbert-lines-128", "tinybert-lines-128"]
"""Whose gradients are checked, in both precisions."""

MEMORY = {
    "packed-512-memory": ["ours bf16", "textbrewer bf16"],
    "tinybert-packed-512": ["ours bf16", "tinybert bf16"],
}
"""Each in a process of its own."""


PEERS_SEQUENCES = 2
PEERS = {
    "packed-128": ["hf bf16", "textbrewer bf16", "textbrewer fp32"],
    "lines-128": ["textbrewer fp32"],
    "distilbert-lines-128": ["distilbert bf16"],
    "distilbert-masked-packed-128": ["distilbert bf16"],
    "tinybert-packed-512": ["tinybert bf16", "tinybert fp32"],
}
"""Whose losses are checked, without dropout, on so few sequences. TinyBERT's on packed text only: its means count
padding as well, so on other text it works on another loss."""


@dataclass(frozen=True)
class Bar:
    """``kind``: ``ratio``: seconds of ``against`` over ours; ``share``: ours of the matrix peak; ``memory``: ours over
    that of ``against``; ``overhead``: the real loop over ``against``, less one. All but the last two: more is better.
    """

    text: str
    kind: Literal["ratio", "share", "memory", "overhead"]
    setting: str
    against: str
    floor: float
    aim: float

    def reached(self, value: float, limit: float) -> bool:
        return value <= limit if self.kind in ("memory", "overhead") else value >= limit


BARS = [
    Bar("TextBrewer bf16, packed 128, base -> H256", "ratio", "packed-128", "textbrewer bf16", 1.8, 2.2),
    Bar("TextBrewer bf16, paragraphs padded to 128", "ratio", "lines-128", "textbrewer bf16", 3.4, 4.4),
    Bar("TextBrewer fp32, paragraphs padded to 128", "ratio", "lines-128", "textbrewer fp32", 5.5, 7.0),
    Bar("TextBrewer bf16, packed 512", "ratio", "packed-512", "textbrewer bf16", 1.8, 2.5),
    Bar("TextBrewer bf16, RBT6 -> H256, 512", "ratio", "rbt6-512", "textbrewer bf16", 2.3, 3.0),
    *(
        Bar(f"DistilBERT bf16, {shown}{what}", "ratio", f"{prefix}-{name}", "distilbert bf16", floor, aim)
        for name, shown, floor, aim in (
            ("packed-128", "packed 128", 2.3, 2.9),
            ("packed-512", "packed 512", 2.2, 3.0),
            ("lines-128", "padded 128", 4.0, 5.3),
        )
        for prefix, what in (("distilbert", ", KL at all tokens"), ("distilbert-masked", ", KL at masked tokens"))
    ),
    Bar("TinyBERT bf16, padded 128, H288", "ratio", "tinybert-lines-128", "tinybert bf16", 2.4, 3.2),
    Bar("TinyBERT fp32, padded 128, H288", "ratio", "tinybert-lines-128", "tinybert fp32", 4.0, 5.2),
    Bar("peak memory against TextBrewer, 512 x 8", "memory", "packed-512-memory", "textbrewer bf16", 0.5, 0.3),
    Bar("peak memory against TinyBERT, 512 x 4", "memory", "tinybert-packed-512", "tinybert bf16", 0.3, 0.15),
    Bar("share of the bf16 matrix peak, packed 128", "share", "packed-128", "ours bf16", 0.72, 0.85),
    Bar("share of the bf16 matrix peak, packed 512", "share", "packed-512", "ours bf16", 0.60, 0.78),
    Bar("the real loop over the bare step, packed 128", "overhead", "packed-128", "bare bf16", 0.05, 0.05),
    Bar("the real loop over the bare step, packed 512", "overhead", "packed-512", "bare bf16", 0.05, 0.05),
]

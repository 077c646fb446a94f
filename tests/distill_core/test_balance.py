"""How evenly the deal of a step's sequences loads the ranks."""

from __future__ import annotations

import numpy as np
import pytest

from distill_core.data import cut


@pytest.mark.parametrize("world_size", [2, 8, 64])
@pytest.mark.parametrize("longest", [48, 128, 512])
def test_the_busiest_rank_has_hardly_more_tokens_than_the_mean(world_size: int, longest: int) -> None:
    """Of ragged lengths (log-normal, as of paragraphs), by sequences a rank, in every micro-step."""
    draw = np.random.default_rng(world_size)
    for each, bound in ((8, 1.05), (32, 1.01), (128, 1.002)):
        lengths = np.clip(draw.lognormal(3.8, 0.9, each * world_size).astype(np.int64) + 2, 3, longest)
        bins = cut(lengths, world_size, 8192)
        loads = np.array([[lengths[places].sum() for places in micro] for micro in bins])
        assert (loads.max(1) / loads.mean(1)).max() < bound

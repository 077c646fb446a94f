"""MobileBERT's layer (Sun et al. 2020, arXiv 2004.02984, figure 1 and section 3): narrow inside, wide between layers.

With x [N, H] from the layer before, and n the intra size:

    r = norm(A x),  s = norm(B x)                                    [N, n]
    y = norm(attention(queries and keys from s, values from x) + r)
    y = norm(FFN(y) + y)                                             as many times as there are networks
    next x = norm(C y + x)                                           [N, H]
"""

from __future__ import annotations

from torch import Tensor, nn

from distill_core.features import Heads
from distill_core.models.attention import AttentionLayout
from distill_core.models.config import BottleneckConfig, EncoderConfig
from distill_core.models.layer import Attention, Intermediate, Wanted, at, nothing
from distill_core.models.parts import AddAndNorm, normalisation


class Entry(nn.Module):
    """norm(dense(x)): [N, H] -> [N, n]."""

    def __init__(self, config: EncoderConfig, size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, size)
        self.LayerNorm = normalisation(config, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x))  # type: ignore[no-any-return]


class Entries(nn.Module):
    """The ways into a layer; ``attention`` only with a bottleneck shared by queries and keys."""

    def __init__(self, config: EncoderConfig, narrow: BottleneckConfig) -> None:
        super().__init__()
        self.input = Entry(config, narrow.intra_size)
        if narrow.shared_query_key:
            self.attention = Entry(config, narrow.intra_size)
        self.shared_query_key = narrow.shared_query_key

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of queries and keys, inputs of values, and the residual."""
        residual = self.input(x)
        return (self.attention(x), x, residual) if self.shared_query_key else (residual, residual, residual)


class FeedForward(nn.Module):
    def __init__(self, config: EncoderConfig, size: int) -> None:
        super().__init__()
        self.intermediate = Intermediate(config)
        self.output = AddAndNorm(config.intermediate_size, normalisation(config, size), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.intermediate(x), x)  # type: ignore[no-any-return]


class Exit(AddAndNorm):
    """The last feed-forward network's output, and the way back to the wide stream."""

    def __init__(self, config: EncoderConfig, size: int) -> None:
        super().__init__(config.intermediate_size, normalisation(config, size, eps=1e-5), 0.0)
        wide = normalisation(config, config.hidden_size)
        self.bottleneck = AddAndNorm(size, wide, config.hidden_dropout_prob)


class BottleneckLayer(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        assert config.bottleneck is not None
        narrow, n = config.bottleneck, config.bottleneck.intra_size
        self.bottleneck = Entries(config, narrow)
        self.attention = Attention(config, config.hidden_size if narrow.shared_query_key else n, 0.0)
        self.ffn = nn.ModuleList(FeedForward(config, n) for _ in range(narrow.feed_forwards - 1))
        self.intermediate = Intermediate(config)
        self.output = Exit(config, n)

    def forward(self, x: Tensor, where: AttentionLayout, wanted: Wanted = "all") -> tuple[Tensor, Heads]:
        y, heads = self.attention(*self.bottleneck(x), where, wanted)
        if nothing(wanted):
            return x[:0], heads
        for network in self.ffn:
            y = network(y)
        y = self.output(self.intermediate(y), y)
        return self.output.bottleneck(y, at(x, wanted)), heads

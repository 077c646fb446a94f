"""Losses on attention: scores before the softmax, probabilities after it.

They are functions of each layer's query and key and of each sequence alone, computed in fp32 whatever the models'
precision. "Attention" means two different tensors in the literature; here the name of the loss says which.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from configs.errors import ConfigError
from distill_core.batch import Batch
from distill_core.features import FeatureRequest, Features, Heads
from distill_core.flops import Flops, gram_flops, matrix_flops
from distill_core.models.attention import AttentionLayout
from distill_core.models.config import EncoderConfig
from distill_core.objectives.base import OBJECTIVES, Needs, Term, TermConfig, taught
from distill_core.objectives.gram import gram_distance
from distill_core.objectives.layers import LayerMap, layer_pairs
from distill_core.objectives.tiles import Factors, attention_factors, joined_factors, summed, tiles


class HeadsConfig(TermConfig):
    """A loss between what the self-attention of pairs of layers computes."""

    layers: LayerMap
    """(teacher, student) pairs of layers, 1 = the first; or the name of a map."""

    def pairs(self, teacher_layers: int, student_layers: int) -> list[tuple[int, int]]:
        return layer_pairs(self.layers, teacher_layers, student_layers, self.kind, embeddings=False)


class HeadsMatch(Term):
    """What the losses on query, key and value have in common: the pairs and the requests."""

    def __init__(self, config: HeadsConfig, student: EncoderConfig, teacher: EncoderConfig | None) -> None:
        super().__init__(config, student, teacher)
        teacher = taught(config.kind, teacher)
        self.pairs = config.pairs(teacher.num_hidden_layers, student.num_hidden_layers)
        self.widths = (student.attention_size, teacher.attention_size)

    def flops(self) -> Flops:
        return matrix_flops(*self.widths, matrices=len(self.pairs))

    def needs(self) -> Needs:
        return Needs(
            FeatureRequest(heads=frozenset(s for _, s in self.pairs)),
            FeatureRequest(heads=frozenset(t for t, _ in self.pairs)),
        )

    def names(self) -> list[str]:
        return [f"{self.kind}/{t}-{s}" for t, s in self.pairs]

    def matched(self, student: Features, teacher: Features) -> list[tuple[str, Heads, Heads]]:
        """(kind/T-S, the student's heads, the teacher's) of each pair."""
        return [(f"{self.kind}/{t}-{s}", student.heads[s], teacher.heads[t]) for t, s in self.pairs]


def need_equal_heads(who: str, student: EncoderConfig, teacher: EncoderConfig, instead: str) -> None:
    """Raises ConfigError with what to use instead when the two models' head counts differ."""
    mine, theirs = student.num_attention_heads, teacher.num_attention_heads
    if mine != theirs:
        raise ConfigError(
            f"{who} compares head with head, but the student has {mine} attention heads and the teacher {theirs}. "
            f"Use {instead}minilmv2 (its relation heads need only divide both hidden sizes), or give the student "
            f"{theirs} heads."
        )


class AttentionConfig(HeadsConfig):
    heads: Literal["each", "mean", "sum"] = "each"
    """Head with head; or the mean (sum) over each model's heads, whose numbers may then differ."""


class AttentionMatch(HeadsMatch):
    """What the losses on scores and probabilities have in common: how heads are compared.

    Raises:
        ConfigError: ``heads: each`` with different numbers of heads.
    """

    def __init__(self, config: AttentionConfig, student: EncoderConfig, teacher: EncoderConfig | None) -> None:
        super().__init__(config, student, teacher)
        teacher = taught(config.kind, teacher)
        if config.heads == "each":
            need_equal_heads(f"{config.kind} with heads: each", student, teacher, "heads: mean, or ")
        self.heads = config.heads


class AttentionScoresConfig(AttentionConfig):
    kind: Literal["attention_scores"]
    form: Literal["auto", "gram", "direct"] = "auto"
    """How it is computed: from d x d products or from all scores; ``auto``: whichever is less work at a length."""


@OBJECTIVES.add("attention_scores")
class AttentionScores(AttentionMatch):
    """For each pair: mean over heads and query-key pairs of (q_S k_Sᵀ / sqrt(d_S) - q_T k_Tᵀ / sqrt(d_T))², in fp32.

    Source: TinyBERT (arXiv 1909.10351), eq. 7, on the scores before the softmax. Its code sets entries of -100 and
    less to 0 in each model's scores, so that the -10000 that it adds at padding is not compared. A stream has no
    padding, so nothing is set to 0: a real score below -100 is compared as it is, where that code would take it for
    padding.

    The ``gram`` form is exact (``gram.py``). It takes 20 L d² multiplications where the ``direct`` one takes 8 L² d
    and several passes over L x L matrices. ``auto`` takes it for sequences longer than both head sizes together:
    on a CPU it was measured to take 0.7 to 1.1 times as long from there on, 0.2 times at 512.
    """

    Config = AttentionScoresConfig
    count = "pairs"

    def __init__(self, config: AttentionScoresConfig, student: EncoderConfig, teacher: EncoderConfig | None) -> None:
        super().__init__(config, student, teacher)
        self.form = config.form
        self.compared = student.num_attention_heads if config.heads == "each" else 1

    def flops(self) -> Flops:
        """As for long sequences, which take the ``gram`` form, unless the run file wants the other."""
        if self.form == "direct":
            return super().flops()
        mine, theirs = (width // self.compared for width in self.widths)
        return gram_flops(mine, theirs, self.compared) * len(self.pairs)

    def forward(self, student: Features, teacher: Features, batch: Batch, progress: float) -> dict[str, Tensor]:
        sums = {}
        for name, *both in self.matched(student, teacher):
            mine, theirs = (self._factors(heads) for heads in both)
            sums[name] = score_distance(mine, theirs, batch.layout, self.form) / mine.heads
        return sums

    def _factors(self, heads: Heads) -> Factors:
        return attention_factors(heads) if self.heads == "each" else joined_factors(heads, mean=self.heads == "mean")


def score_distance(mine: Factors, theirs: Factors, where: AttentionLayout, form: str) -> Tensor:
    """The sum over heads and query-key pairs of all sequences of the squared difference of scores."""
    widths = (mine.left.shape[-1], theirs.left.shape[-1])

    def long(length: int) -> bool:
        return form == "gram" or (form == "auto" and length > sum(widths))

    def entries(length: int) -> int:
        return mine.heads * max(widths) * max(length, *widths)

    total = summed(mine, theirs, where, _squares, wanted=lambda length: not long(length))
    for tile in tiles(where, entries, wanted=long):
        streams = (mine.left, mine.right, theirs.left, theirs.right)
        q_s, k_s, q_t, k_t = (tile.spread(stream, where) for stream in streams)
        total = total + gram_distance(q_s * mine.scale, k_s, q_t * theirs.scale, k_t)
    return total


def _squares(mine: Tensor, theirs: Tensor) -> Tensor:
    return (mine - theirs).square().sum(-1)


class AttentionProbsConfig(AttentionConfig):
    kind: Literal["attention_probs"]


@OBJECTIVES.add("attention_probs")
class AttentionProbs(AttentionMatch):
    """For each pair: mean over heads and query-key pairs of (P_S - P_T)², P = softmax(q kᵀ / sqrt(d)), in fp32.

    Source: TextBrewer ``attention_mse`` on Hugging Face's attention probabilities, masked: the squares are divided by
    heads times the sum of squared lengths. (Without a mask it sets everything below 0.001 negative to 0, which no
    probability is.) ``heads: mean`` compares the mean probabilities of the heads; ``heads: sum`` is
    ``attention_mse_sum``, which adds the heads up and divides by the squared lengths alone: A² times ``mean`` where
    both have A heads, and another number where they differ, since the sums of the two then never agree.
    """

    Config = AttentionProbsConfig
    count = "pairs"

    def forward(self, student: Features, teacher: Features, batch: Batch, progress: float) -> dict[str, Tensor]:
        sums = {}
        for name, mine, theirs in self.matched(student, teacher):
            squares = summed(attention_factors(mine), attention_factors(theirs), batch.layout, self._compare)
            sums[name] = squares / mine.query.shape[1] if self.heads == "each" else squares
        return sums

    def _compare(self, mine: Tensor, theirs: Tensor) -> Tensor:
        probabilities = [scores.softmax(-1) for scores in (mine, theirs)]
        if self.heads == "mean":
            probabilities = [p.mean(1) for p in probabilities]
        elif self.heads == "sum":
            probabilities = [p.sum(1) for p in probabilities]
        return _squares(*probabilities)


class AttentionCeConfig(AttentionConfig):
    kind: Literal["attention_ce"]
    heads: Literal["each", "mean"] = "each"
    """Head with head; or the softmax of the mean scores of each model's heads, whose numbers may then differ."""


@OBJECTIVES.add("attention_ce")
class AttentionCe(AttentionMatch):
    """For each pair: mean over heads and queries of - sum_j P_T log P_S, P = softmax(q kᵀ / sqrt(d)), in fp32.

    It differs from KL(P_T || P_S) by the teacher's entropy. Source: TextBrewer ``attention_ce`` on scores (on the
    probabilities that Hugging Face returns it would take a second softmax); ``heads: mean`` is ``attention_ce_mean``,
    the softmax of the mean of the heads' scores.
    """

    Config = AttentionCeConfig
    count = "tokens"

    def forward(self, student: Features, teacher: Features, batch: Batch, progress: float) -> dict[str, Tensor]:
        sums = {}
        for name, *both in self.matched(student, teacher):
            mine, theirs = (
                attention_factors(heads) if self.heads == "each" else joined_factors(heads, mean=True) for heads in both
            )
            sums[name] = summed(mine, theirs, batch.layout, _cross_entropy) / mine.heads
        return sums


def _cross_entropy(mine: Tensor, theirs: Tensor) -> Tensor:
    return -(theirs.softmax(-1) * mine.log_softmax(-1)).sum(-1)

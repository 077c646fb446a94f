"""Losses on vocabulary logits: the teacher's (``kd_ce``, ``kd_kl``, ``kd_mse``) and the corpus's own (``mlm``)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from configs.errors import ConfigError
from distill_core.batch import Batch, Count
from distill_core.decoder import Rows, wide
from distill_core.features import MASKED_LOGITS, FeatureRequest, Features
from distill_core.models.config import EncoderConfig
from distill_core.objectives.base import OBJECTIVES, Needs, Schedule, Term, TermConfig, taught, value_at
from distill_core.objectives.fused import Data, Decoding, Part, chunks, fused, opened
from distill_core.objectives.kernels import less_one_hot, row_dots
from distill_core.objectives.soft_targets import (
    TemperatureRule,
    cwsm,
    flsw,
    made_fair,
    row_temperatures,
    shifted,
    softmax_and_norms,
)
from distill_core.objectives.strips import strips

CHUNK = 256
"""Rows that are multiplied with decoders at a time (on a CPU; see fused.py): 11 MB in bf16."""

Pairs = Callable[[], Iterator[tuple[Tensor, Tensor]]]
"""Passes over all rows: student's and teacher's logits of some of them, [rows, V] in fp32, not to be written into."""

COUNTED: dict[Rows, Count] = {"masked": "masked", "all": "tokens", "sampled": "sampled"}


class LogitsConfig(TermConfig):
    """A loss between the vocabulary logits of teacher and student."""

    temperature: Annotated[float, Field(gt=0)] | Schedule = 1.0
    """Divides both logits: a number, or a schedule over the stage."""
    positions: Rows = "masked"
    """Rows that are compared: the masked ones, all, or a sample of them."""
    temperature_rule: TemperatureRule = "constant"
    """``flsw``, ``cwsm``: temperature + beta (mean(w) - w) for each row, the mean over its sequence's rows, with
    w = (1 - cos(z_S, z_T))^gamma or w = 1 / (max softmax(z_S) + 0.001)."""
    rule_mean: Literal["sequence", "batch"] = "sequence"
    """``batch``: the mean over all rows of a rank's micro-batch, as in TextBrewer's code, so that a change of
    micro_batch_tokens or of the number of ranks changes the losses."""
    beta: float | None = Field(default=None, ge=0)
    """Of ``flsw`` and ``cwsm``."""
    gamma: float | None = Field(default=None, gt=0)
    """Of ``flsw``."""
    probability_shift: bool = False
    """Exchange the teacher's highest logit with the gold label's; rows that are not masked have none and stay."""
    fair_pairs: list[tuple[int | str, int | str]] = []
    """Pairs of vocabulary entries or their ids (he, she) to both of which the teacher gives the mean of their logits,
    after any shift."""

    @model_validator(mode="after")
    def _consistent(self) -> LogitsConfig:
        if isinstance(self.temperature, Schedule) and min(self.temperature.start, self.temperature.end) <= 0:
            raise ValueError("a temperature must stay above 0; give the schedule a positive start and end")
        for name, rules in (("beta", ("flsw", "cwsm")), ("gamma", ("flsw",))):
            if (getattr(self, name) is not None) != (self.temperature_rule in rules):
                raise ValueError(f"`{name}` belongs to temperature_rule: {' or '.join(rules)}, and is required there")
        if self.rule_mean == "batch" and self.temperature_rule == "constant":
            raise ValueError("`rule_mean: batch` belongs to temperature_rule: flsw or cwsm")
        tokens = [str(token) for pair in self.fair_pairs for token in pair]
        twice = sorted({token for token in tokens if tokens.count(token) > 1})
        if twice:
            raise ValueError(f"fair_pairs names {', '.join(twice)} more than once; a token has one partner")
        return self

    def resolved(self, token_id: Callable[[str], int]) -> LogitsConfig:
        pairs = [tuple(token_id(t) if isinstance(t, str) else t for t in pair) for pair in self.fair_pairs]
        return self.model_copy(update={"fair_pairs": pairs})


class VocabularyTerm(Term):
    """A loss on vocabulary logits: what :func:`fused.fused` has to know of it, beside its ``count``."""

    positions: Rows

    @abstractmethod
    def data(self, batch: Batch, progress: float, mine: Tensor, pairs: Pairs) -> Data:
        """What it knows about each row, [M, ...]; without gradient.

        Args:
            mine: the student's vectors [M, P], for device and precision.
            pairs: multiplies with both decoders: for what must be known of all rows before the loss of the first.
        """

    @abstractmethod
    def sum_and_slopes(self, mine: Tensor, theirs: Tensor | None, data: Data, factor: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`fused.LogitsLoss`."""

    def forward(self, student: Features, teacher: Features, batch: Batch, progress: float) -> dict[str, Tensor]:
        total, _ = weighted([Share(self, teacher, torch.ones((), device=batch.ids.device))], student, batch, progress)
        return {self.kind: total}


@dataclass(frozen=True)
class Share:
    """A term in a sum of terms; its own sum is multiplied by ``factor``, a scalar."""

    term: VocabularyTerm
    teacher: Features
    factor: Tensor


def weighted(
    shares: Sequence[Share], student: Features, batch: Batch, progress: float
) -> tuple[Tensor, dict[VocabularyTerm, Tensor]]:
    """The sum over terms of factor times the term's sum, with gradient, and the terms' sums, without.

    Terms on the same rows see the same logits, and those of the same teacher the same targets.
    """
    totals: list[Tensor] = []
    sums: dict[VocabularyTerm, Tensor] = {}
    for rows in dict.fromkeys(share.term.positions for share in shares):
        chosen = [share for share in shares if share.term.positions == rows]
        total, values = _at_the_same_rows(chosen, student, rows, batch, progress)
        totals.append(total)
        sums |= {share.term: value for share, value in zip(chosen, values.unbind(), strict=True)}
    return torch.stack(totals).sum(), sums


def _at_the_same_rows(
    shares: Sequence[Share], student: Features, rows: Rows, batch: Batch, progress: float
) -> tuple[Tensor, Tensor]:
    taught = [share.teacher for share in shares if share.term.needs().teacher]
    teachers = list({id(features): features for features in taught}.values())
    place = {id(features): number for number, features in enumerate(teachers)}

    def use(decodings: list[Decoding]) -> tuple[Tensor, Tensor]:
        mine, *theirs = decodings

        def part(share: Share) -> Part:
            number = place[id(share.teacher)] if share.term.needs().teacher else None

            def pairs() -> Iterator[tuple[Tensor, Tensor]]:
                assert number is not None
                for first, last in chunks(len(mine.vectors), CHUNK, mine.vectors.device):
                    both = mine.logits(first, last), theirs[number].logits(first, last)
                    for rows in strips(both[0].products):
                        yield both[0].at(rows).wide(), both[1].at(rows).wide()

            with torch.no_grad():
                data = share.term.data(batch, progress, mine.vectors, pairs)
            return Part(share.term, number, share.factor, data)

        return fused([part(share) for share in shares], mine, theirs, CHUNK)

    both: tuple[Tensor, Tensor] = opened([features.undecoded(rows) for features in (student, *teachers)], use)
    return both


class LogitsMatch(VocabularyTerm):
    """What the losses between logits have in common: rows, temperatures, and the teacher's targets.

    The teacher is corrected on copies, in this order: probability shift, fair pairs, temperature (whose rules see the
    logits as corrected before, in a pass over all rows of its own).

    Raises:
        ConfigError: vocabularies of different size, or a fair pair outside of them.
    """

    fair_pairs: Tensor | None

    def __init__(self, config: LogitsConfig, student: EncoderConfig, teacher: EncoderConfig | None) -> None:
        super().__init__(config, student, teacher)
        teacher = taught(config.kind, teacher)
        need_equal_vocabularies(config.kind, student, teacher)
        # Entries that are still text (a plan, before the vocabulary is there) count as pair by pair the same token.
        numbers = [[token if isinstance(token, int) else 0 for token in pair] for pair in config.fair_pairs]
        outside = [token for pair in numbers for token in pair if not 0 <= token < teacher.vocab_size]
        if outside:
            raise ConfigError(
                f"{config.kind} has fair_pairs with the token id {outside[0]}, but the vocabulary has ids 0 to "
                f"{teacher.vocab_size - 1}."
            )
        self.config = config
        self.positions = config.positions
        self.count = COUNTED[config.positions]
        pairs = torch.tensor(numbers, dtype=torch.int64) if numbers else None
        self.register_buffer("fair_pairs", pairs, persistent=False)

    def needs(self) -> Needs:
        request = FeatureRequest(logits=frozenset({self.positions}))
        return Needs(request, request)

    def data(self, batch: Batch, progress: float, mine: Tensor, pairs: Pairs) -> Data:
        gold = self._gold(batch) if self.config.probability_shift else None
        base = value_at(self.config.temperature, progress)
        if self.config.temperature_rule == "constant":
            return gold, torch.full((len(mine), 1), base, dtype=wide(mine[:0]).dtype, device=mine.device)
        return gold, self._ruled(batch, base, gold, pairs)

    def sum_and_slopes(self, mine: Tensor, theirs: Tensor | None, data: Data, factor: Tensor) -> tuple[Tensor, Tensor]:
        gold, temperatures = data
        assert theirs is not None and temperatures is not None
        losses, slopes = self.compare(mine / temperatures, self._targets(theirs, gold) / temperatures)
        scales = self.scales(temperatures)
        return (losses * scales).sum(), slopes.mul_(factor * scales / temperatures)

    @abstractmethod
    def compare(self, mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each row, [rows, 1], and its gradient with respect to ``mine``, [rows, V].

        Args:
            mine, theirs: logits that are divided by the temperature, [rows, V]; they may be written into.
        """

    def scales(self, temperatures: Tensor) -> Tensor:
        """What the losses are multiplied by, from the temperatures; both [rows, 1]."""
        return torch.ones_like(temperatures)

    def _targets(self, theirs: Tensor, gold: Tensor | None) -> Tensor:
        """The teacher's logits, corrected."""
        targets = theirs
        if gold is not None:
            targets = shifted(targets, gold)
        return targets if self.fair_pairs is None else made_fair(targets, self.fair_pairs)

    def _ruled(self, batch: Batch, base: float, gold: Tensor | None, pairs: Pairs) -> Tensor:
        """Temperatures by the rule, [rows, 1]."""
        config = self.config
        assert config.beta is not None
        weights, first = [], 0
        for mine, theirs in pairs():
            if config.temperature_rule == "flsw":
                assert config.gamma is not None
                labels = None if gold is None else gold[first : first + len(mine)]
                weights.append(flsw(mine, self._targets(theirs, labels), config.gamma))
            else:
                weights.append(cwsm(mine))
            first += len(mine)
        at, sequence = batch.at(config.positions), batch.layout.sequence
        where, groups = sequence if at is None else sequence[at], len(batch.layout.lengths)
        if config.rule_mean == "batch":
            where, groups = torch.zeros_like(where), 1
        if not weights:
            return torch.empty(0, 1, device=where.device)
        return row_temperatures(torch.cat(weights), where, groups, base, config.beta)[:, None]

    def _gold(self, batch: Batch) -> Tensor:
        """int64 [rows], the token that stood there; -1 where none was masked."""
        labels = torch.full_like(batch.ids, -1, dtype=torch.int64)
        if batch.rows is not None and batch.labels is not None:
            labels = labels.index_copy(0, batch.rows, batch.labels)
        rows = batch.at(self.config.positions)
        return labels if rows is None else labels[rows]


def need_equal_vocabularies(who: str, student: EncoderConfig, teacher: EncoderConfig) -> None:
    """Raises ConfigError with what can be done when the two vocabularies differ in size."""
    if student.vocab_size != teacher.vocab_size:
        raise ConfigError(
            f"{who} compares vocabulary logits entry by entry, but the student has {student.vocab_size} tokens and "
            f"the teacher {teacher.vocab_size}. Use the teacher's vocabulary (data.tokenizer.vocab). With another "
            "tokeniser a student can learn from the teacher in a stage with a `task` only, by losses on whole texts "
            "(task_kd, pkd)."
        )


class SoftConfig(LogitsConfig):
    temperature_squared: bool = False
    """Multiply by T², as Hinton et al. do, so that the gradient's size does not fall with T."""


class SoftMatch(LogitsMatch):
    """A loss between the distributions softmax(z / T)."""

    config: SoftConfig

    def scales(self, temperatures: Tensor) -> Tensor:
        return temperatures.square() if self.config.temperature_squared else super().scales(temperatures)


class KdCeConfig(SoftConfig):
    kind: Literal["kd_ce"]
    temperature: Annotated[float, Field(gt=0)] | Schedule = 8.0


@OBJECTIVES.add("kd_ce")
class KdCe(SoftMatch):
    """Soft cross-entropy: - mean over rows of sum_v softmax(z_T / T)_v log softmax(z_S / T)_v, in fp32.

    It differs from KL(p_T || p_S) by the teacher's entropy. Source: Hinton et al. 2015 (arXiv 1503.02531), eq. 1-2;
    TextBrewer ``kd_ce_loss`` as MiniRBT uses it (arXiv 2304.00717): masked rows, T = 8, no T².
    """

    Config = KdCeConfig

    def compare(self, mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        p, (q, norms) = F.softmax(theirs, dim=-1), softmax_and_norms(mine)
        return norms - row_dots(p, mine), q.sub_(p)


class KdKlConfig(SoftConfig):
    kind: Literal["kd_kl"]
    temperature: Annotated[float, Field(gt=0)] | Schedule = 2.0
    temperature_squared: bool = True


@OBJECTIVES.add("kd_kl")
class KdKl(SoftMatch):
    """T² times the mean over rows of KL(softmax(z_T / T) || softmax(z_S / T)), in fp32.

    Source: DistilBERT (arXiv 1910.01108) and RobBERTje (arXiv 2204.13511) with ``positions: all`` and T = 2; Bort
    (arXiv 2010.10499) at the masked rows, T = 2 (its code applies the student's softmax twice; here once). RobBERTje's
    fair distillation is ``fair_pairs``.
    """

    Config = KdKlConfig

    def compare(self, mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        (p, their_norms), (q, norms) = softmax_and_norms(theirs), softmax_and_norms(mine)
        losses = row_dots(p, theirs.sub_(mine))
        return losses + (norms - their_norms), q.sub_(p)


class KdMseConfig(LogitsConfig):
    kind: Literal["kd_mse"]


@OBJECTIVES.add("kd_mse")
class KdMse(LogitsMatch):
    """Mean over rows and vocabulary of ((z_S - z_T) / T)², in fp32. Source: TextBrewer ``kd_mse_loss``."""

    Config = KdMseConfig

    def compare(self, mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        difference = mine.sub_(theirs)
        losses = row_dots(difference, difference) / mine.shape[1]
        return losses, difference.mul_(2 / mine.shape[1])


class MlmConfig(TermConfig):
    kind: Literal["mlm"]


@OBJECTIVES.add("mlm")
class Mlm(VocabularyTerm):
    """Hard-label masked-LM cross-entropy: mean over masked rows of -log softmax(z_S)[label], in fp32.

    Source: Devlin et al. 2019 (arXiv 1810.04805), section 3.1.
    """

    Config = MlmConfig
    count = "masked"
    positions: Rows = "masked"

    def needs(self) -> Needs:
        return Needs(MASKED_LOGITS)

    def data(self, batch: Batch, progress: float, mine: Tensor, pairs: Pairs) -> Data:
        assert batch.labels is not None
        return (batch.labels[:, None],)

    def sum_and_slopes(self, mine: Tensor, theirs: Tensor | None, data: Data, factor: Tensor) -> tuple[Tensor, Tensor]:
        (labels,) = data
        assert labels is not None
        q, norms = softmax_and_norms(mine)
        return (norms - mine.gather(-1, labels)).sum(), less_one_hot(q, labels).mul_(factor)

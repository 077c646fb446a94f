"""Losses on vocabulary logits: the teacher's (``kd_ce``, ``kd_kl``, ``kd_mse``) and the corpus's own (``mlm``)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from configs.errors import ConfigError
from distill_core.batch import Batch, Count
from distill_core.features import MASKED_LOGITS, FeatureRequest, Features, Rows
from distill_core.models.config import EncoderConfig
from distill_core.objectives.base import OBJECTIVES, Needs, Schedule, Term, TermConfig, taught, value_at
from distill_core.objectives.soft_targets import TemperatureRule, cwsm, flsw, made_fair, row_temperatures, shifted
from distill_core.objectives.tiles import wide

CHUNK = 2048
"""Rows whose fp32 copies exist at a time; more than one chunk is computed again in the backward pass."""

Chunk = tuple[Tensor, Tensor, Tensor | None]
"""Student's and teacher's logits [rows, V] and, for the probability shift, the gold labels [rows]."""

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


class LogitsMatch(Term):
    """What the losses between logits have in common: rows, temperatures, the teacher's targets, and chunks.

    The teacher is corrected on copies, in this order: probability shift, fair pairs, temperature (whose rules see the
    logits as corrected before).

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
        self.count = COUNTED[config.positions]
        pairs = torch.tensor(numbers, dtype=torch.int64) if numbers else None
        self.register_buffer("fair_pairs", pairs, persistent=False)

    def needs(self) -> Needs:
        request = FeatureRequest(logits=frozenset({self.config.positions}))
        return Needs(request, request)

    def forward(self, student: Features, teacher: Features, batch: Batch, progress: float) -> dict[str, Tensor]:
        mine, theirs = (features.logits[self.config.positions] for features in (student, teacher))
        gold = torch.split(self._gold(batch), CHUNK) if self.config.probability_shift else repeat(None)
        both = list(zip(torch.split(mine, CHUNK), torch.split(theirs, CHUNK), gold, strict=False))
        temperatures = self._temperatures(both, batch, value_at(self.config.temperature, progress))
        chunks = [(*one, t) for one, t in zip(both, torch.split(temperatures, CHUNK), strict=True)]
        if len(chunks) == 1 or not torch.is_grad_enabled():
            sums = [self._summed(*chunk) for chunk in chunks]
        else:
            sums = [checkpoint(self._summed, *c, use_reentrant=False, preserve_rng_state=False) for c in chunks]
        return {self.kind: torch.stack(sums).sum()}

    def _summed(self, mine: Tensor, theirs: Tensor, gold: Tensor | None, temperatures: Tensor) -> Tensor:
        """The sum over some rows."""
        targets = self._targets(theirs, gold) / temperatures
        return self.scaled(self.compare(wide(mine) / temperatures, targets), temperatures).sum()

    @abstractmethod
    def compare(self, mine: Tensor, theirs: Tensor) -> Tensor:
        """The loss of each row, [rows, 1], from logits that are divided by the temperature, [rows, V]."""

    def scaled(self, losses: Tensor, temperatures: Tensor) -> Tensor:
        """The losses [rows, 1], with what is still to be done about the temperatures [rows, 1]."""
        return losses

    def _targets(self, theirs: Tensor, gold: Tensor | None) -> Tensor:
        """The teacher's logits, corrected, in fp32."""
        targets = wide(theirs)
        if gold is not None:
            targets = shifted(targets, gold)
        return targets if self.fair_pairs is None else made_fair(targets, self.fair_pairs)

    @torch.no_grad()
    def _temperatures(self, chunks: Sequence[Chunk], batch: Batch, base: float) -> Tensor:
        """[rows, 1]."""
        config = self.config
        if config.temperature_rule == "constant":
            first = chunks[0][0]
            rows = sum(len(mine) for mine, _, _ in chunks)
            return torch.full((rows, 1), base, dtype=wide(first[:0]).dtype, device=first.device)
        assert config.beta is not None
        if config.temperature_rule == "flsw":
            assert config.gamma is not None
            weights = [flsw(wide(mine), self._targets(theirs, gold), config.gamma) for mine, theirs, gold in chunks]
        else:
            weights = [cwsm(wide(mine)) for mine, _, _ in chunks]
        at, sequence = batch.at(config.positions), batch.layout.sequence
        where, groups = sequence if at is None else sequence[at], len(batch.layout.lengths)
        if config.rule_mean == "batch":
            where, groups = torch.zeros_like(where), 1
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
            f"the teacher {teacher.vocab_size}. Use the teacher's vocabulary (data.tokenizer.vocab). Losses on hidden "
            "states, attention and relations (hidden_mse, hidden_cosine, pkd, nst, fsp, emd, attention_scores, minilm, "
            "minilmv2) compare token with token and need no equal sizes, only that both models read the same token ids "
            "(as when one vocabulary is the other with rows added at its end). With another tokeniser a "
            "student can learn from the teacher in a stage with a `task` only, by losses on whole texts (task_kd, pkd)."
        )


class SoftConfig(LogitsConfig):
    temperature_squared: bool = False
    """Multiply by T², as Hinton et al. do, so that the gradient's size does not fall with T."""


class SoftMatch(LogitsMatch):
    """A loss between the distributions softmax(z / T)."""

    config: SoftConfig

    def scaled(self, losses: Tensor, temperatures: Tensor) -> Tensor:
        return losses * temperatures.square() if self.config.temperature_squared else losses


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

    def compare(self, mine: Tensor, theirs: Tensor) -> Tensor:
        return -(F.softmax(theirs, dim=-1) * F.log_softmax(mine, dim=-1)).sum(-1, keepdim=True)


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

    def compare(self, mine: Tensor, theirs: Tensor) -> Tensor:
        p, q = F.log_softmax(theirs, dim=-1), F.log_softmax(mine, dim=-1)
        return F.kl_div(q, p, reduction="none", log_target=True).sum(-1, keepdim=True)


class KdMseConfig(LogitsConfig):
    kind: Literal["kd_mse"]


@OBJECTIVES.add("kd_mse")
class KdMse(LogitsMatch):
    """Mean over rows and vocabulary of ((z_S - z_T) / T)², in fp32. Source: TextBrewer ``kd_mse_loss``."""

    Config = KdMseConfig

    def compare(self, mine: Tensor, theirs: Tensor) -> Tensor:
        return (mine - theirs).square().mean(-1, keepdim=True)


class MlmConfig(TermConfig):
    kind: Literal["mlm"]


@OBJECTIVES.add("mlm")
class Mlm(Term):
    """Hard-label masked-LM cross-entropy: mean over masked rows of -log softmax(z_S)[label], in fp32.

    Source: Devlin et al. 2019 (arXiv 1810.04805), section 3.1.
    """

    Config = MlmConfig
    count = "masked"

    def needs(self) -> Needs:
        return Needs(MASKED_LOGITS)

    def forward(self, student: Features, teacher: Features, batch: Batch, progress: float) -> dict[str, Tensor]:
        assert batch.labels is not None
        return {"mlm": F.cross_entropy(wide(student.logits["masked"]), batch.labels, reduction="sum")}

"""Losses on vocabulary logits: the teacher's (``kd_ce``) and the corpus's own (``mlm``)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from configs.errors import ConfigError
from distill_core.batch import Batch
from distill_core.features import MASKED_LOGITS, Features
from distill_core.models.config import EncoderConfig
from distill_core.objectives.base import OBJECTIVES, Needs, Term, TermConfig


class KdCeConfig(TermConfig):
    kind: Literal["kd_ce"]
    temperature: float = Field(default=8.0, gt=0)
    temperature_squared: bool = False
    """Multiply by T², as Hinton et al. do; MiniRBT's code does not."""


@OBJECTIVES.add("kd_ce")
class KdCe(Term):
    """Soft cross-entropy at the masked positions.

    - mean over masked rows of sum_v softmax(z_T / T)_v log softmax(z_S / T)_v, in fp32; it differs from
    KL(p_T || p_S) by the teacher's entropy. Source: Hinton et al. 2015 (arXiv 1503.02531), eq. 1-2;
    TextBrewer ``kd_ce_loss`` as MiniRBT uses it (arXiv 2304.00717): T = 8, no T².
    """

    Config = KdCeConfig
    count = "masked"

    def __init__(self, config: KdCeConfig, student: EncoderConfig, teacher: EncoderConfig | None) -> None:
        super().__init__(config, student, teacher)
        assert teacher is not None
        if student.vocab_size != teacher.vocab_size:
            raise ConfigError(
                f"kd_ce compares vocabulary logits, but the student has {student.vocab_size} tokens and the "
                f"teacher {teacher.vocab_size}; use the teacher's vocabulary (data.tokenizer.vocab)."
            )
        self.temperature = config.temperature
        self.scale = config.temperature**2 if config.temperature_squared else 1.0

    def needs(self) -> Needs:
        return Needs(MASKED_LOGITS, MASKED_LOGITS)

    def forward(self, student: Features, teacher: Features, batch: Batch, progress: float) -> dict[str, Tensor]:
        target = F.softmax(teacher.logits["masked"].float() / self.temperature, dim=-1)
        log_probs = F.log_softmax(student.logits["masked"].float() / self.temperature, dim=-1)
        return {"kd_ce": -self.scale * (target * log_probs).sum()}


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
        return {"mlm": F.cross_entropy(student.logits["masked"].float(), batch.labels, reduction="sum")}

"""The hard-label loss on pairs of texts: next sentence, or sentence order."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from configs.errors import ConfigError
from distill_core.batch import Batch
from distill_core.decoder import wide
from distill_core.features import FeatureRequest, Features
from distill_core.models.config import EncoderConfig
from distill_core.objectives.base import OBJECTIVES, Needs, Term, TermConfig


class SentenceOrderConfig(TermConfig):
    kind: Literal["sentence_order"]


@OBJECTIVES.add("sentence_order")
class SentenceOrder(Term):
    """Mean over sequences of -log softmax(W p + b)[label], p the pooler's output, in fp32.

    The label is the pair's: 1 if its second text is a random one (next-sentence prediction, Devlin et al. 2019, arXiv
    1810.04805, section 3.1) or if its texts are exchanged (sentence-order prediction, ALBERT, arXiv 1909.11942,
    section 3.1), as the data have it. W [2, H] ~ N(0, 0.02), b = 0: trained with the student and not exported.

    Raises:
        ConfigError: the student has no pooler; in ``forward``: the data are no pairs.
    """

    Config = SentenceOrderConfig
    count = "sequences"

    def __init__(self, config: SentenceOrderConfig, student: EncoderConfig, teacher: EncoderConfig | None) -> None:
        super().__init__(config, student, teacher)
        if not student.pooler:
            raise ConfigError(
                "sentence_order reads the student's pooler, but the student has none; set model.pooler: true."
            )
        self.classify = nn.Linear(student.hidden_size, 2)
        nn.init.normal_(self.classify.weight, std=0.02)
        nn.init.zeros_(self.classify.bias)

    def needs(self) -> Needs:
        return Needs(FeatureRequest(pooled=True))

    def forward(self, student: Features, teacher: Features, batch: Batch, progress: float) -> dict[str, Tensor]:
        if batch.order is None:
            raise ConfigError(
                "sentence_order needs pairs of texts with labels, which these data have not; set data.sequences.kind: "
                "pairs."
            )
        assert student.pooled is not None
        logits = wide(self.classify(student.pooled))
        return {"sentence_order": F.cross_entropy(logits, batch.order, reduction="sum")}

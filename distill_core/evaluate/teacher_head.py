"""Does the teacher's masked-LM head predict better than chance?

Some published encoders came without a trained head: their vocabulary logits are those of random weights, and a student
that is taught with them learns noise. Its loss curve shows nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from configs.errors import DataError
from distill_core.batch import Batch
from distill_core.engine import Rank
from distill_core.evaluate import masked_lm, unigram
from distill_core.models.encoder import Encoder


@dataclass(frozen=True)
class HeadQuality:
    """A masked-LM head on held-out text, and what token frequencies alone reach on the same masked tokens.

    ``loss``, ``chance_loss``: mean -log p(label) in nats; ``accuracy``, ``chance_accuracy``: share guessed right.
    """

    loss: float
    accuracy: float
    chance_loss: float
    chance_accuracy: float
    masked_tokens: int

    @property
    def ok(self) -> bool:
        """A loss below that of the unigram distribution; a random head has about log V or more, a broken one NaN."""
        return self.loss < self.chance_loss

    def message(self, name: str) -> str:
        """One paragraph for the user whose teacher ``name`` fails: what was found, why, and what to do."""
        return (
            f"The masked-LM head of the teacher {name} does not predict better than chance: on {self.masked_tokens:,} "
            f"masked tokens of held-out text its loss is {self.loss:.3f} nats (accuracy {self.accuracy:.1%}), token "
            f"frequencies alone reach {self.chance_loss:.3f} ({self.chance_accuracy:.1%}). Some published encoders "
            "keep only the Transformer's weights: hfl/chinese-roberta-wwm-ext-large has a head of random weights, and "
            "logits from such a head teach noise. Re-train the head with a `pretrain` stage before this one, or use "
            "objectives that need no logits (hidden states, relations), or, if you know better (a corpus far from "
            "the teacher's), set `teacher.head_check: warn`."
        )


def check_head(
    teacher: Encoder, batches: Iterable[Batch], unigram_counts: NDArray[Any], special_ids: Mapping[str, int], rank: Rank
) -> HeadQuality:
    """Measure ``teacher`` on masked held-out batches against the unigram baseline. Collective.

    Args:
        teacher: on the rank's device; its training mode is left as it is.
        batches: this rank's, on any device, with masked rows and labels; a few thousand masked tokens are enough.
        unigram_counts: int64 [V], how often each token stands in the training split (``Corpus.unigram``).
        special_ids: the corpus's; they do not count as text.
        rank: the sums are taken over all ranks, which so come to the same verdict.

    Raises:
        DataError: there is no masked token to judge by.
    """
    held = list(batches)
    log_p = unigram.log_probabilities(unigram_counts, special_ids)
    quality = masked_lm.evaluate(teacher, None, held, rank)
    chance = torch.zeros(3, dtype=torch.float64, device=rank.device)
    for batch in held:
        if batch.labels is not None:
            loss, right = unigram.sums(log_p, batch.labels.cpu().numpy())
            chance += torch.tensor([loss, right, len(batch.labels)], dtype=torch.float64, device=rank.device)
    loss, right, n = rank.sum(chance).tolist()
    if n == 0:
        raise DataError(
            "The teacher's masked-LM head cannot be checked: the held-out sequences have no masked token. Raise "
            "data.held_out, or set `teacher.head_check: off`."
        )
    found = quality.student
    return HeadQuality(found.loss, found.accuracy, loss / n, right / n, int(n))

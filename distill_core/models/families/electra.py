"""ELECTRA (arXiv 2003.10555): embeddings that may be narrower than the layers, and no pooler.

Generators have a masked-LM head as wide as the embeddings; discriminators have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distill_core.models.families.base import FAMILIES, Family

if TYPE_CHECKING:
    from distill_core.models.config import EncoderConfig


class Electra(Family):
    def read(self, theirs: Any) -> dict[str, Any]:
        narrow = theirs.embedding_size != theirs.hidden_size
        return super().read(theirs) | ({"embedding_size": theirs.embedding_size} if narrow else {})

    def settings(self, shape: EncoderConfig) -> dict[str, Any]:
        return super().settings(shape) | {"embedding_size": shape.word_size}


FAMILIES.add("electra")(
    Electra(
        masked_lm="ElectraForMaskedLM",
        base="ElectraModel",
        renames=(
            ("bert.", "electra."),
            ("cls.predictions.transform.", "generator_predictions."),
            ("cls.predictions.bias", "generator_lm_head.bias"),
        ),
        tied=("generator_lm_head.weight",),
        pooler=False,
        head_act="gelu",
        embedding_size=True,
        keys=("embedding_size",),
    )
)

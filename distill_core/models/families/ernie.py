"""ERNIE 1.0 to 3.0 (arXiv 1904.09223, 1907.12412, 2107.02137) as `transformers` has them: BERT plus task types.

Texts are always of task type 0 here, so that its embedding is added to each token type's on loading.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distill_core.models.families.base import FAMILIES, Family

if TYPE_CHECKING:
    from torch import Tensor

    from distill_core.models.config import EncoderConfig

TASK_TYPES = "ernie.embeddings.task_type_embeddings.weight"
TOKEN_TYPES = "ernie.embeddings.token_type_embeddings.weight"  # noqa: S105


class Ernie(Family):
    def fold(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if TASK_TYPES not in state:
            return state
        return state | {TOKEN_TYPES: state[TOKEN_TYPES] + state[TASK_TYPES][0]}

    def settings(self, shape: EncoderConfig) -> dict[str, Any]:
        return super().settings(shape) | {"use_task_id": False}


FAMILIES.add("ernie")(
    Ernie(
        masked_lm="ErnieForMaskedLM",
        base="ErnieModel",
        renames=(("bert.", "ernie."),),
        keys=("use_task_id", "task_type_vocab_size"),
    )
)

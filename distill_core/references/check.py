"""What can be known to fail before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable

from configs.errors import ConfigError
from distill_core.config import AnyStage, DistillStage, RunConfig
from distill_core.models.config import EncoderConfig
from distill_core.references.config import check_references


def check_stage(
    config: RunConfig, stage: AnyStage, student: EncoderConfig, shape_of: Callable[[str], EncoderConfig], who: str
) -> None:
    """Raise :class:`ConfigError` when a stage's references cannot work.

    Args:
        shape_of: the shape of a source of weights.
    """
    if not isinstance(stage, DistillStage) or stage.references is None:
        return
    check_references(stage.references, student, who)
    earlier = config.stage_index(stage.student.init.whole or "")
    before = None if earlier is None else config.stages[earlier]
    if not isinstance(before, DistillStage) or before.references is None:
        return
    now, then = stage.references, before.references
    if (now.variant, now.gate) != (then.variant, then.gate):
        raise ConfigError(
            f"{who}: the student begins as stage {before.name!r}, whose references have variant {then.variant} and "
            f"gate {then.gate}; here they have {now.variant} and {now.gate}. Give both stages the same."
        )
    widths = [shape_of(each.teacher[0].source).hidden_size for each in (before, stage)]
    if widths[0] != widths[1]:
        raise ConfigError(
            f"{who}: the student begins as stage {before.name!r}, which read vectors of a teacher of hidden_size "
            f"{widths[0]}; the teacher here has {widths[1]}. Take a teacher of the same width."
        )

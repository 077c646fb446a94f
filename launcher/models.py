"""Which models of a run there are to try."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import ConfigError, DataError

if TYPE_CHECKING:
    from distill_core.config import RunConfig

SENTENCES = ["今天天气很[MASK]，我们去公园散步。", "北京是中国的[MASK]都。", "这本书我已经看[MASK]两遍了。"]


def finished(config: RunConfig) -> dict[str, Path]:
    """Name -> Hugging Face folder: teachers from outside and the stages that are done, in the chain's order."""
    found: dict[str, Path] = {}
    for index, stage in enumerate(config.stages):
        teacher = getattr(stage, "teacher", None)
        if teacher is not None and config.stage_index(teacher.source) is None and Path(teacher.source).is_dir():
            found.setdefault(Path(teacher.source).name, Path(teacher.source))
        model = config.stage_folder(index) / "model"
        if (model / "config.json").is_file():
            found[stage.name] = model
    if not found:
        raise DataError(f"No stage of the run in {config.folder} has a finished model yet; `distill run` it first.")
    return found


def sentences(config: RunConfig, given: list[str]) -> list[str]:
    """The sentences of the command line, else of the run file, else three of our own."""
    for sentence in given:
        if sentence.count("[MASK]") != 1:
            raise ConfigError(f"The sentence {sentence!r} must hold exactly one [MASK].")
    return given or config.evaluation.sentences or SENTENCES

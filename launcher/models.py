"""Which models of a run there are to try."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import DataError

if TYPE_CHECKING:
    from distill_core.config import RunConfig

SENTENCES = ["今天天气很[MASK]，我们去公园散步。", "北京是中国的[MASK]都。", "这本书我已经看[MASK]两遍了。"]


def finished(config: RunConfig) -> dict[str, str]:
    """Name -> folder or hub name: teachers from outside and the stages that are done, in the chain's order."""
    from distill_core.outcome import chain_models

    stages = {stage.name for stage in config.stages}
    models = chain_models(config, config.folder)
    done = {name: m for name, m in models.items() if name not in stages or (Path(m) / "config.json").is_file()}
    if not done.keys() & stages:
        raise DataError(f"No stage of the run in {config.folder} has a finished model yet; `distill run` it first.")
    return done

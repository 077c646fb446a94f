"""The shapes of a run's models, known before there are any weights. No network."""

from __future__ import annotations

from configs import hub
from configs.errors import ConfigError
from distill_core.config import DistillStage, RunConfig, TrainedStage, made_from
from distill_core.models import pretrained
from distill_core.models.config import EncoderConfig, ModelConfig, presets


def preset_of(source: str) -> str | None:
    """The preset that a hub name ends in."""
    name = hub.name_of(source).rsplit("/", 1)[-1].removeprefix("chinese-")
    return name if name in presets() else None


def source_shape(config: RunConfig, stage: TrainedStage, source: str, vocab_size: int) -> EncoderConfig:
    """From `teacher.shape`, an earlier stage, a config.json on this machine, or a preset of the same name."""
    teachers = stage.teacher if isinstance(stage, DistillStage) else []
    said = next((t.shape for t in teachers if t.source == source and t.shape is not None), None)
    if said is not None:
        return said.resolve(None if said.preset else vocab_size)
    earlier = config.stage_index(source)
    if earlier is not None:
        return stage_shape(config, earlier, vocab_size)
    local = pretrained.cached(source)
    if local is not None and (local / "config.json").is_file():
        return pretrained.read_config(str(local), f"stage {stage.name!r}", weights=False)
    preset = preset_of(source)
    if preset is not None:
        return ModelConfig(preset=preset).resolve()
    raise ConfigError(
        f"stage {stage.name!r}: the shape of the model {source!r} is not at hand, and `plan` uses no network. Say it "
        f"in the run file, as teacher: {{source: {source}, shape: {{preset: NAME}}}} (one of {', '.join(presets())})."
    )


def stage_shape(config: RunConfig, index: int, vocab_size: int) -> EncoderConfig:
    """Of the model that a stage makes."""
    stage = config.stages[index]
    assert isinstance(stage, TrainedStage)
    given, source = made_from(stage)
    if given is not None:
        return given.resolve(vocab_size)
    assert source is not None
    return source_shape(config, stage, source, vocab_size)

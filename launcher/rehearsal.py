"""A stage of a run, taken for some steps aside: what ``distill profile`` measures.

It is the stage itself (models, engine, data, ranks), but in a run folder of its own where the system keeps temporary
files, with links to the data and to the models of finished stages. Models that are not there yet are stood in for by
random weights of their shapes: a step takes as long with them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from configs import loader
from configs.errors import ConfigError, DataError, output_error
from data_prep.corpus import Corpus
from distill_core.build import stage_labels
from distill_core.config import AugmentStage, DistillStage, PretrainStage, RunConfig, TrainedStage, made_from, sources
from distill_core.models import pretrained
from distill_core.models.encoder import Encoder
from distill_core.shapes import stage_shape
from distill_core.tasks import pretrained as task_models
from distill_core.tasks.model import TaskModel
from launcher import agent
from launcher.job import Job


def measured(config: RunConfig, stage: str, ranks: int, steps: int, trace: Path | None = None) -> dict[str, Any]:
    """What ``distill_core/profile.py`` finds in ``steps`` steps of a stage.

    Raises:
        ConfigError: the stage trains nothing, or takes rows that are not made yet.
        DataError: the data is not prepared.
        LaunchError: a rank failed.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler talks to stdout otherwise
    with rehearsed(config, stage) as aside:
        result = aside.folder / "profile.json"
        command = [sys.executable, "-P", "-m", "distill_core.profile", str(aside.folder), stage, str(result)]
        command += ["--steps", str(steps), *([] if trace is None else ["--trace", str(trace.resolve())])]
        job = Job(folder=aside.folder, ranks=ranks, command=command)
        agent.run(job)
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found


@contextlib.contextmanager
def rehearsed(config: RunConfig, name: str) -> Iterator[RunConfig]:
    """The run with a folder aside, in which the stage can be trained."""
    index = config.stage_index(name)
    assert index is not None
    stage = config.stages[index]
    if not isinstance(stage, TrainedStage):
        raise ConfigError(f"Stage {name!r} is of kind {stage.kind}: it trains nothing that could be measured.")
    corpus = prepared(config)
    try:
        with tempfile.TemporaryDirectory(prefix="zhengliu-") as folder:
            aside = moved(config, index, Path(folder))
            (aside.folder / "stages").mkdir(parents=True)
            for source in dict.fromkeys(sources(stage)):
                earlier = config.stage_index(source)
                if earlier is not None:
                    provide(config, earlier, aside.stage_folder(earlier), corpus)
            (aside.folder / "config.yaml").write_text(loader.to_yaml(aside), encoding="utf-8")
            yield aside
    except OSError as error:
        raise output_error(tempfile.gettempdir(), error) from error


def prepared(config: RunConfig) -> Corpus:
    if not (config.data_folder / "manifest.json").is_file():
        raise DataError(
            f"{config.data_folder} holds no prepared data, and real steps need some; run `distill prep` with the same "
            "run file first."
        )
    return Corpus.open(config.data_folder)


def moved(config: RunConfig, index: int, output: Path) -> RunConfig:
    """The config with its folder below ``output`` and the data where they are.

    The teachers answer live (to fill a cache is no step), and their heads are not examined.
    """
    stage = config.stages[index]
    if isinstance(stage, DistillStage):
        teachers = [teacher.model_copy(update={"head_check": "off"}) for teacher in stage.teacher]
        stage = stage.model_copy(update={"teacher": teachers, "teacher_cache": None})
    stages = [*config.stages[:index], stage, *config.stages[index + 1 :]]
    data = config.data.model_copy(update={"folder": str(config.data_folder.resolve())})
    return config.model_copy(update={"output": str(output), "data": data, "stages": stages})


def provide(config: RunConfig, index: int, place: Path, corpus: Corpus) -> None:
    """At ``place``: what an earlier stage has made, or a model of its shape with random weights."""
    stage, folder = config.stages[index], config.stage_folder(index)
    if (folder / "DONE.json").is_file():
        place.symlink_to(folder.resolve(), target_is_directory=True)
        return
    if isinstance(stage, AugmentStage):
        raise ConfigError(
            f"The rows of stage {stage.name!r} are not made yet; `distill run --only {stage.name}` first."
        )
    print(f"{stage.name} is not trained yet: random weights of its shape stand in for it", flush=True)
    stand_in(config, index, place / "model", corpus)


def stand_in(config: RunConfig, index: int, folder: Path, corpus: Corpus) -> None:
    """A Hugging Face folder with random weights, of the shape that stage ``index`` makes."""
    stage = config.stages[index]
    assert isinstance(stage, TrainedStage)
    shape = stage_shape(config, index, corpus.vocab_size)
    if made_from(stage)[0] is not None:
        shape = shape.model_copy(update={"pad_token_id": corpus.special_ids["pad"]})
    torch.manual_seed(0)
    encoder = Encoder(shape)
    if isinstance(stage, PretrainStage) or stage.task is None:
        pretrained.save(encoder.state_dict(), shape, corpus.tokenizer_folder, folder)
        return
    model = TaskModel(encoder, config.tasks[stage.task].kind, stage_labels(config, stage))
    task_models.save(model.state_dict(), shape, model.kind, model.labels, corpus.tokenizer_folder, folder)

"""The teacher-output cache: what is refused, and what ends it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from configs.errors import ConfigError, OutputError, TrainingError
from configs.loader import validate
from data_prep.corpus import Corpus
from distill_core.batch import Batch
from distill_core.cache import why_not
from distill_core.config import RunConfig
from distill_core.features import FeatureRequest
from distill_core.models.encoder import Encoder
from distill_core.objective import Objective
from distill_core.objectives import OBJECTIVES
from tests.distill_core.test_cache import BERT, BOTH, MASKS, cached, loader, model
from tests.distill_core.test_cache import corpus as _corpus
from tests.distill_core.test_preflight import refused, run_config
from tests.distill_core.test_preflight import teacher as _teacher_folder

teacher_folder, corpus = _teacher_folder, _corpus


def test_a_disk_that_is_too_small(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    # 66,034 tokens of a view with their special tokens, two hidden states of 16 numbers; two views, and the vectors
    with pytest.raises(OutputError, match=r"needs 0\.0[12]\d* GB more, but .* has only 0\.00 GB free.*teacher_cache"):
        cached(tmp_path, corpus, model(corpus))


def test_outputs_that_are_not_finite_name_their_sequences(corpus: Corpus, tmp_path: Path) -> None:
    teacher = model(corpus)
    assert isinstance(teacher.encoder, Encoder)
    batch: Batch = loader(corpus).source.batch(np.array([40]), np.array([0]), "runs")
    rare = int(min(batch.ids.tolist(), key=lambda i: int(corpus.unigram[i]) or 10**9))
    with torch.no_grad():
        teacher.encoder.bert.embeddings.word_embeddings.weight[rare] = float("nan")
    with pytest.raises(TrainingError, match=r"not finite for \d+ sequences of a batch \(ids \d+"):
        cached(tmp_path, corpus, teacher)


def term(kind: str, **values: Any) -> dict[str, Any]:
    return {"kind": kind, **values}


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ([term("kd_ce"), term("attention_scores", layers=[[2, 2]])], "attention_scores asks for the teacher's queries"),
        (
            [term("minilmv2", layers=[[2, 2]], relation_heads=2)],
            "minilmv2 asks for the teacher's queries, keys and values",
        ),
    ],
)
def test_losses_that_need_more_are_refused_before_the_run(
    tmp_path: Path, teacher_folder: Path, objective: list[dict[str, Any]], message: str
) -> None:
    vocab = str(teacher_folder / "vocab.txt")
    student = {"model": {**BERT, "max_position_embeddings": 48}}
    config = run_config(tmp_path, teacher_folder, vocab, objective=objective, teacher_cache={}, student=student)
    refused(config, ConfigError, message)
    refused(config, ConfigError, "take the live teacher")


def test_dynamic_masks_are_refused(tmp_path: Path, teacher_folder: Path) -> None:
    config = run_config(tmp_path, teacher_folder, str(teacher_folder / "vocab.txt"), teacher_cache={})
    masks = config.data.masks.model_copy(update={"mode": "dynamic"})
    dynamic = config.model_copy(update={"data": config.data.model_copy(update={"masks": masks})})
    refused(dynamic, ConfigError, "data.masks.mode: dynamic masks every epoch anew")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (FeatureRequest(logits=frozenset({"all"})), "logits at all rows, but only the masked"),
        (FeatureRequest(logits=frozenset({"sampled", "masked"})), "logits at sampled rows"),
        (FeatureRequest(pooled=True), "pooler's output"),
        (FeatureRequest(task=True), "a task's answers"),
        (BOTH, None),
    ],
)
def test_every_kind_of_output_that_is_not_kept(
    corpus: Corpus, request_: FeatureRequest, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = model(corpus).config
    objective = Objective([OBJECTIVES["kd_ce"].Config(kind="kd_ce")], shape, shape)
    needs = objective.terms[0].needs()  # type: ignore[operator]
    monkeypatch.setattr(objective.terms[0], "needs", lambda: replace(needs, teacher=request_))
    found = why_not(MASKS, [objective])
    assert found is None if message is None else (found is not None and "kd_ce asks for" in found and message in found)


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    stage: dict[str, Any] = {
        "name": "s",
        "kind": "distill",
        "teacher": "t",
        "student": {"model": {"preset": "rbt3"}},
        "objective": [{"kind": "kd_ce"}],
        "training": {"steps": 1, "global_batch_size": 1},
    }
    tree = {"name": "r", "data": {"sources": [{"path": "x"}]}, "stages": [stage]}
    assert validate(tree, RunConfig).stages[0].teacher_cache is None  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"precision: fp32 keeps no more than bf16"):
        validate({**tree, "stages": [{**stage, "teacher_cache": {"precision": "fp32"}}]}, RunConfig)
    with pytest.raises(ConfigError, match=r"a stage with a `task` has none"):
        validate({**tree, "stages": [{**stage, "teacher_cache": {}, "task": "q"}]}, RunConfig)

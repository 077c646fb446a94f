"""Several teachers: weighted means, labels once, names that do not clash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from configs.errors import ConfigError
from configs.loader import validate
from data_prep.corpus import Corpus
from distill_core.config import MLM, DistillStage, RunConfig, TeacherConfig
from distill_core.data import CorpusSource, Loader
from distill_core.load import objectives, teacher_names
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.objective import Distillation, Teacher
from distill_core.objectives.hidden import HiddenMseConfig
from distill_core.objectives.logits import KdCeConfig
from distill_core.stage import global_counts
from tests.distill_core.test_stage import RANK

TERMS = [
    KdCeConfig(kind="kd_ce", temperature=2.0),
    HiddenMseConfig(kind="hidden_mse", layers="last", weight=0.5),
    MLM.model_copy(update={"weight": 3.0}),
]
WEIGHTS = (1.0, 3.0)


def shape(vocab_size: int, width: int, layers: int) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        hidden_dropout_prob=0.0,
        max_position_embeddings=64,
    )


def stage(sources: list[str]) -> DistillStage:
    teachers = [TeacherConfig(source=source, weight=w) for source, w in zip(sources, WEIGHTS, strict=True)]
    training = {"steps": 1, "global_batch_size": 6}
    student = {"model": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}}
    tree = {"kind": "distill", "name": "s", "teacher": teachers, "student": student, "training": training}
    return DistillStage.model_validate({**tree, "objective": [{"kind": "mlm"}]}).model_copy(update={"objective": TERMS})


@pytest.fixture
def parts(tiny_corpus: Corpus) -> tuple[Any, ...]:
    """Module, teachers of different widths and depths, and a batch."""
    torch.manual_seed(3)
    size = tiny_corpus.vocab_size
    student = Encoder(shape(size, 8, 1))
    shapes = [shape(size, 12, 2), shape(size, 20, 3)]
    chosen = stage(["a/first", "b/second"])
    module = Distillation(student, objectives(chosen, student.config, list(zip(chosen.teacher, shapes, strict=True))))
    models = []
    for each in shapes:
        model = Encoder(each)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        models.append(model)
    teachers = [Teacher(m, o.needs().teacher) for m, o in zip(models, module.objectives, strict=True)]
    batch = Loader(CorpusSource(tiny_corpus.split("train")), 1, 6, 4000, 0, 1, "runs").step(0).batches[0]
    return module, teachers, batch


def test_the_mean_of_cross_entropies_is_that_with_the_mean_of_the_probabilities(parts: tuple[Any, ...]) -> None:
    module, teachers, batch = parts
    counts, _ = global_counts([batch], RANK)
    losses = module(batch, [teacher(batch) for teacher in teachers], counts, 0.0).parts
    ours = sum(weight * share for name, (share, weight) in losses.items() if "kd_ce" in name)
    share = [w / sum(WEIGHTS) for w in WEIGHTS]
    probabilities = sum(
        w * F.softmax(t(batch).logits["masked"] / 2.0, -1) for w, t in zip(share, teachers, strict=True)
    )
    logits = module.student(batch, module.request).logits["masked"]
    expected = -(probabilities * F.log_softmax(logits / 2.0, -1)).sum(-1).mean()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)


def test_names_weights_and_labels_once(parts: tuple[Any, ...]) -> None:
    module, teachers, batch = parts
    losses = module(batch, [teacher(batch) for teacher in teachers], global_counts([batch], RANK)[0], 0.0)
    expected = ["first/kd_ce", "first/hidden_mse/2-1", "mlm", "second/kd_ce", "second/hidden_mse/3-1"]
    assert module.names() == list(losses.parts) == expected
    weights = {name: weight for name, (_, weight) in losses.parts.items()}
    assert weights == pytest.approx(
        {
            "first/kd_ce": 0.25,
            "first/hidden_mse/2-1": 0.125,
            "mlm": 3.0,
            "second/kd_ce": 0.75,
            "second/hidden_mse/3-1": 0.375,
        }
    )


def test_names_differ_even_where_folders_are_called_alike() -> None:
    assert teacher_names(["runs/a/model", "hub/b"]) == ["model", "b"]
    assert teacher_names(["runs/a/model", "runs/b/model"]) == ["a/model", "b/model"]
    assert teacher_names(["/x/run/model", "/y/run/model", "z"]) == ["x/run/model", "y/run/model", "z"]
    made = objectives(
        stage(["runs/a/model", "runs/b/model"]),
        shape(50, 8, 1),
        list(zip(stage(["runs/a/model", "runs/b/model"]).teacher, [shape(50, 12, 2)] * 2, strict=True)),
    )
    names = [name for objective in made for name in objective.names()]
    assert len(set(names)) == len(names)
    assert {"a/model/kd_ce", "b/model/kd_ce"} <= set(names)


def test_the_same_teacher_twice_is_refused(tmp_path: Path) -> None:
    tree = {
        "name": "r",
        "data": {"sources": [{"path": "x.txt"}], "sequences": {"max_length": 32}},
        "stages": [
            {
                "name": "s",
                "kind": "distill",
                "teacher": ["here", {"source": "here", "weight": 2}],
                "student": {"model": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}},
                "objective": [{"kind": "kd_ce"}],
                "training": {"steps": 1, "global_batch_size": 4, "micro_batch_tokens": 64},
            }
        ],
    }
    with pytest.raises(ConfigError, match="'here' is named twice"):
        validate(tree, RunConfig)

"""Layers that learn one after another: the schedule, what counts, what moves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from configs.errors import ConfigError
from configs.loader import identity, validate
from data_prep.corpus import Corpus
from distill_core import preflight
from distill_core.config import MLM, RunConfig
from distill_core.data import CorpusSource, Loader
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.objective import Objective, Teacher
from distill_core.objectives.attention import AttentionProbsConfig
from distill_core.objectives.hidden import HiddenMseConfig
from distill_core.objectives.relations import MiniLmV2Config
from distill_core.progressive import (
    OBJECTIVE,
    Progressive,
    ProgressiveConfig,
    ProgressiveDistillation,
    matched_layers,
)
from distill_core.stage import global_counts
from tests.distill_core.test_config import RUN
from tests.distill_core.test_stage import RANK

SLOW = ProgressiveConfig(steps_per_layer=2, factor=0.25)
FREEZE = ProgressiveConfig(steps_per_layer=2, lower_layers="freeze")
LAYERS, STEPS = 3, 8


def test_the_layers_take_turns() -> None:
    schedule = Progressive(SLOW, LAYERS)
    assert [schedule.learning(step) for step in range(STEPS)] == [1, 1, 2, 2, 3, 3, None, None]
    assert [schedule.frozen(step) for step in range(STEPS)] == [0] * STEPS
    assert [Progressive(FREEZE, LAYERS).frozen(step) for step in range(STEPS)] == [0, 0, 1, 1, 2, 2, 0, 0]


@pytest.mark.parametrize(("config", "lower"), [(SLOW, 0.25), (FREEZE, 0.0)])
def test_rates_of_the_parts(config: ProgressiveConfig, lower: float) -> None:
    schedule = Progressive(config, LAYERS)
    table = [[schedule.factor(part, step) for part in (1, 2, 3, LAYERS + 1, OBJECTIVE)] for step in (1, 2, 5, 6)]
    assert table == [[1, 0, 0, 0, 1], [lower, 1, 0, 0, 1], [lower, lower, 1, 0, 1], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("student.bert.embeddings.word_embeddings.weight", 1),
        ("student.bert.embeddings_project.weight", 1),
        ("student.bert.encoder.layer.0.attention.self.query.weight", 1),
        ("student.encoder.bert.encoder.layer.2.output.dense.bias", 3),
        ("student.cls.predictions.bias", 4),
        ("student.classifier.weight", 4),
        ("objectives.0.terms.1.project.maps.0.0.weight", OBJECTIVE),
    ],
)
def test_parts_of_parameters(name: str, part: int) -> None:
    assert Progressive(SLOW, LAYERS).part(name) == part


def shape(vocab_size: int, layers: int = LAYERS) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=vocab_size,
        hidden_size=8,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=16,
        hidden_dropout_prob=0.0,
        max_position_embeddings=64,
    )


TERMS = [
    HiddenMseConfig(kind="hidden_mse", layers="uniform", projection="linear"),
    AttentionProbsConfig(kind="attention_probs", layers="uniform"),
    MLM,
]


def module(vocab_size: int, config: ProgressiveConfig, terms: Any = TERMS) -> tuple[ProgressiveDistillation, Teacher]:
    torch.manual_seed(0)
    objective = Objective(terms, shape(vocab_size), shape(vocab_size, 6), prefix="teacher/")
    made = ProgressiveDistillation(Encoder(shape(vocab_size)), [objective], config, STEPS)
    return made, Teacher(Encoder(shape(vocab_size, 6)), objective.needs().teacher)


def test_layers_are_read_from_the_names_of_losses() -> None:
    terms = [*TERMS, MiniLmV2Config(kind="minilmv2", layers=[(6, 3)], relation_heads=2)]
    found = matched_layers([Objective(terms, shape(50), shape(50, 6), prefix="2-3/")])
    assert found["2-3/hidden_mse/0-0"] == 0
    assert found["2-3/attention_probs/4-2"] == 2
    assert found["mlm"] is None
    assert {layer for name, layer in found.items() if "minilmv2" in name} == {3}


@pytest.mark.parametrize("config", [SLOW, FREEZE])
def test_what_counts_and_what_gets_gradients(tiny_corpus: Corpus, config: ProgressiveConfig) -> None:
    made, teacher = module(tiny_corpus.vocab_size, config)
    batch = Loader(CorpusSource(tiny_corpus.split("train")), 1, 4, 4000, 0, 1, "runs").step(0).batches[0]
    counts, answers = global_counts([batch], RANK)[0], [teacher(batch)]
    for step in range(STEPS):
        made.zero_grad()
        losses = made(batch, answers, counts, step / STEPS)
        losses.total.backward()
        layer = made.schedule.learning(step)
        counted = {made.matched[name] for name, (_, weight) in losses.parts.items() if weight}
        assert counted == ({0, 1, 2, 3, None} if layer is None else {0, 1} if layer == 1 else {layer})
        assert all(parameter.grad is not None for parameter in made.parameters())  # DeepSpeed sees the same each step
        moved = {
            made.schedule.part(name)
            for name, parameter in made.named_parameters()
            if parameter.grad is not None and parameter.grad.abs().sum() > 0 and name.startswith("student.")
        }
        below = set() if config is FREEZE or layer is None else set(range(1, layer))
        assert moved == ({1, 2, 3, 4} if layer is None else below | {layer})


@pytest.mark.parametrize(
    ("terms", "steps", "message"),
    [
        ([MLM], STEPS, "no teacher layer with the student's layer 1"),
        ([HiddenMseConfig(kind="hidden_mse", layers="last")], STEPS, "no teacher layer with the student's layer 1"),
        (TERMS, 5, "3 layers of 2 steps take 6 steps, but the stage has 5"),
    ],
)
def test_refused(terms: Any, steps: int, message: str) -> None:
    objective = Objective(terms, shape(50), shape(50, 6))
    with pytest.raises(ConfigError, match=message):
        ProgressiveDistillation(Encoder(shape(50)), [objective], SLOW, steps)


def test_it_is_part_of_the_stage() -> None:
    tree = copy.deepcopy(RUN)
    before = validate(tree, RunConfig)
    tree["stages"][1]["progressive"] = {"steps_per_layer": 1}
    assert identity(validate(tree, RunConfig).stages[1]) != identity(before.stages[1])


def test_the_preflight_refuses_it_before_models_are_loaded() -> None:
    tree = copy.deepcopy(RUN)
    tree["stages"][1] |= {
        "progressive": {"steps_per_layer": 3},
        "objective": [{"kind": "hidden_mse", "layers": "uniform"}],
    }
    config = validate(tree, RunConfig)
    with pytest.raises(ConfigError, match="stage 'student': progressive: 2 layers of 3 steps take 6 steps"):
        preflight.check_objectives(config, 1, preflight.stage_shape(config, 1, 50), 50, {}, "stage 'student'")

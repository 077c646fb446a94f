from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.models.layer_choice import RULES, by_scores, cheapest, chosen_layers


@pytest.mark.parametrize(
    ("rule", "student", "teacher", "expected"),
    [
        ("uniform", 6, 12, [1, 3, 5, 7, 9, 11]),
        ("uniform", 4, 12, [2, 5, 8, 11]),
        ("uniform", 5, 12, [1, 3, 6, 8, 11]),
        ("top", 6, 12, [6, 7, 8, 9, 10, 11]),
        ("bottom", 3, 12, [0, 1, 2]),
        ("symmetric", 6, 12, [0, 1, 2, 9, 10, 11]),
        ("symmetric", 3, 12, [0, 1, 11]),
        ("alternate", 6, 12, [0, 2, 4, 6, 8, 10]),
        ("alternate", 3, 5, [0, 2, 4]),
        ("distilbert", 6, 12, [0, 2, 4, 7, 9, 11]),
        ([3, 3, 0], 3, 4, [3, 3, 0]),
        ("scores", 6, 12, None),
    ],
)
def test_rules(rule: str | list[int], student: int, teacher: int, expected: list[int] | None) -> None:
    assert chosen_layers(rule, student, teacher, "x") == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in ("distilbert", "alternate", "scores")])
def test_as_many_layers_as_the_teacher_are_all_of_them(rule: str) -> None:
    assert chosen_layers(rule, 5, 5, "x") == [0, 1, 2, 3, 4]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "student", "teacher", "message"),
    [
        ("distilbert", 4, 12, r"distilbert goes from 12 layers to 6, but the teacher has 12 layers and the student 4"),
        ("alternate", 4, 12, r"alternate halves the depth"),
        ("top", 6, 4, r"the student has 6 layers and the teacher 4\. Name them"),
        ([0, 1], 3, 12, r"names 2 teacher layers, but the student has 3; .* \(uniform, top,"),
        ([0, 12], 2, 12, r"names teacher layer 12, but the teacher's layers are 0 to 11"),
    ],
)
def test_rules_that_do_not_fit(rule: str | list[int], student: int, teacher: int, message: str) -> None:
    with pytest.raises(ConfigError, match=f"stage 'x': student.init.layers.*{message}"):
        chosen_layers(rule, student, teacher, "stage 'x'")  # type: ignore[arg-type]


# ---------------------------------------------------------------- by weights


def cost(apart: list[list[float]], strength: list[float], chosen: tuple[int, ...]) -> float:
    """The sum of strength x distance to the nearer of the chosen neighbours, written from its definition."""
    total = 0.0
    for layer, weight in enumerate(strength):
        if layer not in chosen:
            below = [c for c in chosen if c < layer][-1:]
            above = [c for c in chosen if c > layer][:1]
            total += weight * min(apart[c][layer] for c in below + above)
    return total


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_choice_is_the_cheapest_of_all(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 7))
    count = data.draw(st.integers(1, n))
    quarters = st.integers(0, 8).map(lambda x: x / 4)  # exact sums, and ties
    apart = [[data.draw(quarters) for _ in range(n)] for _ in range(n)]
    strength = [data.draw(quarters) for _ in range(n)]
    found = cheapest(apart, strength, count)
    every = [(cost(apart, strength, chosen), list(chosen)) for chosen in combinations(range(n), count)]
    assert found == min(every)[1]


def teacher(layers: int = 6, seed: int = 0) -> Encoder:
    shape = EncoderConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=8,
    )
    torch.manual_seed(seed)
    return Encoder(shape)


def copy(model: Encoder, source: int, target: int) -> None:
    layers = model.bert.encoder.layer
    layers[target].load_state_dict(layers[source].state_dict())


def test_copies_of_a_layer_are_the_ones_dropped() -> None:
    model = teacher()
    copy(model, 1, 2)
    copy(model, 1, 3)
    assert by_scores(model, 4) == [0, 1, 4, 5]
    copy(model, 4, 5)
    assert by_scores(model, 3) == [0, 1, 4]


def test_near_copies_too() -> None:
    model = teacher()
    copy(model, 4, 3)
    with torch.no_grad():
        for parameter in model.bert.encoder.layer[3].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=1e-3)
    assert set(by_scores(model, 5)) in ({0, 1, 2, 3, 5}, {0, 1, 2, 4, 5})


def test_of_unlike_layers_the_weakest_goes() -> None:
    model = teacher()
    with torch.no_grad():
        for module in (model.bert.encoder.layer[3].attention.output, model.bert.encoder.layer[3].output):
            module.dense.weight.mul_(0.1)
    assert by_scores(model, 5) == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("count", range(1, 7))
def test_ascending_without_repetition_and_always_the_same(count: int) -> None:
    model = teacher(seed=3)
    found = by_scores(model, count)
    assert found == sorted(set(found)) and len(found) == count and found[-1] < 6
    assert by_scores(model, count) == found == chosen_layers("scores", count, 6, "x", model)


def test_layers_of_mobilebert_have_scores_too() -> None:
    narrow = {"intra_size": 8, "feed_forwards": 2}
    base = teacher(4).config.model_dump() | {"family": "mobilebert", "norm": "no_norm", "bottleneck": narrow}
    torch.manual_seed(0)
    model = Encoder(EncoderConfig(**base))
    copy(model, 1, 2)
    assert by_scores(model, 3) == [0, 1, 3]

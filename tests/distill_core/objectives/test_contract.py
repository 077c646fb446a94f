"""What every registered loss must keep, so that a new one is tested from its first day."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from distill_core.data import Batch
from distill_core.features import Features
from distill_core.models.attention import layout
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.objective import Distillation, Objective, Teacher
from distill_core.objectives import OBJECTIVES
from distill_core.objectives.base import TermConfig

V = 37
LENGTHS = [9, 7, 7, 4, 3, 2]
# The fields that a loss requires beyond `kind`; a loss without required fields needs no entry.
REQUIRED: dict[str, dict[str, Any]] = {"hidden_mse": {"layers": [(0, 0), (1, 1), (2, 2)]}}
KINDS = list(OBJECTIVES)


def example(kind: str) -> TermConfig:
    try:
        return OBJECTIVES[kind].Config(kind=kind, **REQUIRED.get(kind, {}))
    except ValidationError as error:
        pytest.fail(f"give REQUIRED an entry for {kind!r}, so that the contract can be tested: {error}")


def encoder(seed: int, hidden: int = 12, layers: int = 2) -> Encoder:
    torch.manual_seed(seed)
    config = EncoderConfig(
        vocab_size=V,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=20,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
    )
    model = Encoder(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def sequences() -> list[tuple[Tensor, Tensor, Tensor]]:
    """(ids, masked positions, labels) of each sequence; one of them has nothing masked."""
    draw = torch.Generator().manual_seed(5)
    out = []
    for length in LENGTHS:
        places = torch.randperm(length, generator=draw)[: length // 3].sort().values
        ids = torch.randint(V, (length,), generator=draw)
        out.append((ids, places, torch.randint(V, (len(places),), generator=draw)))
    return out


def batch(numbers: list[int]) -> Batch:
    every = sequences()
    lengths = [LENGTHS[i] for i in numbers]
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    return Batch(
        torch.cat([every[i][0] for i in numbers]),
        torch.cat([torch.arange(length) for length in lengths]),
        torch.cat([every[i][1] + start for i, start in zip(numbers, starts, strict=False)]),
        torch.cat([every[i][2] for i in numbers]),
        layout(lengths, "runs"),
    )


WHOLE = list(range(len(LENGTHS)))


def counts() -> Any:
    whole = batch(WHOLE)
    return {"tokens": torch.tensor(float(whole.n_tokens)), "masked": torch.tensor(float(whole.n_masked))}


def build(kind: str, student: Encoder, teacher: Encoder) -> tuple[Distillation, Teacher]:
    torch.manual_seed(9)
    objective = Objective([example(kind)], student.config, teacher.config)
    return Distillation(student, objective), Teacher(teacher, objective.needs().teacher)


def run(module: Distillation, teacher: Teacher, groups: list[list[int]]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one step whose sequences are dealt into ``groups``."""
    module.zero_grad()
    loss = 0.0
    for numbers in groups:
        part = batch(numbers)
        total = module(part, teacher(part), counts()).total
        total.backward()
        loss += total.item()
    return loss, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def entropy(teacher: Teacher, temperature: float) -> float:
    """Mean entropy of the teacher's softened guesses at the masked rows."""
    from distill_core.features import FeatureRequest

    logits = teacher(batch(WHOLE), FeatureRequest(logits=True)).logits
    assert logits is not None
    p = (logits.double() / temperature).softmax(-1)
    return float(-(p * p.log()).sum(-1).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_student_equal_to_teacher_is_the_minimum(kind: str) -> None:
    module, teacher = build(kind, encoder(0), encoder(0))
    if not teacher.request.hidden and not teacher.request.logits:
        return  # a loss on the corpus alone has its minimum elsewhere
    loss, gradients = run(module, teacher, [WHOLE])
    term = example(kind)
    temperature = getattr(term, "temperature", 1.0)
    scale = temperature**2 if getattr(term, "temperature_squared", False) else 1.0
    possible = (0.0, scale * entropy(teacher, temperature))
    assert min(abs(loss - value) for value in possible) < 1e-5
    for name, gradient in gradients.items():
        if name.startswith("student."):
            assert gradient.abs().max().item() < 1e-5, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [[[0, 1], [2, 3, 4, 5]], [[5], [4], [3], [2], [1], [0]], [[1, 4], [0, 5], [2, 3]]])
def test_grouping_into_batches_changes_nothing(kind: str, groups: list[list[int]]) -> None:
    module, teacher = build(kind, encoder(0, hidden=8), encoder(1))
    loss, gradients = run(module, teacher, [WHOLE])
    other_loss, other_gradients = run(module, teacher, groups)
    assert other_loss == pytest.approx(loss, abs=1e-5)
    assert gradients.keys() == other_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_student_and_projections_only(kind: str) -> None:
    module, teacher = build(kind, encoder(0, hidden=8), encoder(1))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    loss, gradients = run(module, teacher, [WHOLE])
    assert loss > 0
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    own = {name for name, _ in module.objective.named_parameters()}
    for name in own:
        assert gradients[f"objective.{name}"].abs().sum() > 0, name
    assert gradients["student.bert.embeddings.word_embeddings.weight"].abs().sum() > 0
    if module.request.logits:
        assert gradients["student.cls.predictions.transform.dense.weight"].abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_for_extreme_features_and_fp32_sums(kind: str, dtype: torch.dtype) -> None:
    objective = Objective([example(kind)], encoder(0).config, encoder(1).config)
    part, draw = batch(WHOLE), torch.Generator().manual_seed(0)
    request = objective.needs()

    def features(hidden: frozenset[int], width: int) -> Features:
        states = {i: (100 * torch.randn(part.n_tokens, width, generator=draw)).to(dtype) for i in hidden}
        logits = (1e4 * torch.randn(part.n_masked, V, generator=draw)).to(dtype).requires_grad_()
        return Features({i: h.requires_grad_() for i, h in states.items()}, logits)

    student, teacher = features(request.student.hidden, 12), features(request.teacher.hidden, 12)
    for term in objective.terms:
        sums = term(student, teacher, part)
        assert all(value.dtype == torch.float32 and value.isfinite() for value in sums.values())
        sum(sums.values()).backward()
    for tensor in [*student.hidden.values(), student.logits]:
        assert tensor is not None
        assert tensor.grad is None or tensor.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_masked_tokens_is_no_trouble(kind: str) -> None:
    module, teacher = build(kind, encoder(0, hidden=8), encoder(1))
    part = batch([5])  # two tokens, nothing masked
    assert part.n_masked == 0
    losses = module(part, teacher(part), counts())
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_declared_needs(kind: str) -> None:
    student, teacher_shape = encoder(0, hidden=8), encoder(1)
    term = OBJECTIVES[kind](example(kind), student.config, teacher_shape.config)
    assert all(name.split("/")[0] == kind for name in term.names())
    module, teacher = build(kind, student, teacher_shape)
    part = batch(WHOLE)
    # Just what was declared is computed, and it is enough.
    found = teacher(part)
    assert set(found.hidden) == set(term.needs().teacher.hidden)
    assert (found.logits is not None) == term.needs().teacher.logits
    assert list(module(part, found, counts()).shares) == term.names()


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_that_is_exported_has_no_parameter_of_the_loss(kind: str) -> None:
    module, _ = build(kind, encoder(0, hidden=8), encoder(1))
    student = {name.removeprefix("student.") for name, _ in module.named_parameters() if name.startswith("student.")}
    assert student == {name for name, _ in encoder(0, hidden=8).named_parameters()}


def test_a_teacher_stays_in_eval_mode() -> None:
    teacher = Teacher(encoder(0), Objective([example("kd_ce")], encoder(0).config, encoder(0).config).needs().teacher)
    assert not teacher.train().encoder.training
    found = teacher(batch(WHOLE)).logits
    assert found is not None and not found.requires_grad

"""The loss on the order of sentences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError
from distill_core.features import FeatureRequest, Features
from distill_core.models.encoder import Encoder
from distill_core.objective import Distillation, Objective
from distill_core.objectives.sentence_order import SentenceOrderConfig
from tests.distill_core.objectives import reference
from tests.distill_core.objectives.streams import FEW, build, draw, lengths_of, same_gradient, shape, stream


@FEW
@given(lengths=lengths_of, width=st.integers(1, 5), seed=st.integers(0, 999))
def test_it_is_the_cross_entropy_of_the_poolers_output(lengths: list[int], width: int, seed: int) -> None:
    term, batch = build("sentence_order", shape(width, pooler=True), None), stream(lengths)
    batch.order = torch.randint(2, (len(lengths),), generator=torch.Generator().manual_seed(seed))
    leaf = draw(seed, len(lengths), width).requires_grad_()
    found = term(Features(pooled=leaf), Features(), batch, 0.0)["sentence_order"] / batch.counts()[term.count]
    found.backward()
    copies = [p.detach().clone().requires_grad_() for p in term.parameters()]
    wanted_leaf = leaf.detach().clone().requires_grad_()
    rows = reference.project(wanted_leaf, (copies[0], copies[1], "linear"))
    losses = [-reference.log_softmax(row)[label] for row, label in zip(rows, batch.order.tolist(), strict=True)]
    wanted = reference.total(losses) / len(lengths)
    wanted.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6, abs=1e-12)
    for mine, right in zip([leaf, *term.parameters()], [wanted_leaf, *copies], strict=True):
        same_gradient(mine.grad, right.grad)


def test_its_classifier_begins_as_in_the_source_and_belongs_to_the_objective() -> None:
    torch.manual_seed(0)
    config = shape(256, 1, pooler=True)
    objective = Objective([SentenceOrderConfig(kind="sentence_order")], config, None)
    parameters = dict(objective.named_parameters())
    assert [tuple(p.shape) for p in parameters.values()] == [(2, 256), (2,)]
    weight, bias = parameters.values()
    assert weight.std().item() == pytest.approx(0.02, rel=0.1) and not bias.any()
    assert objective.needs().student == FeatureRequest(pooled=True) and not objective.needs().teacher


def test_a_student_learns_an_order() -> None:
    torch.manual_seed(0)
    student = Encoder(shape(8, 1, pooler=True).model_copy(update={"hidden_dropout_prob": 0.0}))
    module = Distillation(student, [Objective([SentenceOrderConfig(kind="sentence_order")], student.config, None)])
    batch = stream([3, 3, 3, 3])
    batch.ids = torch.tensor([1, 2, 3, 1, 3, 2, 1, 4, 5, 1, 5, 4])
    batch.order = torch.tensor([0, 1, 0, 1])
    counts = {name: torch.tensor(value) for name, value in batch.counts().items()}
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(module(batch, [Features()], counts, 0.0).total)
        losses[-1].backward()
        optimizer.step()
    assert losses[0].item() == pytest.approx(0.693, abs=0.05)
    assert losses[-1].item() < 0.1


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ConfigError, match=r"set model\.pooler: true"):
        build("sentence_order", shape(4), None)
    term = build("sentence_order", shape(4, pooler=True), None)
    with pytest.raises(ConfigError, match=r"set data\.sequences\.kind: pairs"):
        term(Features(pooled=draw(0, 1, 4)), Features(), stream([4]), 0.0)

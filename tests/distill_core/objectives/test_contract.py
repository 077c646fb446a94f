"""What every registered loss must keep, so that a new one is tested from its first day."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from distill_core.batch import Batch, Count
from distill_core.features import FeatureRequest, Features, Heads
from distill_core.models.attention import Kernel, layout
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.objective import Distillation, Objective, Teacher
from distill_core.objectives import OBJECTIVES
from distill_core.objectives.base import TermConfig
from distill_core.tasks.model import StageModel, TaskModel

V = 37
LENGTHS = [9, 7, 7, 4, 3, 2]
PAIRS = [(1, 1), (2, 2)]
# The settings beyond `kind` under which a loss is tested, one or more; a loss that needs none needs no entry.
EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "hidden_mse": [
        {"layers": [(0, 0), *PAIRS]},
        {"layers": "uniform", "projection": "linear", "shared_projection": True},
    ],
    "pkd": [{"layers": PAIRS}],
    "nst": [{"layers": [((1, 2), (1, 2)), (2, 2)]}, {"layers": "uniform", "form": "gram"}],
    "fsp": [{"layers": [((1, 2), (1, 2)), (2, 2)]}],
    "kd_ce": [{}, {"positions": "all", "temperature_rule": "flsw", "beta": 1.0, "gamma": 1.0}],
    "kd_kl": [{}, {"positions": "all"}, {"positions": "sampled", "temperature_rule": "cwsm", "beta": 0.1}],
    "kd_mse": [{}, {"positions": "sampled", "probability_shift": True, "fair_pairs": [(1, 2), (3, 4)]}],
    "attention_scores": [{"layers": PAIRS}, {"layers": PAIRS, "form": "gram"}],
    "attention_probs": [{"layers": PAIRS}],
    "attention_ce": [{"layers": PAIRS}],
    "minilmv2": [{"relation_heads": 4}],
    "task_kd": [{}, {"temperature": 2.0, "temperature_squared": True, "per_label": True}],
}
# Cross-entropies: at student = teacher they are the teacher's entropy instead of 0.
ENTROPIES = {"kd_ce", "attention_ce", "task_kd"}
# Settings under which a student that is a copy of its teacher still differs from what it is compared with.
DIFFERENT = {"probability_shift", "fair_pairs", "projection", "shared_projection"}
CASES = [(kind, fields) for kind in OBJECTIVES for fields in EXAMPLES.get(kind, [{}])]
cases = pytest.mark.parametrize(("kind", "fields"), CASES, ids=lambda value: value if isinstance(value, str) else "")


def example(kind: str, fields: dict[str, Any]) -> TermConfig:
    try:
        return OBJECTIVES[kind].Config(**{"kind": kind, **fields})
    except ValidationError as error:
        pytest.fail(f"give EXAMPLES an entry for {kind!r}, so that the contract can be tested: {error}")


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
        pooler=True,
    )
    model = Encoder(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def model(kind: str, fields: dict[str, Any], seed: int, hidden: int = 12) -> StageModel:
    """An encoder; with a head for three labels if that is what the loss compares."""
    made = encoder(seed, hidden)
    if not OBJECTIVES[kind](example(kind, fields), made.config, made.config).needs().student.task:
        return made
    with_head = TaskModel(made, "classification", ["a", "b", "c"])
    for parameter in with_head.classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return with_head


def sequences() -> list[dict[str, Tensor]]:
    """One of them has nothing masked."""
    draw = torch.Generator().manual_seed(5)
    out = []
    for number, length in enumerate(LENGTHS):
        rows = torch.randperm(length, generator=draw)[: length // 3].sort().values
        sampled = torch.randperm(length, generator=draw)[: (length + 1) // 2].sort().values
        ids = torch.randint(V, (length,), generator=draw)
        labels = torch.randint(V, (len(rows),), generator=draw)
        one = {"ids": ids, "rows": rows, "labels": labels, "sampled": sampled}
        out.append(one | {"order": torch.tensor([number % 2]), "targets": torch.tensor([number % 3])})
    return out


def batch(numbers: list[int], kernel: Kernel = "runs") -> Batch:
    every = [sequences()[i] for i in numbers]
    lengths = [LENGTHS[i] for i in numbers]
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0).tolist()

    def joined(name: str, shift: bool = False) -> Tensor:
        return torch.cat([one[name] + (start if shift else 0) for one, start in zip(every, starts, strict=True)])

    return Batch(
        joined("ids"),
        torch.cat([torch.arange(length) for length in lengths]),
        layout(lengths, kernel),
        rows=joined("rows", shift=True),
        labels=joined("labels"),
        sampled=joined("sampled", shift=True),
        order=joined("order"),
        targets=joined("targets"),
        task="classification",
    )


WHOLE = list(range(len(LENGTHS)))


def counts() -> dict[Count, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in batch(WHOLE).counts().items()}


def build(kind: str, fields: dict[str, Any], student: StageModel, teacher: StageModel) -> tuple[Distillation, Teacher]:
    torch.manual_seed(9)
    objective = Objective([example(kind, fields)], student.config, teacher.config)
    return Distillation(student, [objective]), Teacher(teacher, objective.needs().teacher)


def run(
    module: Distillation, teacher: Teacher, groups: list[list[int]], kernel: Kernel = "runs"
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one step whose sequences are dealt into ``groups``."""
    module.zero_grad()
    loss = 0.0
    for numbers in groups:
        part = batch(numbers, kernel)
        total = module(part, [teacher(part)], counts(), 0.5).total
        total.backward()
        loss += total.item()
    return loss, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@cases
def test_student_equal_to_teacher_is_the_minimum(kind: str, fields: dict[str, Any]) -> None:
    fields = {name: value for name, value in fields.items() if name not in DIFFERENT}
    module, teacher = build(kind, fields, model(kind, fields, 0), model(kind, fields, 0))
    loss, gradients = run(module, teacher, [WHOLE])
    if not teacher.request:  # a loss on the corpus alone: the teacher does not matter
        assert run(*build(kind, fields, model(kind, fields, 0), model(kind, fields, 1)), [WHOLE])[0] == loss
        return
    assert loss > 0 if kind in ENTROPIES else abs(loss) < 1e-5
    for name, gradient in gradients.items():
        if name.startswith("student."):
            assert gradient.abs().max().item() < 1e-5, name
    for seed in range(3):
        with torch.no_grad():
            for parameter in module.student.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        assert run(module, teacher, [WHOLE])[0] > loss


@cases
@pytest.mark.parametrize("groups", [[[0, 1], [2, 3, 4, 5]], [[5], [4], [3], [2], [1], [0]], [[1, 4], [0, 5], [2, 3]]])
def test_grouping_into_batches_changes_nothing(kind: str, fields: dict[str, Any], groups: list[list[int]]) -> None:
    module, teacher = build(kind, fields, model(kind, fields, 0, hidden=8), model(kind, fields, 1))
    same(run(module, teacher, groups), run(module, teacher, [WHOLE]))


@cases
def test_order_of_sequences_and_attention_kernel_change_nothing(kind: str, fields: dict[str, Any]) -> None:
    module, teacher = build(kind, fields, model(kind, fields, 0, hidden=8), model(kind, fields, 1))
    same(run(module, teacher, [[3, 0, 5, 2, 4, 1]], "padded"), run(module, teacher, [WHOLE]))


def same(found: tuple[float, dict[str, Tensor]], wanted: tuple[float, dict[str, Tensor]]) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=1e-5, abs=1e-5)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5 * scale, rtol=1e-5, msg=name)


@cases
def test_gradients_reach_student_and_projections_only(kind: str, fields: dict[str, Any]) -> None:
    module, teacher = build(kind, fields, model(kind, fields, 0, hidden=8), model(kind, fields, 1))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    loss, gradients = run(module, teacher, [WHOLE])
    assert loss > 0
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    own = {name for name, _ in module.objectives[0].named_parameters()}
    for name in own:
        assert gradients[f"objectives.0.{name}"].abs().sum() > 0, name
    (words,) = (g for name, g in gradients.items() if name.endswith("bert.embeddings.word_embeddings.weight"))
    assert words.abs().sum() > 0
    if module.request.logits:
        assert gradients["student.cls.predictions.transform.dense.weight"].abs().sum() > 0


@cases
def test_features_of_the_teacher_are_left_as_they_are(kind: str, fields: dict[str, Any]) -> None:
    module, teacher = build(kind, fields, model(kind, fields, 0, hidden=8), model(kind, fields, 1))
    part = batch(WHOLE)
    given = teacher(part)
    before = [t.clone() for t in tensors(given)]
    module(part, [given], counts(), 0.5).total.backward()
    assert all(torch.equal(a, b) for a, b in zip(tensors(given), before, strict=True))


def tensors(features: Features) -> list[Tensor]:
    heads = [t for three in features.heads.values() for t in three]
    rest = [t for t in (features.pooled, features.task) if t is not None]
    return [*features.hidden.values(), *heads, *features.logits.values(), *rest]


def random_features(request: FeatureRequest, part: Batch, width: int, dtype: torch.dtype, seed: int) -> Features:
    draw = torch.Generator().manual_seed(seed)

    def leaf(scale: float, *size: int) -> Tensor:
        return (scale * torch.randn(*size, generator=draw)).to(dtype).requires_grad_()

    n = part.n_tokens
    return Features(
        {i: leaf(100, n, width) for i in sorted(request.hidden)},
        {i: Heads(*(leaf(100, n, 2, width // 2) for _ in "qkv")) for i in sorted(request.heads)},
        {kind: leaf(1e4, n if (rows := part.at(kind)) is None else len(rows), V) for kind in sorted(request.logits)},
        leaf(100, len(LENGTHS), width) if request.pooled else None,
        leaf(1e4, len(LENGTHS), 3) if request.task else None,
    )


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_for_extreme_features_and_fp32_sums(kind: str, fields: dict[str, Any], dtype: torch.dtype) -> None:
    objective = Objective([example(kind, fields)], encoder(0).config, encoder(1).config).to(dtype)
    part, request = batch(WHOLE), objective.needs()
    student = random_features(request.student, part, 12, dtype, 0)
    teacher = random_features(request.teacher, part, 12, dtype, 1)
    for term in objective.terms:
        sums = term(student, teacher, part, 0.0)
        assert all(value.dtype == torch.float32 and value.isfinite() for value in sums.values())
        sum(sums.values()).backward()
    for tensor in tensors(student):
        assert tensor.grad is None or tensor.grad.isfinite().all()


@cases
def test_a_batch_without_masked_tokens_is_no_trouble(kind: str, fields: dict[str, Any]) -> None:
    module, teacher = build(kind, fields, model(kind, fields, 0, hidden=8), model(kind, fields, 1))
    part = batch([5])  # two tokens, nothing masked
    assert part.n_masked == 0
    losses = module(part, [teacher(part)], counts(), 0.5)
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@cases
def test_names_and_declared_needs(kind: str, fields: dict[str, Any]) -> None:
    student, teacher_shape = model(kind, fields, 0, hidden=8), model(kind, fields, 1)
    term = OBJECTIVES[kind](example(kind, fields), student.config, teacher_shape.config)
    names = term.names()
    assert all(name.split("/")[0] == kind for name in names) and len(set(names)) == len(names)
    module, teacher = build(kind, fields, student, teacher_shape)
    part = batch(WHOLE)
    # Just what was declared is computed, and it is enough.
    found, wanted = teacher(part), term.needs().teacher
    if not wanted.task:  # a task's model reads its last hidden state
        assert set(found.hidden) == wanted.hidden
    assert (set(found.heads), set(found.logits)) == (wanted.heads, wanted.logits)
    assert ((found.pooled is not None), (found.task is not None)) == (wanted.pooled, wanted.task)
    assert list(module(part, [found], counts(), 0.5).parts) == names


@cases
def test_the_student_that_is_exported_has_no_parameter_of_the_loss(kind: str, fields: dict[str, Any]) -> None:
    module, _ = build(kind, fields, model(kind, fields, 0, hidden=8), model(kind, fields, 1))
    student = {name.removeprefix("student.") for name, _ in module.named_parameters() if name.startswith("student.")}
    assert student == {name for name, _ in model(kind, fields, 0, hidden=8).named_parameters()}


@cases
def test_shapes_alone_are_enough_to_plan_with(kind: str, fields: dict[str, Any]) -> None:
    """On the meta device, as the plan and the preflight build it: no memory, and the parameters counted."""
    config = example(kind, fields)
    with torch.device("meta"):
        planned = Objective([config], encoder(0, hidden=8).config, encoder(1).config)
    real = Objective([config], encoder(0, hidden=8).config, encoder(1).config)
    assert [tuple(p.shape) for p in planned.parameters()] == [tuple(p.shape) for p in real.parameters()]
    assert all(0 <= t <= 2 and 0 <= s <= 2 for t, s in config.pairs(2, 2))


def test_a_teacher_stays_in_eval_mode() -> None:
    needs = Objective([example("kd_ce", {})], encoder(0).config, encoder(0).config).needs()
    teacher = Teacher(encoder(0), needs.teacher)
    assert not teacher.train().encoder.training
    assert not teacher(batch(WHOLE)).logits["masked"].requires_grad

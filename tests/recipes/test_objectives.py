"""What every recipe minimises, at its full shapes, against the published line of code or the paper's formula.

Sequences of equal length and features at random; the references are torch's and TextBrewer's own losses on padded
tensors and share nothing with the package but the projections' weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import textbrewer.losses
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_core.batch import Batch
from distill_core.config import DistillStage, PretrainStage
from distill_core.features import FeatureRequest, Features, Heads
from distill_core.load import objectives
from distill_core.models.attention import layout
from distill_core.models.config import EncoderConfig
from distill_core.objective import Objective
from launcher.plan import make_plan
from tests.recipes.test_facts import CASES, read

B, L, LABELS = 2, 3, 4
ROWS = torch.tensor([0, 2, 4])
NEEDED = ["data.tokenizer.vocab=/no/vocabulary"]


@dataclass
class Drawn:
    """A stage's features and its projections."""

    student: Features
    teacher: Features
    labels: Tensor
    targets: Tensor
    maps: list[nn.Linear]

    def hidden(self, teacher: int, student: int, fit: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """[B, L, H] of both, the student's projected."""
        mine, theirs = self.student.hidden[student].view(B, L, -1), self.teacher.hidden[teacher].view(B, L, -1)
        return mine if fit is None else fit(mine), theirs

    def heads(self, teacher: int, student: int) -> tuple[Heads, Heads]:
        """Each [B, A, L, d]."""
        both = []
        for heads in (self.student.heads[student], self.teacher.heads[teacher]):
            both.append(Heads(*(t.view(B, L, *t.shape[1:]).transpose(1, 2) for t in heads)))
        return both[0], both[1]

    def scores(self, teacher: int, student: int) -> tuple[Tensor, Tensor]:
        """Before the softmax, [B, A, L, L]."""
        mine, theirs = ((q @ k.mT) / q.shape[-1] ** 0.5 for q, k, _ in self.heads(teacher, student))
        return mine, theirs


# ---------------------------------------------------------------- the published objectives


def minirbt(pairs: list[tuple[int, int]], temperature: float, squared: bool) -> Callable[[Drawn], Tensor]:
    """TextBrewer's kd_ce_loss at masked positions (no T²), and hid_mse_loss for each match."""

    def loss(d: Drawn) -> Tensor:
        mine, theirs = d.student.logits["masked"], d.teacher.logits["masked"]
        found = textbrewer.losses.kd_ce_loss(mine, theirs, temperature) * (temperature**2 if squared else 1)
        for (t, s), fit in zip(pairs, d.maps or [None] * len(pairs), strict=True):
            found = found + textbrewer.losses.hid_mse_loss(*d.hidden(t, s, fit))
        return found

    return loss


def tinybert(layers: int, shared: bool) -> Callable[[Drawn], Tensor]:
    """loss_mse over attention scores and over fitted hidden states, uniformly, as in its training loop."""

    def loss(d: Drawn) -> Tensor:
        mse, step, found = nn.MSELoss(), 12 // layers, torch.zeros((), dtype=torch.float64)
        assert len(d.maps) == (1 if shared else layers + 1)
        for i in range(layers):
            found = found + mse(*d.scores(i * step + step, i + 1))
        for i in range(layers + 1):
            found = found + mse(*d.hidden(i * step, i, d.maps[0 if shared else i]))
        return found

    return loss


def prediction(per_label: bool) -> Callable[[Drawn], Tensor]:
    """soft_cross_entropy: the mean over all elements; times the number of labels: over rows."""

    def loss(d: Drawn) -> Tensor:
        assert d.student.task is not None and d.teacher.task is not None
        published = (-F.softmax(d.teacher.task, dim=-1) * F.log_softmax(d.student.task, dim=-1)).mean()
        return published * (1 if per_label else LABELS)

    return loss


def distilbert(d: Drawn) -> Tensor:
    """5 T² KLDivLoss(batchmean) at all tokens, 2 cross-entropy, 1 CosineEmbeddingLoss; T = 2."""
    (last, (top,)) = max(d.teacher.hidden), d.student.hidden
    mine, theirs = (f.logits["all"] / 2 for f in (d.student, d.teacher))
    kl = nn.KLDivLoss(reduction="batchmean")(F.log_softmax(mine, -1), F.softmax(theirs, -1)) * 2**2
    mlm = nn.CrossEntropyLoss()(d.student.logits["masked"], d.labels)
    a, b = d.student.hidden[top], d.teacher.hidden[last]
    return 5 * kl + 2 * mlm + nn.CosineEmbeddingLoss(reduction="mean")(a, b, torch.ones(len(a)))


def bort(d: Drawn) -> Tensor:
    """0.1 cross-entropy and 0.5 T² KL at masked tokens; T = 2."""
    mine, theirs = (f.logits["masked"] / 2 for f in (d.student, d.teacher))
    kl = (theirs.softmax(-1) * (theirs.log_softmax(-1) - mine.log_softmax(-1))).sum() / len(ROWS)
    return 0.1 * nn.CrossEntropyLoss()(d.student.logits["masked"], d.labels) + 0.5 * 4 * kl


def relation(mine: Tensor, theirs: Tensor) -> Tensor:
    """1 / (A L) sum KL of the softmax of scaled products of [B, A, L, d], mean over the batch."""
    p, q = ((x @ y.mT / x.shape[-1] ** 0.5).softmax(-1) for x, y in ((theirs, theirs), (mine, mine)))
    return (p * (p / q).log()).sum() / (B * p.shape[1] * L)


def minilm(depth: int) -> Callable[[Drawn], Tensor]:
    """L_AT + L_VR of the last layers."""

    def loss(d: Drawn) -> Tensor:
        q, p = (scores.softmax(-1) for scores in d.scores(12, depth))
        mine, theirs = d.heads(12, depth)
        return (p * (p / q).log()).sum() / (B * p.shape[1] * L) + relation(mine.value, theirs.value)

    return loss


def minilmv2(heads: int) -> Callable[[Drawn], Tensor]:
    """Q-Q, K-K and V-V under relation heads."""

    def cut(x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(B, L, heads, -1).transpose(1, 2)

    return lambda d: torch.stack([relation(cut(a), cut(b)) for a, b in zip(*d.heads(12, 6), strict=True)]).sum()


def mobilebert(d: Drawn) -> Tensor:
    """Feature maps by projected MSE, attention by cross-entropy of the mean heads' scores, 0.5 cross-entropy."""
    found = 0.5 * nn.CrossEntropyLoss()(d.student.logits["masked"], d.labels)
    for i, fit in enumerate(d.maps):
        found = found + nn.MSELoss()(*d.hidden(i, i, fit))
    for i in range(1, 25):
        mine, theirs = (scores.mean(1) for scores in d.scores(i, i))
        found = found - (theirs.softmax(-1) * mine.log_softmax(-1)).sum() / (B * L)
    return found


def pkd(faithful: bool) -> Callable[[Drawn], Tensor]:
    """(1 - a) CE + a T² soft cross-entropy + b PT (Skip), T = 10. The paper's sums with a = 0.5, b = 100; or the code's
    means with a = 0.7, b = 500: of the soft cross-entropy over rows and labels, of PT over rows, layers and widths."""
    pairs = ((2, 1), (4, 2), (6, 3), (8, 4), (10, 5))
    a, b = (0.7, 500) if faithful else (0.5, 100)

    def loss(d: Drawn) -> Tensor:
        assert d.student.task is not None and d.teacher.task is not None
        soft = -F.softmax(d.teacher.task / 10, -1) * F.log_softmax(d.student.task / 10, -1) * 100
        first = [[F.normalize(x[:, 0], dim=-1) for x in d.hidden(t, s)] for t, s in pairs]
        mine, theirs = (torch.stack(side, 1) for side in zip(*first, strict=True))
        patient = F.mse_loss(mine, theirs) if faithful else (mine - theirs).square().sum() / B
        spread = soft.mean() if faithful else soft.sum() / B
        return (1 - a) * F.cross_entropy(d.student.task, d.targets) + a * spread + b * patient

    return loss


def rbt3(d: Drawn) -> Tensor:
    """The labels alone."""
    return nn.CrossEntropyLoss()(d.student.logits["masked"], d.labels)


def expected(recipe: str, mode: str | None, stage: str) -> Callable[[Drawn], Tensor]:
    faithful = mode == "faithful"
    if recipe.startswith("minirbt-"):
        step = 12 // (4 if stage == "h312" else 6)
        pairs = [(step * m, m) for m in range(12 // step + 1)]
        if stage in ("h256", "h288") and "one-stage" not in recipe:  # from the assistant
            pairs = [(m, m) for m in range(7)]
        return minirbt(pairs, *((8.0, False) if faithful else (2.0, True)))
    if recipe.startswith(("tinybert", "refbert")):
        if stage == "prediction":
            return prediction(per_label=faithful)
        return tinybert(6 if recipe == "tinybert-6" else 4, shared=faithful or recipe.startswith("refbert"))
    if recipe.startswith(("distil", "robbertje")):
        return distilbert
    if recipe.startswith("minilm-"):
        return minilm(12 if recipe == "minilm-12x384" else 6)
    fixed = {"bort": bort, "mobilebert-zh": mobilebert, "pkd": pkd(faithful), "rbt3": rbt3}
    heads = {"minilmv2-6x384": 48, "minilmv2-h256": 64}
    return minilmv2(heads[recipe]) if recipe in heads else fixed[recipe]


# ---------------------------------------------------------------- ours


def features(request: FeatureRequest, shape: EncoderConfig, seed: int) -> Features:
    draw = torch.Generator().manual_seed(seed)

    def leaf(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw, dtype=torch.float64).requires_grad_()

    rows = {"masked": len(ROWS), "all": B * L}
    return Features(
        {i: leaf(B * L, shape.hidden_size) for i in sorted(request.hidden)},
        {
            i: Heads(*(leaf(B * L, shape.num_attention_heads, shape.head_size) for _ in "qkv"))
            for i in sorted(request.heads)
        },
        {kind: leaf(rows[kind], shape.vocab_size) for kind in sorted(request.logits)},
        task=leaf(B, LABELS) if request.task else None,
    )


def leaves(found: Features) -> list[Tensor]:
    rest = [] if found.task is None else [found.task]
    return [
        *found.hidden.values(),
        *(t for three in found.heads.values() for t in three),
        *found.logits.values(),
        *rest,
    ]


@pytest.mark.parametrize(("recipe", "mode"), CASES, ids=[f"{r}-{m}" if m else r for r, m in CASES])
def test_the_objective_is_the_published_one(recipe: str, mode: str | None) -> None:
    config = read(recipe, mode, *NEEDED)
    plans = {plan.name: plan for plan in make_plan(config, 1).stages}
    stages = [stage for stage in config.stages if isinstance(stage, DistillStage | PretrainStage)]
    assert stages
    for stage in stages:
        plan = plans[stage.name]
        teachers = [(stage.teacher[0], plan.teachers[0].shape)] if isinstance(stage, DistillStage) else []
        torch.manual_seed(0)
        (objective,) = objectives(stage, plan.student, teachers)
        compare(objective.double(), plan.student, plan.teacher, expected(recipe, mode, stage.name))


def compare(
    objective: Objective, student: EncoderConfig, teacher: EncoderConfig | None, formula: Callable[[Drawn], Tensor]
) -> None:
    """Value to 1e-6 and all gradients to 1e-5, both relative."""
    needs = objective.needs()
    mine, theirs = features(needs.student, student, 0), features(needs.teacher, teacher or student, 1)
    labels, targets = torch.tensor([5, 0, 77]), torch.tensor([3, 1])
    batch = Batch(
        torch.zeros(B * L, dtype=torch.int64),
        torch.arange(L).repeat(B),
        layout([L] * B, "runs"),
        rows=ROWS,
        labels=labels,
        targets=targets if needs.student.task else None,
        task="classification" if needs.student.task else None,
    )
    counts: Any = {name: torch.tensor(value) for name, value in batch.counts().items()}
    maps = [module for module in objective.modules() if isinstance(module, nn.Linear)]
    trained = [*leaves(mine), *objective.parameters()]
    found = objective(mine, theirs, batch, counts, 0.0).total
    wanted = formula(Drawn(mine, theirs, labels, targets, maps))
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    for ours, right in zip(
        torch.autograd.grad(found, trained, allow_unused=True),
        torch.autograd.grad(wanted, trained, allow_unused=True),
        strict=True,
    ):
        zero = torch.zeros(())
        a, b = (zero if g is None else g for g in (ours, right))
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-12

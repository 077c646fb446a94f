"""Which teacher layers (0-based) a student begins with, by name or by the teacher's weights.

For student layer i of S and a teacher of T layers:

| name | teacher layer | source |
|---|---|---|
| ``uniform`` | floor((i + 1) T / S) - 1: evenly spread, the last one always | the map of TinyBERT (arXiv 1909.10351) |
| ``top`` | T - S + i | Sajjad et al. (arXiv 2004.03844): drop the bottom |
| ``bottom`` | i | the same: drop the top |
| ``symmetric`` | i in the lower half, T - S + i in the upper | the same: drop the middle |
| ``alternate`` | 2 i; T must be 2 S or 2 S - 1 | the same: drop every other |
| ``distilbert`` | 0, 2, 4, 7, 9, 11 for 12 -> 6 | DistilBERT's code; MiniRBT's assistant |
| ``scores`` | :func:`by_scores` | ours |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.errors import ConfigError
from distill_core.models.parts import AddAndNorm

if TYPE_CHECKING:
    from distill_core.models.encoder import Encoder

LayerRule = Literal["uniform", "top", "bottom", "symmetric", "alternate", "distilbert", "scores"]
LayerChoice = LayerRule | list[int]
RULES: tuple[str, ...] = get_args(LayerRule)


def chosen_layers(
    choice: LayerChoice, student: int, teacher: int, who: str, weights: Encoder | None = None
) -> list[int] | None:
    """The teacher layer (0-based) of each of ``student`` layers, checked against both depths.

    Args:
        teacher: its number of layers.
        weights: the teacher, which ``scores`` is about; without it ``scores`` gives None (not known yet).

    Raises:
        ConfigError: the rule does not fit the depths, or a list has the wrong length or a layer that is not there.
    """
    if isinstance(choice, list):
        _check_list(choice, student, teacher, who)
        return choice
    if student > teacher:
        raise ConfigError(
            f"{who}: student.init.layers: {choice} takes another teacher layer for each of the student's, but the "
            f"student has {student} layers and the teacher {teacher}. Name them (one may be taken twice): "
            "layers: [0, 0, 1, ...]."
        )
    if choice == "scores":
        return None if weights is None else by_scores(weights, student)
    if choice == "distilbert":
        if (teacher, student) != (12, 6):
            raise _no_fit(choice, "goes from 12 layers to 6", student, teacher, who)
        return [0, 2, 4, 7, 9, 11]
    if choice == "alternate" and teacher not in (2 * student, 2 * student - 1):
        raise _no_fit(choice, "halves the depth", student, teacher, who)
    dropped = teacher - student
    rules = {
        "uniform": lambda i: (i + 1) * teacher // student - 1,
        "top": lambda i: dropped + i,
        "bottom": lambda i: i,
        "symmetric": lambda i: i if i < (student + 1) // 2 else dropped + i,
        "alternate": lambda i: 2 * i,
    }
    return [rules[choice](i) for i in range(student)]


def _no_fit(choice: str, what: str, student: int, teacher: int, who: str) -> ConfigError:
    return ConfigError(
        f"{who}: student.init.layers: {choice} {what}, but the teacher has {teacher} layers and the student {student}. "
        "Take uniform, top, bottom, symmetric or scores, or name the layers."
    )


def _check_list(layers: list[int], student: int, teacher: int, who: str) -> None:
    if len(layers) != student:
        raise ConfigError(
            f"{who}: student.init.layers names {len(layers)} teacher layers, but the student has "
            f"{student}; give one teacher layer for each, or a rule ({', '.join(RULES)})."
        )
    wrong = [layer for layer in layers if not 0 <= layer < teacher]
    if wrong:
        raise ConfigError(
            f"{who}: student.init.layers names teacher layer {wrong[0]}, but the teacher's layers are 0 to "
            f"{teacher - 1} (0-based)."
        )


# ---------------------------------------------------------------- by weights alone


def by_scores(teacher: Encoder, count: int) -> list[int]:
    """The ``count`` layers whose choice leaves the least behind, judged by weights alone; no text is needed.

    - Two layers are as far apart as their matrices: d(a, b) = 1 - the mean cosine of corresponding matrices.
    - A layer weighs what it adds to the stream: s(a) = the mean over its residual sums norm(x + W z) of
      ||W|| / ||gamma||, gamma being the scale of the norm that x came from.
    - A layer that is left out is stood for by the chosen layer before or after it, whichever is nearer.

    Chosen are the layers with the smallest sum of s(a) d(a, its stand-in) over those left out, found by dynamic
    programming (T² S steps); of equals, the one that comes first in lexicographic order. Copies of a layer therefore
    go first, at no cost. Between independently drawn layers all d are near 1, and strength alone decides.
    """
    apart, strength = _distances(teacher), _strengths(teacher)
    return cheapest(apart.tolist(), strength.tolist(), count)


def cheapest(apart: list[list[float]], strength: list[float], count: int) -> list[int]:
    """The ``count`` of n layers that minimise the sum of strength times distance to the nearest chosen neighbour.

    Args:
        apart: [n][n], how far apart two layers are.
        strength: [n], what leaving a layer out weighs.
    """
    n = len(strength)

    def skipped(before: int, after: int) -> float:
        """The cost of choosing ``before`` and ``after`` (-1 and n: the ends) and none between."""
        ends = [end for end in (before, after) if 0 <= end < n]
        return sum(strength[j] * min(apart[end][j] for end in ends) for j in range(before + 1, after))

    # best[i]: (cost, layers) of the best choice of k layers of which i is the first, for all from i on.
    best: dict[int, tuple[float, list[int]]] = {i: (skipped(i, n), [i]) for i in range(n)}
    for k in range(2, count + 1):
        best = {
            i: min((skipped(i, j) + best[j][0], [i, *best[j][1]]) for j in range(i + 1, n - k + 2))
            for i in range(n - k + 1)
        }
    return min((skipped(-1, i) + cost, layers) for i, (cost, layers) in best.items())[1]


def _distances(teacher: Encoder) -> Tensor:
    """float64 [T, T], symmetric, 0 on the diagonal."""
    layers = [dict(layer.named_parameters()) for layer in teacher.bert.encoder.layer]
    names = [name for name, value in layers[0].items() if value.dim() == 2]
    cosine = torch.zeros(len(layers), len(layers), dtype=torch.float64)
    for name in names:
        flat = F.normalize(torch.stack([layer[name].detach().double().flatten() for layer in layers]), dim=1)
        cosine += flat @ flat.T / len(names)
    # The rounding makes copies exactly alike, so that ties are ties.
    return (1 - cosine).round(decimals=12).clamp(min=0)


def _strengths(teacher: Encoder) -> Tensor:
    """float64 [T]."""
    before = teacher.bert.embeddings.LayerNorm.weight
    strengths = []
    for layer in teacher.bert.encoder.layer:
        ratios = []
        for module in layer.modules():
            if isinstance(module, AddAndNorm):
                ratios.append(_size(module.dense.weight) / _size(before).clamp(min=1e-12))
                before = module.LayerNorm.weight
        strengths.append(torch.stack(ratios).mean())
    return torch.stack(strengths)


def _size(weight: Tensor) -> Tensor:
    return weight.detach().double().square().sum().sqrt()
